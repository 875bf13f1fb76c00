"""What is remembered of an image file, so that a set is read once: its digest, its shape, its coarse spectrum.

Kept in one small sqlite file by content, not by name: a moved or copied image is known again, an edited one is not.
"""

import hashlib
import logging
import os
import sqlite3
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from scipy import fft
from tqdm import tqdm

from defectcls.data.images import UnreadableImageError, decode

log = logging.getLogger(__name__)

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
VERSION = b"1"  # of RECORD and of how it is computed: an entry of another version is not found


class Fingerprints(NamedTuple):
    """Of every file in turn: `digests` of its bytes, `records` (files,) of RECORD, and `errors` by position."""

    digests: list[bytes]
    records: np.ndarray
    errors: dict[int, str]

    @property
    def spectra(self) -> np.ndarray:
        """Coarse Fourier spectrum of the windowed grey image, complex64 (files, frequencies)."""
        return self.records["spectrum"].astype(np.float32).view(np.complex64)[..., 0]


class Cache:
    """Bytes by key in `folder`, shared by concurrent jobs; a folder that cannot be written is a warning.

    sqlite rolls back what a killed job had begun.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._open(folder / "images.sqlite")
        except (OSError, sqlite3.Error) as error:
            self._go_without(error)

    def get(self, keys: list[bytes]) -> dict[bytes, bytes]:
        """The entries of those keys that are known."""
        found: dict[bytes, bytes] = {}
        for start in range(0, len(keys), 500):  # sqlite takes 999 values a statement
            some = keys[start : start + 500]
            marks = ",".join("?" * len(some))
            found.update(self.connection.execute(f"SELECT key, value FROM entries WHERE key IN ({marks})", some))
        return found

    def put(self, entries: Iterable[tuple[bytes, bytes]]) -> None:
        """Remember entries, all or none of them."""
        try:
            with self.connection:
                self.connection.executemany("INSERT OR REPLACE INTO entries VALUES (?, ?)", entries)
        except sqlite3.Error as error:
            self._go_without(error)

    def _open(self, file: Path | str) -> None:
        self.connection = sqlite3.connect(file, timeout=60)
        self.connection.execute("PRAGMA journal_mode=WAL")  # readers do not wait for a writer
        self.connection.execute("PRAGMA synchronous=NORMAL")  # a power cut may cost the last entries, not the file
        with self.connection:
            self.connection.execute("CREATE TABLE IF NOT EXISTS entries (key BLOB PRIMARY KEY, value BLOB)")

    def _go_without(self, error: Exception) -> None:
        log.warning("dataset.cache_dir=%s: nothing is kept there for the next run: %s", self.folder, error)
        self._open(":memory:")


def fingerprint_files(paths: list[Path], cache: Cache) -> Fingerprints:
    """Read every file once, and decode those that `cache` does not know; an unreadable one has an empty record."""
    records, errors, digests = np.zeros(len(paths), dtype=RECORD), {}, []
    progress = tqdm(desc="fingerprints", total=len(paths), unit="img", disable=None, leave=False)
    with ThreadPoolExecutor(os.cpu_count()) as pool, progress:
        for start in range(0, len(paths), AT_ONCE):
            some = paths[start : start + AT_ONCE]
            keys = list(pool.map(_digest, some))
            known = cache.get([VERSION + key for key in keys])
            missing = [i for i, key in enumerate(keys) if VERSION + key not in known]
            new = {}
            for i, record in zip(missing, pool.map(_record, [some[i] for i in missing]), strict=True):
                if isinstance(record, str):
                    errors[start + i] = record
                else:
                    new[VERSION + keys[i]] = record.tobytes()
            cache.put(new.items())
            known |= new
            for i, key in enumerate(keys):
                if VERSION + key in known:
                    records[start + i] = np.frombuffer(known[VERSION + key], dtype=RECORD)[0]
            digests += keys
            progress.update(len(some))
    return Fingerprints(digests, records, errors)


def grey_pixels(path: Path, side: int) -> np.ndarray:
    """The whole frame as luminance, float32 (side, side), 0..255.

    Raises:
        UnreadableImageError: see `defectcls.data.images.decode`.
    """
    return np.tensordot(LUMINANCE, decode(path, side, "squash").astype(np.float32), 1)


def _digest(path: Path) -> bytes:
    """16 bytes; none of a file that cannot be opened, which `decode` then gives the reason of."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()
    except OSError:
        return b""


def _record(path: Path) -> np.ndarray | str:
    """RECORD of one file, or why it cannot be read."""
    try:
        grey = grey_pixels(path, SIDE)
    except UnreadableImageError as error:
        return str(error)
    with Image.open(path) as image:
        (width, height), mode = image.size, image.mode
    windowed = (grey - (grey * _WINDOW).sum() / _WINDOW.sum()) * _WINDOW
    spectrum = fft.rfft2(windowed)[_KEPT] / _WINDOW.sum()
    return np.array((width, height, mode, grey.std(), np.stack([spectrum.real, spectrum.imag], axis=1)), dtype=RECORD)
