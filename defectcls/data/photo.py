"""What one read of a photo gives: digest, record, thumbnail and pixels."""

import hashlib
from typing import Any, NamedTuple

import numpy as np
from scipy import fft

from defectcls.data.images import ONE_PAGE, Depth, Resize, UnreadableImageError, open_photo, read_file, square

THUMBNAIL = 128  # pixels of the square that twins are found by, whatever image_size a model sees
FINEST = 256  # pixels of the side that twins are compared at, by a thumbnail of half of it
LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # of red, green and blue, ITU-R BT.601
CYCLES = 6  # highest frequency of a spectrum, in cycles a frame: what a re-encoding leaves alone

_ROWS, _COLUMNS = np.meshgrid(np.fft.fftfreq(THUMBNAIL, 1 / THUMBNAIL), np.arange(THUMBNAIL // 2 + 1), indexing="ij")
_RADIUS = np.hypot(_ROWS, _COLUMNS)
_KEPT = (_RADIUS <= CYCLES) & (_RADIUS >= 1) & ((_COLUMNS > 0) | (_ROWS > 0))  # half the plane says all of a real image
FREQUENCIES = np.stack([_ROWS[_KEPT], _COLUMNS[_KEPT]], axis=1)  # (frequencies, 2) down and across, cycles a frame
_WINDOW = np.outer(np.hanning(THUMBNAIL + 2)[1:-1], np.hanning(THUMBNAIL + 2)[1:-1]).astype(np.float32)

RECORD = np.dtype(
    [
        ("width", "i4"),
        ("height", "i4"),
        ("mode", "U8"),  # Pillow's: L, RGB, I;16 …
        ("paged", "?"),  # it has further pages
        ("depth", "U5"),  # the least of DEPTHS that holds its values; "" of 8 bits
        ("spread", "f4"),  # standard deviation of the grey values, 0..255, at this depth
        ("spectrum", "f2", (len(FREQUENCIES), 2)),  # real and imaginary, in grey values: 16 bits are finer than a JPEG
    ]
)


class Photo(NamedTuple):
    """What one read of a file gives; without an `error`, all of it."""

    digest: bytes
    error: str = ""
    record: Any = None
    thumbnail: Any = None
    pixels: Any = None


def read_photo(path: str, size: int, resize: Resize, depth: Depth) -> Photo:
    """Of one file, read once.

    Args:
        size, resize: see `defectcls.data.images.decode`.
        depth: of the pixels; `auto`: the one that the record names.
    """
    digest = b""
    try:
        content = read_file(path)
        digest = digest_of(content)
        opened = open_photo(content, size)
        own = opened.depth or depth
        upright = opened.pixels(own)
        at_depth = upright if depth in ("auto", own) else opened.pixels(depth)
        side = min(THUMBNAIL, int(counts_as(np.array(upright.shape[:2]).min())))
        pixels, frame = square(at_depth, size, resize), square(upright, side, "squash")
    except UnreadableImageError as error:
        return Photo(digest, str(error))
    grey = (
        np.tensordot(LUMINANCE, frame.astype(np.float32), 1).repeat(THUMBNAIL // side, 0).repeat(THUMBNAIL // side, 1)
    )
    windowed = (grey - (grey * _WINDOW).sum() / _WINDOW.sum()) * _WINDOW
    spectrum = fft.rfft2(windowed)[_KEPT] / _WINDOW.sum()
    parts = np.stack([spectrum.real, spectrum.imag], axis=1)
    about = opened.width, opened.height, opened.mode, opened.paged and not path.lower().endswith(ONE_PAGE)
    record = np.array((*about, opened.depth, grey.std(), parts), RECORD)
    return Photo(digest, "", record, grey.round().astype(np.uint8), pixels)


def counts_as(shorter: np.ndarray) -> np.ndarray:
    """The side in pixels, 8, 16, … up to FINEST, that images of this shorter side are compared at."""
    return 2 ** np.rint(np.log2(shorter.clip(8, FINEST))).astype(int)


def digest_of(*parts: bytes) -> bytes:
    """16 bytes that stand for a content."""
    return hashlib.blake2b(b"".join(parts), digest_size=16).digest()
