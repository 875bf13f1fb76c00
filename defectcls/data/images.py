"""From an image file to uint8 pixels at the training size."""

import itertools
import os
import struct
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from defectcls.errors import UserError

Resize = Literal["squash", "pad"]

# A photo beyond this is taken for a decompression bomb: 179 million pixels decode to half a gigabyte. Pillow raises
# from twice its own limit and warns before; to make its warning an error would not be safe among the threads below.
MAX_PIXELS = 179_000_000
Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2
warnings.simplefilter("ignore", Image.DecompressionBombWarning)

DECODED_AHEAD = 256  # images in memory while the reader of `decode_all` is busy


class UnreadableImageError(UserError):
    """One image that cannot be decoded; the message is the reason."""


def decode(path: Path, size: int, resize: Resize) -> np.ndarray:
    """Pixels of the whole frame, uint8 (3, size, size), RGB, upright as the camera held it.

    Args:
        size: side in pixels.
        resize: `squash` changes the aspect ratio, `pad` keeps it and adds black borders.

    Raises:
        UnreadableImageError: not an image, empty, truncated, or too large to be one photo.
    """
    try:
        with Image.open(path) as image:
            image.draft(None, (size, size))  # JPEG only: decodes at the smallest 1/2, 1/4, 1/8 that is not below size
            upright = _to_rgb(ImageOps.exif_transpose(image))
    except Image.DecompressionBombError:
        raise UnreadableImageError(f"over {MAX_PIXELS:,} pixels, as in a decompression bomb") from None
    except Image.UnidentifiedImageError:
        raise UnreadableImageError("empty file" if path.stat().st_size == 0 else "not an image") from None
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        struct.error,
    ) as error:  # what Pillow's decoders raise on broken files
        raise UnreadableImageError(str(error)) from None
    if resize == "pad":
        square = ImageOps.pad(upright, (size, size), Image.Resampling.BILINEAR)
    else:
        square = upright.resize((size, size), Image.Resampling.BILINEAR)
    return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any mode as RGB; 16-bit grey keeps its top 8 bits, where Pillow's own conversion would clip at 255."""
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.int64)
        return Image.fromarray(np.clip(grey >> 8, 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def decode_all(paths: Iterable[Path], size: int, resize: Resize) -> Iterator[np.ndarray | UnreadableImageError]:
    """Pixels, or the error, of each file in order, decoded on all cores: Pillow lets go of the lock meanwhile."""

    def attempt(path: Path) -> np.ndarray | UnreadableImageError:
        try:
            return decode(path, size, resize)
        except UnreadableImageError as error:
            return error

    remaining = iter(paths)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        while ahead := list(itertools.islice(remaining, DECODED_AHEAD)):
            yield from pool.map(attempt, ahead)
