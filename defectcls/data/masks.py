"""Which pixels of a photo are defective, where a dataset marks them."""

from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from defectcls.data.images import Resize, UnreadableImageError, framed, open_photo
from defectcls.data.threads import map_in_threads

SIZES = {"under 0.1 %": 0.001, "0.1 to 1 %": 0.01, "1 to 10 %": 0.1, "over 10 %": 1}  # of the photo, up to and with


def load_mask(path: Path, size: tuple[int, int], resize: Resize) -> np.ndarray:
    """Defect pixels, bool (height, width), brought to size as the image.

    A pixel counts as soon as the defect reaches into it: else a thin scratch would vanish.

    Raises:
        UserError: it cannot be read.
    """
    return framed(np.where(_marked(path, max(size)), np.uint8(255), np.uint8(0)), size, resize, "bilinear")[0] > 0


def mask_sizes(samples: pd.DataFrame, root: Path, side: int) -> list[str]:
    """Share of the photo that each defect covers, in words of SIZES that sort by size; "" where there is no mask.

    Raises:
        UserError: a mask cannot be read.
    """
    marked, shares = samples["mask"] != "", np.zeros(len(samples))
    files, read = (root / path for path in samples["mask"][marked]), partial(_marked, side=side)
    shares[marked] = [mask.mean() for mask in map_in_threads(read, files)]
    return [next(words for words, limit in SIZES.items() if share <= limit) if share else "" for share in shares]


def _marked(path: Path, side: int) -> np.ndarray:
    """Defect pixels as the file has them, bool (height, width)."""
    try:
        values = open_photo(path, side).values
    except UnreadableImageError as error:
        raise UnreadableImageError(f"the mask {path} cannot be read: {error}") from error
    return (values.max(axis=2) if values.ndim == 3 else values) != 0
