"""Photos as a page shows them: which ones, how small, and what speaks for a defect in them."""

import io
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from defectcls.data.images import Depth, UnreadableImageError, open_photo
from defectcls.data.threads import map_in_threads
from defectcls.evaluation.predictions import verdicts

TALLEST = 360  # pixels: a tall photo is still to be read
Heat = dict[str, np.ndarray]  # what speaks for a defect in photos, by path: (height, width) from 0 to 1


def worst_errors(predictions: pd.DataFrame, classes: dict[str, bool], limit: int = 12) -> pd.DataFrame:
    """Up to `limit` escapes and below them as many false rejects, the most confident first."""
    flagged, rejected = verdicts(predictions, classes)
    defective = predictions["defective"].to_numpy(bool)
    escapes = predictions[defective & ~flagged].sort_values("score", kind="stable")
    rejects = predictions[~defective & rejected].sort_values("score", kind="stable", ascending=False)
    return pd.concat([escapes.head(limit), rejects.head(limit)])


def thumbnail_files(
    paths: Iterable[str], root: Path, side: int, depth: Depth, heat: Heat | None = None
) -> dict[str, list[bytes]]:
    """By path JPEG files' content: a thumbnail and, with heat, its `overlay`; one empty file if it cannot be read.

    Thumbnails are upright, `side` wide, up to `TALLEST` high, and as dark as the network of that depth sees the photo.
    """

    def files(path: str) -> list[bytes]:
        try:
            image = Image.fromarray(open_photo(root / path, side).pixels(depth))
        except UnreadableImageError:
            return [b""]
        image.thumbnail((side, max(side, TALLEST)))
        shown = [image, overlay(image, heat[path])] if heat and path in heat else [image]
        return [jpeg(one) for one in shown]

    each = list(dict.fromkeys(paths))
    return dict(zip(each, map_in_threads(files, each), strict=True))


def jpeg(image: Image.Image) -> bytes:
    """Content of a file."""
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=80)
    return buffer.getvalue()


def overlay(image: Image.Image, heat: np.ndarray) -> Image.Image:
    """The photo in grey under vermilion that grows with the heat: RGB, of the photo's size.

    Args:
        heat: (height, width) from 0 to 1, of the whole frame; stretched to the photo's shape.
    """
    share = Image.fromarray((0.6 * 255 * heat).astype(np.uint8))  # the photo is still seen where it is hottest
    tint = Image.new("RGB", image.size, "#d55e00")
    return Image.composite(tint, image.convert("L").convert("RGB"), share.resize(image.size, Image.Resampling.BILINEAR))
