"""Photos of more than 8 bits: what is white in them."""

from typing import Literal, NamedTuple

import numpy as np

from defectcls.errors import UserError

Depth = Literal["auto", "8", "10", "12", "14", "16", "float"]

# What is white in files of more than 8 bits.
WHITE: dict[Depth, int] = {"float": 1, "8": 255, "10": 1023, "12": 4095, "14": 16383, "16": 65535}
DEPTHS = tuple(WHITE)


class UnreadableImageError(UserError):
    """One image that cannot be decoded; the message is the reason."""


class Opened(NamedTuple):
    """A photo as its file holds it, upright: `values` (height, width) of grey or (height, width, 3) of RGB.

    Width, height and `mode` (as Pillow calls it, with ;16 for 16-bit colour) are the file's, and so is whether it is
    `paged`: holds further pages.
    """

    values: np.ndarray
    width: int = 0
    height: int = 0
    mode: str = ""
    paged: bool = False

    @property
    def depth(self) -> Depth | Literal[""]:
        """The least one that holds its values; "" of 8 bits, which are the same at every depth."""
        if self.values.dtype == np.uint8:
            return ""
        high = float(self.values.max())
        if self.values.dtype.kind == "f" and high <= 1:
            return "float"
        return next((depth for depth in DEPTHS[1:] if high <= WHITE[depth]), "16")

    def pixels(self, depth: Depth | None) -> np.ndarray:
        """uint8 (height, width) or (height, width, 3).

        Args:
            depth: see WHITE; `auto`: the least that holds this photo's values; None, for a mask: white is all but 0.

        Raises:
            UnreadableImageError: values that are beyond the depth.
        """
        if depth is None:
            return np.where(self.values, np.uint8(255), np.uint8(0))
        least = self.depth
        if not least:
            return self.values
        low, high = float(self.values.min()), float(self.values.max())
        white = WHITE[least if depth == "auto" else depth]
        if not 0 <= low <= high <= white or (high > 0 and least == "float" and white > 1):
            remedy = f"train with dataset.depth={least}, or " if low >= 0 and high <= WHITE[least] else ""
            raise UnreadableImageError(
                f"its values run from {low:,.6g} to {high:,.6g}, and depth {depth} from 0 to {white:,}: {remedy}save "
                "it as the photos are that the model learns from"
            )
        scaled = np.multiply(self.values, np.float32(255 / white), dtype=np.float32)
        scaled += np.float32(0.5)
        return scaled.astype(np.uint8)
