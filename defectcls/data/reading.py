"""One read of every photo of a set: its digest, what it is like, and its pixels at the training size.

The store keeps all three. A later run asks the system for size and time of change of every file, and reads those that
are new or were written to; what has moved is read, and known by its content. An unreadable file is tried at every run.
"""

import contextlib
import math
import os
import shutil
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch.utils.data import get_worker_info
from tqdm import tqdm

from defectcls.data.duplicates import HALF, THUMBNAIL, fingerprint
from defectcls.data.images import DEPTHS, UnreadableImageError, decode, framed, open_photo, read_file
from defectcls.data.shards import file_of
from defectcls.data.store import Rows, Store
from defectcls.data.threads import map_in_threads
from defectcls.errors import UserError
from defectcls.files import digest_of
from defectcls.settings import DatasetSettings, Frame

Place = Literal["off", "ram", "disk", "device"]

AT_ONCE = 2**27  # bytes, of pixels and thumbnails, that are decoded before they are stored or go to a device
VERSION = 10  # of what is kept and how it is computed; to be raised when `decode` comes to give other pixels

RECORD = np.dtype(
    [
        ("side", "i4"),  # 8, 16, … up to FINEST pixels, that it is compared at
        ("paged", "?"),  # it has further pages
        ("file", "f4", 2),  # see `Opened`
        ("depth", "U5"),  # the least of DEPTHS that holds its values; "" of 8 bits
        ("spread", "f4"),  # standard deviation of the grey values, 0..255, at this depth
    ]
)


class Photo(NamedTuple):
    """What one read of a file gives."""

    digest: bytes
    record: np.ndarray
    spectrum: np.ndarray  # coarse Fourier spectrum of the windowed grey image, in grey values
    thumbnail: np.ndarray
    pixels: np.ndarray


