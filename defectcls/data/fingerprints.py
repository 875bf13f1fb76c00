"""What is remembered of an image file, so that a set is read once: its digest, its shape, its coarse spectrum.

Kept in one small sqlite file by content, not by name: a moved or copied image is known again, an edited one is not.
"""

from typing import NamedTuple

import numpy as np
from scipy import fft
from tqdm import tqdm

from defectcls.data.digests import changed, digest_file
from defectcls.data.images import WHITE, Depth, UnreadableImageError, decode, open_image, room_of
from defectcls.data.store import Store
from defectcls.data.threads import map_in_threads

SIDE = 128  # pixels of the square that the spectrum is taken from, whatever image_size a model sees
LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # of red, green and blue, ITU-R BT.601
CYCLES = 6  # highest frequency kept, in cycles a frame: what a re-encoding leaves alone
AT_ONCE = 256  # files a batch: what a killed job loses, and what is in memory

_ROWS, _COLUMNS = np.meshgrid(fft.fftfreq(SIDE, 1 / SIDE), fft.rfftfreq(SIDE, 1 / SIDE), indexing="ij")
_RADIUS = np.hypot(_ROWS, _COLUMNS)
_KEPT = (_RADIUS <= CYCLES) & (_RADIUS >= 1) & ((_COLUMNS > 0) | (_ROWS > 0))  # half the plane says all of a real image
FREQUENCIES = np.stack([_ROWS[_KEPT], _COLUMNS[_KEPT]], axis=1)  # (frequencies, 2) down and across, cycles a frame
_WINDOW = np.outer(np.hanning(SIDE + 2)[1:-1], np.hanning(SIDE + 2)[1:-1]).astype(np.float32)

RECORD = np.dtype(
    [
        ("width", "i4"),
        ("height", "i4"),
        ("mode", "U8"),  # Pillow's: L, RGB, I;16 …
        ("spread", "f4"),  # standard deviation of the grey values, 0..255
        ("spectrum", "f2", (len(FREQUENCIES), 2)),  # real and imaginary, in grey values: 16 bits are finer than a JPEG
    ]
)
VERSION = b"3"  # of RECORD and of how it is computed: an entry of another version is not found


class Fingerprints(NamedTuple):
    """Of every file in turn: `digests` of its bytes, `records` (files,) of RECORD, and `errors` by position."""

    digests: list[bytes]
    records: np.ndarray
    errors: dict[int, str]
    depth: Depth

    @property
    def spectra(self) -> np.ndarray:
        """Coarse Fourier spectrum of the windowed grey image, complex64 (files, frequencies)."""
        return self.records["spectrum"].astype(np.float32).view(np.complex64)[..., 0]


def fingerprint_files(paths: list[str], digests: list[bytes], depth: Depth, store: Store) -> Fingerprints:
    """Decode every file that `store` does not know; an unreadable one has an empty record.

    Args:
        digests: of each file, see `defectcls.data.digests`.

    Raises:
        UserError: a file has changed since it was digested.
    """
    records, errors, prefix = np.zeros(len(paths), dtype=RECORD), {}, VERSION + depth.encode()
    for start in tqdm(range(0, len(paths), AT_ONCE), "fingerprints", unit_scale=AT_ONCE, disable=None, leave=False):
        keys = [prefix + digest for digest in digests[start : start + AT_ONCE]]
        known = {key: entry for key, entry in store.get(keys, RECORD.itemsize).items() if _finite(entry)}
        missing = [start + i for i, key in enumerate(keys) if key not in known]
        new = {}
        found = map_in_threads(lambda row: _record(paths[row], digests[row], depth), missing)
        for row, record in zip(missing, found, strict=True):
            if isinstance(record, str):
                errors[row] = record
            else:
                new[prefix + digests[row]] = record.tobytes()
        store.put(new.items())
        known |= new
        for i, key in enumerate(keys):
            if key in known:
                records[start + i] = np.frombuffer(known[key], dtype=RECORD)[0]
    return Fingerprints(digests, records, errors, depth)


def _finite(entry: bytes) -> bool:
    record = np.frombuffer(entry, RECORD)
    return bool(np.isfinite(record["spread"]).all() and np.isfinite(record["spectrum"]).all())


def grey_pixels(path: str, side: int, depth: Depth) -> np.ndarray:
    """The whole frame as luminance, float32 (side, side), 0..255.

    Raises:
        UnreadableImageError: see `defectcls.data.images.decode`.
    """
    return np.tensordot(LUMINANCE, decode(path, side, "squash", depth).astype(np.float32), 1)


def _record(path: str, digest: bytes, depth: Depth) -> np.ndarray | str:
    """RECORD of one file, or why it cannot be read; what is remembered under a digest must be of that content."""
    try:
        grey = grey_pixels(path, SIDE, depth)
    except UnreadableImageError as error:
        return str(error)
    with open(path, "rb") as file, open_image(file) as image:  # noqa: PTH123  as in images.py
        (width, height), mode = image.size, image.mode
        if room_of(image, b"") == WHITE["16"] and mode[0] != "I":
            mode += ";16"  # Pillow calls 16-bit colour RGB too
    if digest_file(path)[0] != digest:
        raise changed(path)
    windowed = (grey - (grey * _WINDOW).sum() / _WINDOW.sum()) * _WINDOW
    spectrum = fft.rfft2(windowed)[_KEPT] / _WINDOW.sum()
    return np.array((width, height, mode, grey.std(), np.stack([spectrum.real, spectrum.imag], axis=1)), dtype=RECORD)
