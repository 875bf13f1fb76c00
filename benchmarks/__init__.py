"""How fast it is: beside the package, which knows nothing of it. See the first line of each module."""