class Images:
    """The photos of a set that can be read, each file once, in the order of `paths`: `images[rows]` are their pixels.

    `digests` are 16 bytes of each one's content, and `records` (images,) of RECORD; why one cannot be read is in
    `errors`, by its place among all files. `depth` is one for all, and no longer auto; `place` is where the pixels are
    kept.

    Args:
        paths: of all files.
        settings: `resize` and `depth` say how pixels are made of a photo, `cache` whether they are kept.
        size: height and width in pixels that every photo is brought to.
        device: where they may be kept.
    """

    records: np.ndarray
    positions: np.ndarray  # of each image among the pixels, int64 (images,)
    errors: dict[int, str]
    digests: list[bytes]

    def __init__(self, paths: list[str], settings: DatasetSettings, size: Frame, device: torch.device) -> None:
        self.paths, self.size, self.resize, self.depth = paths, size, settings.resize, settings.depth
        self.store = store = Store(None if settings.cache == "off" else settings.cache_dir, settings.cache_max_gb)
        look = f"{VERSION}-{max(*size, THUMBNAIL)}"  # a large JPEG is decoded at a fraction
        self.known_files = Rows(store, f"files-{VERSION}", (), "V16")
        self.known_records = Rows(store, f"records-{look}", (), RECORD)
        self.known_spectra = Rows(store, f"spectra-{look}", HALF.shape, np.complex64)
        self.known_thumbnails = Rows(store, f"thumbnails-{look}", (THUMBNAIL, THUMBNAIL), np.uint8)
        self.twins = "near_identical" in settings.split.together  # of what they are found by 17 kB a photo are kept
        shape = (3, *size)
        pixels = Rows(store, f"pixels-{VERSION}-{size[0]}-{size[1]}-{settings.resize}", shape, np.uint8)
        self.nbytes = len(paths) * math.prod(shape)  # of all pixels
        self.place = choose_place(self.nbytes, pixels.nbytes, settings, device)
        if self.place == "off":
            pixels = Rows(Store(None), "decoded", (0,), np.uint8)  # whether they can be, and nothing else
        elif self.place == "ram" or self.nbytes > store.max_bytes:
            pixels = Rows(Store(None), "pixels", shape, np.uint8)
        self.pixels: Rows | torch.Tensor = pixels
        self._rows = pixels
        self._batch = AT_ONCE // (math.prod(shape) + THUMBNAIL**2) + 1  # images
        self._read_all()
        if self.place == "device":
            self.pixels = torch.empty((len(self.paths), *shape), dtype=torch.uint8, device=device)
            for start in range(0, len(self.paths), self._batch):
                some = torch.from_numpy(pixels[self.positions[start : start + self._batch]])
                self.pixels[start : start + len(some)].copy_(some)
            self.positions = np.arange(len(self.paths))

    def __getitem__(self, rows: np.ndarray) -> torch.Tensor:
        """uint8 (rows, 3, height, width): on the device where they are kept there, else the caller's own.

        Raises:
            UserError: an image that is decoded now cannot be, or has changed.
        """
        if isinstance(self.pixels, torch.Tensor):
            return self.pixels[torch.from_numpy(self.positions[rows]).to(self.pixels.device, non_blocking=True)]
        if self.place != "off":
            return torch.from_numpy(self.pixels[self.positions[rows]])
        alone = get_worker_info() is None  # else there are as many processes as the user wants
        decoded = (map_in_threads if alone else map)(self._decode, rows.tolist())
        return torch.from_numpy(np.stack(list(decoded)))

    def thumbnails(self, rows: np.ndarray) -> np.ndarray:
        """The whole frame in grey, uint8 (rows, THUMBNAIL, THUMBNAIL)."""
        return self.known_thumbnails[self.known_thumbnails.find([self.digests[row] for row in rows])]

    def spectra(self, rows: np.ndarray) -> np.ndarray:
        """What twins are sought by first, complex64 (rows, *HALF.shape); photos are read anew where it was not kept."""
        if not self.twins:
            errors, digests, positions, self.twins = self.errors, self.digests, self.positions, True
            self._read_all()
            if self.digests != digests:
                raise UserError("some photos have changed since the start of this run: start anew")
            self.errors, self.positions = errors, positions
        return self.known_spectra[self.known_spectra.find([self.digests[row] for row in rows])]

    def _read_all(self) -> None:
        pixels = self._rows
        self.errors = {}
        self.digests = [b""] * len(self.paths)
        stamps = [_stamp(path) for path in self.paths]
        while self._look_up(stamps, pixels):  # a second time those of more than 8 bits, at the depth of all
            with pixels.lock():
                for known in (self.known_files, self.known_records, self.known_spectra, self.known_thumbnails):
                    known.take_up()
                rows = self._look_up(stamps, pixels)
                for start in tqdm(range(0, len(rows), self._batch), "reading", disable=None, leave=False):
                    self._read(rows[start : start + self._batch], stamps, pixels)
        readable = np.delete(np.arange(len(self.paths)), list(self.errors))
        self.paths, self.digests = [self.paths[row] for row in readable], [self.digests[row] for row in readable]
        self.records, self.positions = self.records[readable], self.positions[readable]

    def _look_up(self, stamps: list[bytes], pixels: Rows) -> list[int]:
        """What is known of the files; and the rows of those that are to be read."""
        known = self.known_files.find(stamps)
        before = zip(self.digests, self.known_files[known].tolist(), known.tolist(), strict=True)
        self.digests = [own or (digest if at >= 0 else b"") for own, digest, at in before]
        known = self.known_records.find(self.digests)
        failed = np.isin(np.arange(len(self.paths)), list(self.errors))
        self.records = self.known_records[known]
        depths = self.records["depth"].tolist()
        if self.depth == "auto" and (failed | (known >= 0)).all():
            self.depth = max(set(depths) - {""}, key=DEPTHS.index, default="8")
        keys = [_key(*of_row, self.depth) for of_row in zip(self.digests, depths, strict=True)]
        self.positions = pixels.find(keys)
        lacking = np.minimum(known, self.positions) < 0
        for rows in (self.known_spectra, self.known_thumbnails) if self.twins else ():
            lacking |= rows.find(self.digests) < 0
        return np.flatnonzero(~failed & lacking).tolist()

    def _read(self, rows: list[int], stamps: list[bytes], pixels: Rows) -> None:
        """Read some files, and keep what they give."""
        whole: dict[int, Photo] = {}
        for row, photo in zip(rows, map_in_threads(self._read_photo, rows), strict=True):
            if isinstance(photo, Photo):
                whole[row], self.digests[row] = photo, photo.digest
            else:
                self.errors[row] = str(photo)
        digests = [photo.digest for photo in whole.values()]
        self.known_files.add([stamps[row] for row in whole], digests)
        self.known_records.add(digests, [photo.record for photo in whole.values()])
        if self.twins:
            self.known_spectra.add(digests, [photo.spectrum for photo in whole.values()])
            self.known_thumbnails.add(digests, [photo.thumbnail for photo in whole.values()])
        keys = [_key(photo.digest, str(photo.record["depth"]), self.depth) for photo in whole.values()]
        pixels.add(keys, [photo.pixels.reshape(-1)[: pixels.row_bytes] for photo in whole.values()])

    def _read_photo(self, row: int) -> Photo | UnreadableImageError:
        try:
            content = read_file(self.paths[row])
            opened = open_photo(content, max(self.size))
            own = opened.depth or self.depth
            upright = opened.pixels(own)
            pixels = upright if self.depth in ("auto", own) else opened.pixels(self.depth)
            pixels = framed(pixels, self.size, self.resize)
        except UnreadableImageError as error:
            return error
        side, grey, spectrum = fingerprint(upright, min(opened.shape))
        record = np.array((side, opened.paged, opened.file, opened.depth, grey.std()), RECORD)
        return Photo(digest_of(content), record, spectrum, grey.round().astype(np.uint8), pixels)

    def _decode(self, row: int) -> np.ndarray:
        with contextlib.suppress(UnreadableImageError):
            content = read_file(self.paths[row])
            if digest_of(content) == self.digests[row]:
                return decode(content, self.size, self.resize, self.depth)
        raise UserError(f"{self.paths[row]} has changed since the start of this run: start anew")


def choose_place(needed: int, stored: int, settings: DatasetSettings, device: torch.device) -> Place:
    """The fastest that the pixels fit into, unless `dataset.cache` is off.

    Args:
        needed: bytes of all pixels.
        stored: bytes of such pixels, of these photos or of others, that are on the disk already.
    """
    if settings.cache == "off":
        return "off"
    if device.type == "cuda" and needed < torch.cuda.mem_get_info(device)[0] / 2:  # the other half is for the model
        return "device"
    folder = settings.cache_dir
    free = shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.is_dir())).free
    if needed <= min(settings.cache_max_gb * 1e9, free + stored):
        return "disk"
    return "ram" if needed <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 4 else "off"


def _stamp(path: str) -> bytes:
    """Key of a file in the state that it is in, by path, size and time; none where it is not there."""
    with contextlib.suppress(OSError):
        about = os.stat(file_of(path))  # noqa: PTH116  a path object costs more than the question
        return digest_of(f"{os.path.abspath(path)}\0{about.st_size}\0{about.st_mtime_ns}".encode())  # noqa: PTH100
    return b""


def _key(digest: bytes, least: str, depth: str) -> bytes:
    """Of the pixels of a photo at a depth, where `least` is its own."""
    return digest if least == "" or depth in (least, "auto") else digest_of(digest, depth.encode())
