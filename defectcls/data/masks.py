"""Which pixels of a photo are defective, where a dataset marks them."""

from pathlib import Path

import numpy as np
import pandas as pd

from defectcls.data.images import Resize, UnreadableImageError, decode
from defectcls.data.threads import map_in_threads

SIZES = {"under 0.1 %": 0.001, "0.1 to 1 %": 0.01, "1 to 10 %": 0.1, "over 10 %": 1}  # of the image, up to and with


def load_masks(samples: pd.DataFrame, root: Path, side: int, resize: Resize) -> np.ndarray:
    """Defect pixels of every row of a sample table, bool (n, side, side), brought to size as its image; none for "".

    A pixel counts as soon as the defect reaches into it: else a thin scratch would vanish.

    Raises:
        UserError: a mask cannot be read.
    """
    masks = np.zeros((len(samples), side, side), bool)
    if "mask" not in samples:
        return masks
    for mask, path in zip(masks, samples["mask"], strict=True):
        if path:
            try:
                mask[:] = decode(root / path, side, resize, None).any(axis=0)
            except UnreadableImageError as error:
                raise UnreadableImageError(f"the mask {root / path} cannot be read: {error}") from error
    return masks


def mask_sizes(samples: pd.DataFrame, root: Path, side: int, resize: Resize) -> list[str]:
    """Share of the image that each defect covers, in words of SIZES that sort by size; "" where there is no mask.

    Raises:
        UserError: a mask cannot be read.
    """

    def size(row: int) -> str:
        share = load_masks(samples.iloc[[row]], root, side, resize).mean()
        return next(words for words, limit in SIZES.items() if share <= limit) if share else ""

    marked = np.flatnonzero(samples["mask"] != "").tolist()
    sizes = dict(zip(marked, map_in_threads(size, marked), strict=True))
    return [sizes.get(row, "") for row in range(len(samples))]
