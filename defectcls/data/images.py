"""From an image file to uint8 pixels at the training size."""

import contextlib
import io
import math
import os
import warnings
from pathlib import Path
from typing import Literal, NamedTuple

import imagecodecs
import numpy as np
import simplejpeg
from PIL import ExifTags, Image, ImageFile

from defectcls.data.shards import read_member
from defectcls.errors import UserError, one_line

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
BUDGET = 448  # side of the square of as many pixels as a photo is brought to by `image_size=auto`
HARMLESS = "Invalid SOS parameters"  # what some cameras write into a JPEG: every pixel is there


class UnreadableImageError(UserError):
    """One image that cannot be decoded; the message is the reason."""


class Opened(NamedTuple):
    """A photo as its file holds it, upright: `values` (height, width) of grey or (height, width, 3) of RGB.

    `shape` are the sides of the file's in pixels, and `paged` whether it holds further pages.
    """

    values: np.ndarray
    shape: tuple[int, ...]
    paged: bool = False

    @property
    def file(self) -> tuple[float, int]:
        """Logarithm of its pixels, and bits a colour: size and depth of `defectcls.evaluation.drift.LOOKS`."""
        return math.log(math.prod(self.shape)), {"": 8, "float": 32}.get(self.depth) or int(self.depth)

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


def decode(photo: Photo, size: tuple[int, int], resize: Resize, depth: Depth) -> np.ndarray:
    """Pixels of the whole frame, uint8 (3, height, width), RGB, upright as the camera held it.

    What is in memory comes out as the same pixels from a PNG.

    Args:
        photo: a file, an image of Pillow's, or an array (height, width, 3) of RGB or (height, width) of grey, uint8,
            uint16 or float32.
        size: height and width in pixels.
        resize: `squash` changes the aspect ratio, `pad` keeps it and adds black borders.
        depth: what is white in files of more than 8 bits, see `Opened.pixels`.

    Raises:
        UnreadableImageError: not an image, empty, damaged, too large to be one photo, or brighter than white.
        UserError: an array of another shape or type, or no photo at all.
    """
    return framed(open_photo(photo, max(size)).pixels(depth), size, resize)


def open_photo(photo: Photo, side: int) -> Opened:
    """Read and decode it, see `decode`.

    Args:
        side: a JPEG of four times this and more is decoded at a fraction of its size that is no smaller.
    """
    if isinstance(photo, np.ndarray):
        shaped = photo.ndim == 2 or (photo.ndim == 3 and photo.shape[-1] == 3)
        if photo.dtype not in (np.uint8, np.uint16, np.float32) or not shaped or not photo.size:
            raise UserError(
                f"an array {photo.dtype} {photo.shape} is no photo: give uint8 (height, width, 3) of RGB from 0 to "
                "255, or (height, width) of grey; uint16 or float32 for a model that learnt from such photos"
            )
        return Opened(photo, photo.shape[:2])
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
        try:
            with open(path, "rb", buffering=0) as file:  # noqa: PTH123  a path object costs as much as a small file
                return file.read()
        except (NotADirectoryError, FileNotFoundError):
            return read_member(str(path))
    except Exception as error:  # pyarrow raises what it likes
        raise UnreadableImageError(getattr(error, "strerror", None) or one_line(error)) from None


def further_pages(count: int) -> str:
    """A sentence on so many files."""
    return f"files of several pages, of which only the first is looked at: {count}"


def _opened(image: Image.Image, content: bytes, side: int) -> Opened:
    shape = image.size
    paged = getattr(image, "is_animated", False) and image.format != "MPO"  # what a telephone hides behind a JPEG
    tiles = getattr(image, "tile", None)
    layout = str(tiles[0].args) if tiles else ""  # of a file whose pixels are not read yet
    orientation = _orientation(image)
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
    return Opened(_upright(values, orientation), shape, paged)


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


def _orientation(image: Image.Image) -> int:
    """EXIF's number of how the camera was held; 1 of a TIFF, which Pillow turns itself, when its pixels are read."""
    told = image.format != "TIFF" and (image.format != "PNG" or "exif" in image.info)  # else a PNG is decoded to look
    return image.getexif().get(ExifTags.Base.Orientation, 1) if told else 1


def _upright(values: np.ndarray, orientation: int) -> np.ndarray:
    if orientation in (5, 6, 7, 8):
        values = values.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    return values[::-1] if orientation in (3, 4, 7, 8) else values


def framed(
    array: np.ndarray, size: tuple[int, int], resize: Resize, mode: Literal["bicubic", "bilinear"] = "bicubic"
) -> np.ndarray:
    """uint8 (rows, columns) or (rows, columns, 3) -> (3, *size), by Pillow, which an exported file repeats to the bit.

    Bicubic, as timm's weights have learned to see; bilinear leaves nothing out that reaches into a pixel.
    """
    photo = Image.fromarray(array)
    rows, columns = filled(array.shape, size) if resize == "pad" else (slice(0, size[0]), slice(0, size[1]))
    height, width = rows.stop - rows.start, columns.stop - columns.start
    for across, along in ((width, photo.height), (width, height)):  # in this order, which Pillow 13 turns for some
        if photo.size != (across, along):
            photo = photo.resize((across, along), Image.Resampling[mode.upper()])
    pixels = np.zeros((3, *size), np.uint8)
    pixels[:, rows, columns] = np.asarray(photo).T.swapaxes(-1, -2)
    return pixels


def filled(photo: tuple[int, ...], size: tuple[int, ...]) -> list[slice]:
    """Rows and columns in the middle of a frame that a photo of another shape fills, in its own aspect ratio."""
    scale = min(size[0] / photo[0], size[1] / photo[1])
    lengths = [max(1, round(scale * length)) for length in photo[:2]]
    starts = [round((side - length) / 2) for side, length in zip(size, lengths, strict=True)]
    return [slice(start, start + length) for start, length in zip(starts, lengths, strict=True)]


def without_borders(heat: np.ndarray, path: Path) -> np.ndarray:
    """The part of a map that the photo fills, where black borders pad it."""
    rows, columns = filled(open_photo(path, max(heat.shape)).values.shape, heat.shape)
    return heat[rows, columns]


def typical_size(files: list[str]) -> tuple[int, int]:
    """Height and width of the photos' median aspect ratio, of about as many pixels as they have and at most BUDGET.

    Multiples of 32, the coarsest cells of a network. The heads of up to 100 files are read, evenly spaced.
    """
    shapes = []
    for file in files[:: math.ceil(len(files) / 100)]:
        with contextlib.suppress(Exception):  # reading says what is damaged
            head = file if os.path.isfile(file) else io.BytesIO(read_file(file))  # noqa: PTH113  of an archive, the whole
            with Image.open(head, formats=FORMATS) as image:
                turned = _orientation(image) in (5, 6, 7, 8)  # a TIFF's size is told as it is held
                shapes.append(image.size if turned else image.size[::-1])
    heights, widths = np.array(shapes or [(BUDGET, BUDGET)], float).T
    pixels = min(BUDGET**2, np.median(heights * widths))
    aspect = np.exp(np.median(np.log(heights / widths)))  # 1 of as many tall as wide ones
    height, width = math.sqrt(pixels * aspect), math.sqrt(pixels / aspect)
    return max(32, 32 * round(height / 32)), max(32, 32 * round(width / 32))
