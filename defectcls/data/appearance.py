"""In what a photo looks like none that a model was measured on, in words."""

from typing import Annotated

import numpy as np
from pydantic import BaseModel, Field, FiniteFloat, PositiveInt

LOOKS = {  # words for less and for more, of what the model sees and of the file
    "brightness": ("darker", "brighter"),
    "contrast": ("of less contrast", "of more contrast"),
    "sharpness": ("more blurred", "sharper or noisier"),
    "colour": ("paler", "more colourful"),
    "redness": ("bluer", "redder"),
    "size": ("smaller", "larger"),
    "depth": ("of fewer bits", "of more bits"),
}
SEEN = [*LOOKS][:5]  # see `defectcls.model.likeness.appearance`; the others are of `defectcls.data.images.Opened.file`
Numbers = Annotated[list[FiniteFloat], Field(min_length=len(LOOKS), max_length=len(LOOKS))]


class Measured(BaseModel):
    """What a model was measured on: so many independent photos, and the ends of their LOOKS; and what it remembers."""

    photos: PositiveInt
    low: Numbers
    high: Numbers
    paths: list[str]

    def cause(self, looks: np.ndarray) -> str:
        """In which of LOOKS a photo is farthest beyond all of them, in widths of their range."""
        low, high = np.array(self.low), np.array(self.high)
        beyond = np.stack([low - looks, looks - high], 1) / np.maximum(high - low, 0.02)[:, None]
        of, more = np.unravel_index(beyond.argmax(), beyond.shape)
        return (
            f"{[*LOOKS.values()][of][more]} than any measured" if beyond.max() > 0.01 else "looks like nothing measured"
        )
