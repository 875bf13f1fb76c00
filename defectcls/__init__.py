"""From a folder of photos to a trained, measured defect classifier in one command."""

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from pathlib import Path

    from defectcls.deployment.predictor import Predictor

__version__ = "0.1.0"


def load(
    checkpoint: "str | Path",
    device: Literal["auto", "cpu", "gpu"] = "auto",
    precision: Literal["32", "bf16", "16"] | None = None,
) -> "Predictor":
    """A trained model that predicts photos, of a run folder or a .ckpt file: `load(run).predict(photos)`.

    See `defectcls.deployment.predictor`; imported here, since torch takes seconds.
    """
    from defectcls.deployment.predictor import load

    return load(checkpoint, device, precision)
