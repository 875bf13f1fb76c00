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


def worst_errors(predictions: pd.DataFrame, classes: dict[str, bool], limit: int = 12) -> pd.DataFrame:
    """Up to `limit` escapes and below them as many false rejects, the most confident first."""
    flagged, rejected = verdicts(predictions, classes)
    defective = predictions["defective"].to_numpy(bool)
    escapes = predictions[defective & ~flagged].sort_values("score", kind="stable")
    rejects = predictions[~defective & rejected].sort_values("score", kind="stable", ascending=False)
    return pd.concat([escapes.head(limit), rejects.head(limit)])


def thumbnail(path: Path, side: int, depth: Depth) -> Image.Image:
    """The image in RGB, upright, within `side` x `side` pixels, as dark as the network of that depth sees it.

    Raises:
        UnreadableImageError: see `defectcls.data.images.decode`.
    """
    image = Image.fromarray(open_photo(path, side).pixels(depth))
    image.thumbnail((side, side))
    return image.convert("RGB")


def thumbnail_files(
    paths: Iterable[str], root: Path, side: int, depth: Depth, heat: dict[str, np.ndarray] | None = None
) -> dict[str, list[bytes]]:
    """By path JPEG files' content: the thumbnail and, with heat, its `overlay`; one empty file if it cannot be read."""

    def files(path: str) -> list[bytes]:
        try:
            image = thumbnail(root / path, side, depth)
        except UnreadableImageError:
            return [b""]
        return [_jpeg(each) for each in (image, *([overlay(image, heat[path])] if heat and path in heat else []))]

    each = list(dict.fromkeys(paths))
    return dict(zip(each, map_in_threads(files, each), strict=True))


def _jpeg(image: Image.Image) -> bytes:
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
