"""From an image file to uint8 pixels at the training size."""

import io
import warnings
from pathlib import Path
from typing import Literal, NamedTuple

import imagecodecs
import numpy as np
import simplejpeg
from PIL import ExifTags, Image, ImageFile

from defectcls.errors import UserError

Resize = Literal["squash", "pad"]
Depth = Literal["auto", "8", "10", "12", "14", "16", "float"]
Photo = Path | str | bytes | Image.Image | np.ndarray  # a file, its content, or what has been read of one

# What is white in files of more than 8 bits.
WHITE: dict[Depth, int] = {"float": 1, "8": 255, "10": 1023, "12": 4095, "14": 16383, "16": 65535}
DEPTHS = tuple(WHITE)

# A photo beyond this is taken for a decompression bomb: 179 million pixels decode to half a gigabyte. Pillow raises
# from twice its own limit and warns before; to make its warning an error would not be safe among the threads below.
Image.MAX_IMAGE_PIXELS = 179_000_000 // 2
warnings.simplefilter("ignore", Image.DecompressionBombWarning)

# A file from a stranger is data: nothing here is read by calling another program, as Pillow reads an EPS.
FORMATS = ["JPEG", "PNG", "BMP", "TIFF", "WEBP", "PPM", "GIF", "JPEG2000", "DIB", "AVIF", "PCX", "QOI", "SUN", "TGA"]
SCALED_FROM = 4  # a JPEG of so many times the side is decoded at 1/4 or less: at 4 in 0.85 of the time, at 16 in 0.5
LEAST_SIDE = 128  # but at no fraction that is smaller than this: what twins are found by
HARMLESS = "Invalid SOS parameters"  # what some cameras write into a JPEG: every pixel is there


class UnreadableImageError(UserError):
    """One image that cannot be decoded; the message is the reason."""


class Opened(NamedTuple):
    """A photo as its file holds it, upright: `values` (height, width) of grey or (height, width, 3) of RGB.

    `shorter` is a side of the file's in pixels, and `paged` whether it holds further pages.
    """

    values: np.ndarray
    shorter: int = 0
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

    def pixels(self, depth: Depth) -> np.ndarray:
        """uint8 (height, width) or (height, width, 3).

        Args:
            depth: see WHITE; `auto`: the least that holds this photo's values.

        Raises:
            UnreadableImageError: values that are beyond the depth.
        """
        least = self.depth
        if not least:
            return self.values
        low, high = float(self.values.min()), float(self.values.max())
        white = WHITE[least if depth == "auto" else depth]
        if not 0 <= low <= high <= white or (high > 0 and least == "float" and white > 1):
            raise UnreadableImageError(
                f"its values run from {low:,.6g} to {high:,.6g}, and depth {depth} from 0 to {white:,}: save it as the "
                "other photos, or train with another dataset.depth"
            )
        scaled = np.multiply(self.values, np.float32(255 / white), dtype=np.float32)
        scaled += np.float32(0.5)
        return scaled.astype(np.uint8)


def decode(photo: Photo, size: int, resize: Resize, depth: Depth) -> np.ndarray:
    """Pixels of the whole frame, uint8 (3, size, size), RGB, upright as the camera held it.

    What is in memory comes out as the same pixels from a PNG.

    Args:
        photo: a file, an image of Pillow's, or an array (height, width, 3) of RGB or (height, width) of grey, uint8,
            uint16 or float32.
        size: side in pixels.
        resize: `squash` changes the aspect ratio, `pad` keeps it and adds black borders.
        depth: what is white in files of more than 8 bits, see `Opened.pixels`.

    Raises:
        UnreadableImageError: not an image, empty, damaged, too large to be one photo, or brighter than white.
        UserError: an array of another shape or type, or no photo at all.
    """
    return square(open_photo(photo, size).pixels(depth), size, resize)


def open_photo(photo: Photo, side: int) -> Opened:
    """Read and decode it.

    Args:
        side: a JPEG of four times this and more is decoded at a fraction of its size that is no smaller.

    Raises:
        UnreadableImageError, UserError: see `decode`.
    """
    if isinstance(photo, np.ndarray):
        shaped = photo.ndim == 2 or (photo.ndim == 3 and photo.shape[-1] == 3)
        if photo.dtype not in (np.uint8, np.uint16, np.float32) or not shaped or not photo.size:
            raise UserError(
                f"an array {photo.dtype} {photo.shape} is no photo: give uint8 (height, width, 3) of RGB from 0 to "
                "255, or (height, width) of grey; uint16 or float32 for a model that learnt from such photos"
            )
        return Opened(photo)
    content = b""
    try:
        if isinstance(photo, ImageFile.ImageFile) and photo.tile and photo.fp and not photo.tell():
            photo.fp.seek(0)  # opened, and not read yet: as from the file, so that damage is told
            photo = photo.fp.read()
        if isinstance(photo, Image.Image):
            return _opened(photo, b"", side)
        if not isinstance(photo, Path | str | bytes):
            raise UserError(f"{photo!r} is no photo: give a path, an image of Pillow's, or an array")
        content = photo if isinstance(photo, bytes) else read_file(photo)
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            return _opened(image, content, side)
    except UserError:
        raise
    except Image.UnidentifiedImageError:
        raise UnreadableImageError("not an image" if content else "empty file") from None
    except Exception as error:  # what is in a file decides what a decoder raises: KeyError, MemoryError, struct.error …
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnreadableImageError(f"damaged, its decoder says: {reason}") from error


