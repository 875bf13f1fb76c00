"""One read of every photo of a set: its digest, what it is like, and its pixels at the training size.

The store keeps all three. A later run asks the system for size and time of change of every file, and reads those that
are new or were written to; what has moved is read, and known by its content. An unreadable file is tried at every run.
"""

import contextlib
import os
import shutil
from copy import copy
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch.utils.data import get_worker_info
from tqdm import tqdm

from defectcls.data.images import DEPTHS, LEAST_SIDE, Depth, UnreadableImageError, decode, further_pages, read_file
from defectcls.data.photo import RECORD, THUMBNAIL, digest_of, read_photo
from defectcls.data.store import Rows, Store
from defectcls.data.threads import map_in_threads
from defectcls.errors import UserError
from defectcls.settings import DatasetSettings

Place = Literal["off", "ram", "disk", "device"]

CPU = torch.device("cpu")
AT_ONCE = 2**27  # bytes of pixels that are decoded before they are stored, and that go to a device together
VERSION = 5  # of what is kept and how it is computed; to be raised when `decode` comes to give other pixels


class Images:
    """The photos of a set by row, each file read once: `images[rows]` are their pixels.

    `digests` are 16 bytes of each one's content, b"" where there is no such file; `records` (images,) of RECORD, 0
    where it cannot be read, and why not is in `errors`, by row. `depth` is one for all, and no longer auto. `place` is
    where the pixels are kept.

    Args:
        paths: of the files.
        settings: `resize` and `depth` say how pixels are made of a photo, `cache` whether they are kept.
        size: side in pixels that every photo is brought to.
        device: where they may be kept.
    """

    positions: np.ndarray  # of each image among the pixels, int64 (images,)

    def __init__(self, paths: list[str], settings: DatasetSettings, size: int, device: torch.device) -> None:
        self.paths, self.size, self.resize, self.depth = paths, size, settings.resize, settings.depth
        self.store = store = Store(None if settings.cache == "off" else settings.cache_dir, settings.cache_max_gb)
        look = f"{VERSION}-{max(size, LEAST_SIDE)}"  # a large JPEG is decoded at a fraction
        self.known_files = Rows(store, f"files-{VERSION}", (16,), np.uint8)
        self.known_records = Rows(store, f"records-{look}", (), RECORD)
        self.known_thumbnails = Rows(store, f"thumbnails-{look}", (THUMBNAIL, THUMBNAIL), np.uint8)
        pixels = Rows(store, f"pixels-{VERSION}-{size}-{settings.resize}", (3, size, size), np.uint8)
        self.place = choose_place(self.nbytes, pixels.nbytes, settings, device)
        if self.place == "off":
            pixels = Rows(Store(None), "decoded", (0,), np.uint8)  # whether they can be, and nothing else
        elif self.place == "ram" or self.nbytes > store.max_bytes:
            pixels = Rows(Store(None), "pixels", (3, size, size), np.uint8)
        self.pixels: Rows | torch.Tensor = pixels
        self._batch = AT_ONCE // (3 * size**2) + 1  # images
        self._read_all(pixels)
        if self.place == "device":
            self.pixels = torch.empty((len(paths), 3, size, size), dtype=torch.uint8, device=device)
            for start in range(0, len(paths), self._batch):
                some = torch.from_numpy(pixels[self.positions[start : start + self._batch]])
                self.pixels[start : start + len(some)].copy_(some)
            self.positions = np.arange(len(paths))

    def __str__(self) -> str:
        return f"{len(self.paths)} images of {self.size} px, pixels {self.nbytes / 1e6:,.1f} MB: {self.place}"

    def __getitem__(self, rows: np.ndarray) -> torch.Tensor:
        """uint8 (rows, 3, size, size): on the device where they are kept there, else the caller's own.

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

    def told(self) -> list[str]:
        """Sentences on what is out of the ordinary in the files."""
        deep, paged = int((self.records["depth"] != "").sum()), int(self.records["paged"].sum())
        depth = f"depth: {self.depth} ({deep} of {len(self.paths)} files hold more than 8 bits)"
        return [depth] * (deep > 0) + [further_pages(paged)] * (paged > 0)

    @property
    def nbytes(self) -> int:
        """Of all pixels."""
        return len(self.paths) * 3 * self.size**2

    @property
    def spectra(self) -> np.ndarray:
        """Coarse Fourier spectrum of the windowed grey image, complex64 (images, frequencies)."""
        return self.records["spectrum"].astype(np.float32).view(np.complex64)[..., 0]

    def thumbnails(self, rows: np.ndarray) -> np.ndarray:
        """The whole frame in grey, uint8 (rows, THUMBNAIL, THUMBNAIL)."""
        return self.known_thumbnails[self.known_thumbnails.find([self.digests[row] for row in rows])]

    def keep(self, rows: np.ndarray) -> "Images":
        """The same of some rows, all of which can be read."""
        some = copy(self)
        some.paths, some.digests = ([values[row] for row in rows.tolist()] for values in (self.paths, self.digests))
        some.records, some.positions, some.errors = self.records[rows], self.positions[rows], {}
        return some

    def _read_all(self, pixels: Rows) -> None:
        self.errors: dict[int, str] = {}
        stamps = [_stamp(path) for path in self.paths]
        known = self.known_files.find(stamps)
        found = zip(self.known_files[known], known.tolist(), strict=True)
        self.digests = [digest.tobytes() if position >= 0 else b"" for digest, position in found]
        while self._look_up(pixels):  # a second time those of more than 8 bits, at the depth of all
            with pixels.lock(), tqdm(desc="reading", unit="img", disable=None, leave=False) as progress:
                progress.reset(len(rows := self._look_up(pixels)))
                for start in range(0, len(rows), self._batch):
                    self._read(rows[start : start + self._batch], stamps, pixels)
                    progress.update(self._batch)

    def _look_up(self, pixels: Rows) -> list[int]:
        """What is known of the files; and the rows of those that are to be read."""
        known, failed = self.known_records.find(self.digests), np.isin(np.arange(len(self.paths)), list(self.errors))
        self.records = self.known_records[known]
        depths = self.records["depth"].tolist()
        if self.depth == "auto" and (failed | (known >= 0)).all():
            self.depth = max(set(depths) - {""}, key=DEPTHS.index, default="8")
        keys = [_key(*of_row, self.depth) for of_row in zip(self.digests, depths, strict=True)]
        self.positions = pixels.find(keys)
        return np.flatnonzero(~failed & ((known < 0) | (self.positions < 0))).tolist()

    def _read(self, rows: list[int], stamps: list[bytes], pixels: Rows) -> None:
        """Read some files, and keep what they give."""
        read = partial(read_photo, size=self.size, resize=self.resize, depth=self.depth)
        photos = list(map_in_threads(read, [self.paths[row] for row in rows]))
        for row, photo in zip(rows, photos, strict=True):
            self.digests[row] = photo.digest
            if photo.error:
                self.errors[row] = photo.error
        there = [row for row in rows if self.digests[row]]
        self.known_files.add(
            [stamps[row] for row in there], [np.frombuffer(self.digests[row], np.uint8) for row in there]
        )
        whole = [photo for photo in photos if not photo.error]
        digests = [photo.digest for photo in whole]
        self.known_records.add(digests, [photo.record for photo in whole])
        self.known_thumbnails.add(digests, [photo.thumbnail for photo in whole])
        keys = [_key(photo.digest, str(photo.record["depth"]), self.depth) for photo in whole]
        pixels.add(keys, [photo.pixels.reshape(-1)[: pixels.row_bytes] for photo in whole])

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
    if device.type == "cuda" and needed < free_memory(device) / 2:  # the other half is for the model
        return "device"
    if needed <= min(settings.cache_max_gb * 1e9, free_disk(settings.cache_dir) + stored):
        return "disk"
    return "ram" if needed <= free_memory(CPU) / 2 else "off"


def free_memory(device: torch.device) -> float:
    """Bytes that this process could take on a device; on the CPU say that half of all is taken."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2


def free_disk(folder: Path) -> int:
    """Bytes left where a folder is, or would be made."""
    return shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.is_dir())).free


def _stamp(path: str) -> bytes:
    """Key of a file in the state that it is in, by path, size and time; none where it is not there."""
    try:
        about = os.stat(path)  # noqa: PTH116  a path object costs more than the question
    except OSError:
        return b""
    return digest_of(f"{os.path.abspath(path)}\0{about.st_size}\0{about.st_mtime_ns}".encode())  # noqa: PTH100  likewise


def _key(digest: bytes, least: str, depth: Depth) -> bytes:
    """Of the pixels of a photo at a depth, where `least` is its own."""
    return digest if least == "" or depth in (least, "auto") else digest_of(digest, depth.encode())
