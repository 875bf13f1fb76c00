"""From a folder of photos to a trained, measured defect classifier in one command."""

__version__ = "0.1.0"