def read_file(path: Path | str) -> bytes:
    """The one place where the bytes of a photo are read.

    Raises:
        UnreadableImageError: it has gone, is a folder, or may not be read.
    """
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123  a path object costs as much as reading a small file
            return file.read()
    except OSError as error:
        raise UnreadableImageError(error.strerror or str(error)) from None


def further_pages(count: int) -> str:
    """A sentence on so many files."""
    return f"files of several pages, of which only the first is looked at: {count}"


def _opened(image: Image.Image, content: bytes, side: int) -> Opened:
    shorter = min(image.size)
    paged = getattr(image, "is_animated", False) and image.format != "MPO"  # what a telephone hides behind a JPEG
    tiles = getattr(image, "tile", None)
    layout = str(tiles[0].args) if tiles else ""  # of a file whose pixels are not read yet
    may_be_turned = image.format != "PNG" or "exif" in image.info  # else Pillow decodes a PNG to look behind its pixels
    if content and image.format in ("JPEG", "MPO") and image.mode != "CMYK":
        values = _decode_jpeg(image, content, side)
    elif content and image.format in ("PNG", "JPEG2000"):
        values = (imagecodecs.png_decode if image.format == "PNG" else imagecodecs.jpeg2k_decode)(content)
        if values.ndim == 3:  # with or without transparency
            values = values[..., 0] if values.shape[2] < 3 else values[..., :3]
    else:
        image.load()
        plain = image.convert("RGBA") if image.mode == "P" and "transparency" in image.info else image
        if plain.mode[0] not in "IF":  # which are grey of more than 8 bits
            plain = plain.convert("L" if plain.mode in ("1", "L", "LA", "La") else "RGB")
        values = np.array(plain)
        if values.dtype == np.uint8 and (";16" in layout or (image.format == "PPM" and "65535" in layout)):
            raise UnreadableImageError("16-bit colour, of which only the upper bytes are read: save it as PNG")
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1) if may_be_turned else 1
    return Opened(_upright(values, orientation), shorter, paged)


def _decode_jpeg(image: Image.Image, content: bytes, side: int) -> np.ndarray:
    """By a decoder that tells what it warns of; Pillow takes what is grey or shifted from a damaged place on."""
    if simplejpeg.decode_jpeg_header(content, strict=False)[:2] != image.size[::-1]:
        raise UnreadableImageError("damaged: its headers contradict each other")
    side = max(side, LEAST_SIDE)
    least = side if min(image.size) >= SCALED_FROM * side else 0
    how = {"colorspace": "GRAY" if image.mode == "L" else "RGB", "min_height": least, "min_width": least}
    try:
        values = simplejpeg.decode_jpeg(content, **how)
    except ValueError as error:
        if HARMLESS not in str(error):
            raise
        values = simplejpeg.decode_jpeg(content, **how, strict=False)
    return values[..., 0] if image.mode == "L" else values


def _upright(values: np.ndarray, orientation: int) -> np.ndarray:
    """As EXIF says that the camera was held."""
    if orientation in (5, 6, 7, 8):
        values = values.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    return values[::-1] if orientation in (3, 4, 7, 8) else values


def square(array: np.ndarray, size: int, resize: Resize) -> np.ndarray:
    """uint8 (height, width) or (height, width, 3) -> (3, size, size); one thread, whatever torch is told to use."""
    import torch  # not at the top: an audit whose files are all known decodes none
    import torch.nn.functional as F

    whole = np.require(array, requirements=["C", "W"])  # as torch takes it
    pixels = torch.from_numpy(whole)[None] if array.ndim == 2 else torch.from_numpy(whole).permute(2, 0, 1)
    longest = max(array.shape[:2]) if resize == "pad" else 0
    height, width = (max(1, round(side / longest * size)) if longest else size for side in array.shape[:2])
    if pixels.shape[1:] != (height, width):
        pixels = F.interpolate(pixels[None], (height, width), mode="bilinear", antialias=True)[0]
    if (height, width) != (size, size):
        left, top = (round((size - side) / 2) for side in (width, height))
        pixels = F.pad(pixels, (left, size - width - left, top, size - height - top))
    return np.ascontiguousarray(pixels.expand(3, -1, -1).numpy())
