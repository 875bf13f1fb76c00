"""From an image file to uint8 pixels at the training size."""

import contextlib
import io
import struct
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import ExifTags, Image, ImageOps

from defectcls.data.threads import map_in_threads
from defectcls.errors import UserError

Resize = Literal["squash", "pad"]
Photo = Path | str | Image.Image | np.ndarray  # a file, or what has been read of one

# A photo beyond this is taken for a decompression bomb: 179 million pixels decode to half a gigabyte. Pillow raises
# from twice its own limit and warns before; to make its warning an error would not be safe among the threads below.
MAX_PIXELS = 179_000_000
Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2
warnings.simplefilter("ignore", Image.DecompressionBombWarning)

SCALED_FROM = 4  # a JPEG of so many times the side Pillow decodes at 1/4 or less: 0.85 of torchvision's time, at 16 0.5
ODD_PNG = (b"tRNS", b"eXIf", b"Raw profile type", b"XML:com.adobe.xmp")  # of one colour transparent, or turned


class UnreadableImageError(UserError):
    """One image that cannot be decoded; the message is the reason."""


Decoded = np.ndarray | UnreadableImageError


def decode(photo: Photo, size: int, resize: Resize) -> np.ndarray:
    """Pixels of the whole frame, uint8 (3, size, size), RGB, upright as the camera held it.

    Plain JPEG and PNG by torchvision, which takes 0.4 to 0.9 of the time, and by Pillow all else and whatever
    torchvision refuses; they differ by a grey level or two. What is in memory comes out as the same pixels from a PNG.

    Args:
        photo: a file, an image of Pillow's, or an array uint8 (height, width, 3) of RGB or (height, width) of grey.
        size: side in pixels.
        resize: `squash` changes the aspect ratio, `pad` keeps it and adds black borders.

    Raises:
        UnreadableImageError: not an image, empty, truncated, or too large to be one photo.
        UserError: an array of another shape or type, or no photo at all.
    """
    content = b""
    try:
        if isinstance(photo, np.ndarray):
            return _resize_plain(_as_rgb(photo), size, resize)
        if isinstance(photo, Image.Image):
            if _is_plain_in_memory(photo):
                return _resize_plain(_as_rgb(np.array(photo)), size, resize)
            upright = _to_rgb(ImageOps.exif_transpose(photo))
        elif isinstance(photo, Path | str):
            with open(photo, "rb", buffering=0) as file:  # noqa: PTH123  a path object costs as much as reading a small file
                content = file.read()
            with Image.open(io.BytesIO(content)) as image:
                if _is_plain(image, content, size):
                    with contextlib.suppress(RuntimeError):  # torchvision's, of a broken file: Pillow gives the reason
                        return _decode_plain(content, size, resize)
                image.draft(None, (size, size))  # JPEG only: decodes at the smallest 1/2, 1/4, 1/8 not below size
                upright = _to_rgb(ImageOps.exif_transpose(image))
        else:
            raise UserError(f"{photo!r} is no photo: give a path, an image of Pillow's, or an array")
    except Image.DecompressionBombError:
        raise UnreadableImageError(f"over {MAX_PIXELS:,} pixels, as in a decompression bomb") from None
    except Image.UnidentifiedImageError:
        raise UnreadableImageError("not an image" if content else "empty file") from None
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        struct.error,
    ) as error:  # what Pillow's decoders raise on broken files
        raise UnreadableImageError((isinstance(error, OSError) and error.strerror) or str(error)) from None
    if resize == "pad":
        square = ImageOps.pad(upright, (size, size), Image.Resampling.BILINEAR)
    else:
        square = upright.resize((size, size), Image.Resampling.BILINEAR)
    return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))


def _is_plain(image: Image.Image, content: bytes, size: int) -> bool:
    """Whether torchvision gives the same picture: 8-bit RGB or grey, upright, and not so large that scaling pays."""
    if image.mode not in ("L", "RGB"):
        return False
    if image.format == "JPEG":
        return min(image.size) < SCALED_FROM * size and image.getexif().get(ExifTags.Base.Orientation, 1) == 1
    # Byte 24 is the depth: Pillow calls a 16-bit RGB file RGB too.
    return image.format == "PNG" and content[24] == 8 and not any(mark in _about_png(content) for mark in ODD_PNG)


def _about_png(content: bytes) -> bytes:
    """All chunks of a PNG but the pixels; some may stand behind them."""
    at, about = 8, b""
    while at + 8 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, at)
        about += b"" if kind == b"IDAT" else content[at : at + 8 + length]
        at += 12 + length
    return about


def _is_plain_in_memory(image: Image.Image) -> bool:
    """The same of an image that is no file (any more)."""
    upright = image.getexif().get(ExifTags.Base.Orientation, 1) == 1
    return image.mode in ("L", "RGB") and upright and "transparency" not in image.info


def _as_rgb(array: np.ndarray) -> np.ndarray:
    """As torch takes it, with three equal channels of a grey one.

    Raises:
        UserError: no picture of 8 bits.
    """
    grey, colour = array.ndim == 2, array.ndim == 3 and array.shape[-1] == 3
    if array.dtype != np.uint8 or not (grey or colour) or not array.size:
        raise UserError(
            f"an array {array.dtype} {array.shape} is no photo: give uint8 (height, width, 3) of RGB from 0 to 255, or "
            "(height, width) of grey"
        )
    return np.repeat(array[..., None], 3, axis=2) if grey else np.require(array, requirements=["C", "W"])


def _decode_plain(content: bytes, size: int, resize: Resize) -> np.ndarray:
    """`decode` of a plain file."""
    import torch  # not at the top: an audit whose files are all known decodes none
    from torchvision.io import ImageReadMode, decode_image

    pixels = decode_image(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.RGB)
    return _resize_plain(pixels.permute(1, 2, 0).numpy(), size, resize)


def _resize_plain(array: np.ndarray, size: int, resize: Resize) -> np.ndarray:
    """uint8 (height, width, 3) -> (3, size, size); one thread, whatever number torch is told to use."""
    import torch
    import torch.nn.functional as F

    pixels = torch.from_numpy(array).permute(2, 0, 1)
    longest = max(array.shape[:2]) if resize == "pad" else 0
    height, width = (round(side / longest * size) if longest else size for side in array.shape[:2])
    if pixels.shape[1:] != (height, width):
        pixels = F.interpolate(pixels[None], (height, width), mode="bilinear", antialias=True)[0]
    if (height, width) != (size, size):
        left, top = (round((size - side) / 2) for side in (width, height))
        pixels = F.pad(pixels, (left, size - width - left, top, size - height - top))
    return np.ascontiguousarray(pixels.numpy())


def _to_rgb(image: Image.Image) -> Image.Image:
    """Any mode as RGB; 16-bit grey keeps its top 8 bits, where Pillow's own conversion would clip at 255."""
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.int64)
        return Image.fromarray(np.clip(grey >> 8, 0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def decode_all(paths: Iterable[Path | str], size: int, resize: Resize) -> Iterator[Decoded]:
    """Pixels, or the error, of each file in order, decoded on all cores: both decoders let go of the lock meanwhile."""
    return map_in_threads(lambda path: attempt(path, size, resize), paths)


def attempt(photo: Photo, size: int, resize: Resize) -> Decoded:
    """What `decode` returns, or raises of an unreadable image."""
    try:
        return decode(photo, size, resize)
    except UnreadableImageError as error:
        return error
