"""One read of every photo of a set: its digest, what it is like, and its pixels at the training size.

The store keeps all three. A later run asks the system for size and time of change of every file, and reads those that
are new or were written to; what has moved is read, and known by its content. An unreadable file is tried at every run.
"""

import contextlib
import os
import shutil
import time
from copy import copy
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch.utils.data import get_worker_info
from tqdm import tqdm

from defectcls.data.depth import DEPTHS, Depth
from defectcls.data.images import LEAST_SIDE, UnreadableImageError, decode, further_pages, read_file
from defectcls.data.photo import RECORD, THUMBNAIL, digest_of, read_photo
from defectcls.data.store import Rows, Store
from defectcls.data.threads import map_in_threads
from defectcls.errors import UserError
from defectcls.settings import DatasetSettings

Place = Literal["off", "ram", "disk", "device"]

CPU = torch.device("cpu")
AT_ONCE = 2**27  # bytes of pixels that are decoded before they are stored, and that go to a device together
SETTLED = 2e9  # ns since it was written, before which a file may be written to again at what its clock takes for once
VERSION = 5  # of what is kept and how it is computed; to be raised when `decode` comes to give other pixels


class Images:
    """The photos of a set by row, each file read once: `images[rows]` are their pixels.

    `digests` are 16 bytes of each one's content, b"" where there is no such file; `records` (images,) of RECORD, 0
    where it cannot be read, and why not is in `errors`, by row. `depth` is one for all, and no longer auto.

    Args:
        paths: of the files.
        settings: `cache` names the place of the pixels, `resize` and `depth` how they are made of a photo.
        size: side in pixels that every photo is brought to.
        device: where they may be kept.

    Raises:
        UserError: they do not fit into `dataset.cache`, or a file is written to while it is read.
    """

    def __init__(self, paths: list[str], settings: DatasetSettings, size: int, device: torch.device) -> None:
        self.paths, self.size, self.resize, self.depth = paths, size, settings.resize, settings.depth
        self.store = store = Store(None if settings.cache == "off" else settings.cache_dir, settings.cache_max_gb)
        look = f"{VERSION}-{max(size, LEAST_SIDE)}"  # a large JPEG is decoded at a fraction
        self.known_files = store.rows(f"files-{VERSION}", (16,), np.uint8)
        self.known_records = store.rows(f"records-{look}", (), RECORD)
        self.known_thumbnails = store.rows(f"thumbnails-{look}", (THUMBNAIL, THUMBNAIL), np.uint8)
        pixels = store.rows(f"pixels-{VERSION}-{size}-{settings.resize}", (3, size, size), np.uint8)
        self.place = choose_place(self.nbytes, pixels.nbytes, settings, device)
        if self.place == "off":
            pixels = Store(None).rows("decoded", (0,), np.uint8)  # whether they can be, and nothing else
        elif self.place == "ram" or self.nbytes > store.max_bytes:
            pixels = Store(None).rows("pixels", (3, size, size), np.uint8)
        self.pixels: Rows | torch.Tensor = pixels
        self.positions = np.zeros(0, np.int64)  # of each image among them
        self._batch = AT_ONCE // (3 * size**2) + 1  # images
        self._read_all(pixels)
        if self.place == "device":
            self.pixels = torch.empty((len(paths), 3, size, size), dtype=torch.uint8, device=device)
            for start in range(0, len(paths), self._batch):
                some = torch.from_numpy(pixels[self.positions[start : start + self._batch]])
                self.pixels[start : start + len(some)].copy_(some)
            self.positions = np.arange(len(paths))

    def __str__(self) -> str:
        return f"{len(self.paths)} images of {self.size} px, {self.nbytes / 1e6:,.1f} MB: dataset.cache={self.place}"

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
        name = self.depth if self.depth == "float" else f"{self.depth} bits"
        depth = f"depth: {name} ({deep} of {len(self.paths)} files hold more than 8)"
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
        for _ in range(3):  # again those of more than 8 bits, at the depth of all; again what has changed meanwhile
            if not self._look_up(pixels):
                return
            with pixels.lock(), tqdm(desc="reading", unit="img", disable=None, leave=False) as progress:
                progress.reset(len(rows := self._look_up(pixels)))
                for start in range(0, len(rows), self._batch):
                    self._read(rows[start : start + self._batch], stamps, pixels)
                    progress.update(self._batch)
        if rows := self._look_up(pixels):
            raise changed(self.paths[rows[0]])

    def _look_up(self, pixels: Rows) -> list[int]:
        """What is known of the files; and the rows of those that are to be read."""
        known, failed = self.known_records.find(self.digests), np.isin(np.arange(len(self.paths)), list(self.errors))
        self.records = self.known_records[known]
        depths = self.records["depth"].tolist()
        if self.depth == "auto" and (failed | (known >= 0)).all():
            self.depth = max(set(depths) - {""}, key=DEPTHS.index, default="8")
        self.positions = pixels.find([_key(*of_row, self.depth) for of_row in zip(self.digests, depths, strict=True)])
        return np.flatnonzero(~failed & ((known < 0) | (self.positions < 0))).tolist()

    def _read(self, rows: list[int], stamps: list[bytes], pixels: Rows) -> None:
        """Read some files, and keep what they give."""
        read = partial(read_photo, size=self.size, resize=self.resize, depth=self.depth)
        whole = []
        for row, photo in zip(rows, map_in_threads(read, [self.paths[row] for row in rows]), strict=True):
            self.digests[row] = photo.digest
            if photo.error:
                self.errors[row] = photo.error
            else:
                whole.append(photo)
        settled = [row for row in rows if self.digests[row] and _stamp(self.paths[row]) == stamps[row] != b""]
        read_now = [np.frombuffer(self.digests[row], np.uint8) for row in settled]
        self.known_files.add([stamps[row] for row in settled], read_now)
        digests = [photo.digest for photo in whole]
        self.known_records.add(digests, [photo.record for photo in whole])
        self.known_thumbnails.add(digests, [photo.thumbnail for photo in whole])
        keys = [_key(photo.digest, str(photo.record["depth"]), self.depth) for photo in whole]
        pixels.add(keys, [photo.pixels.reshape(-1)[: pixels.row_bytes] for photo in whole])
        if self.place == "disk" and self.store.folder is None:
            self.place = "ram"
            if self.nbytes > free_memory():
                raise UserError(
                    f"nothing can be kept in dataset.cache_dir, and memory is too small for {self.nbytes / 1e9:.1f} GB "
                    "of decoded images: free some space there, or use dataset.cache=off"
                )

    def _decode(self, row: int) -> np.ndarray:
        with contextlib.suppress(UnreadableImageError):
            content = read_file(self.paths[row])
            if digest_of(content) == self.digests[row]:
                return decode(content, self.size, self.resize, self.depth)
        raise changed(self.paths[row])


def changed(path: str) -> UserError:
    """The sentence for a file that was written to while this run read it."""
    return UserError(f"{path} has changed since the start of this run: start anew once nothing writes to it")


def choose_place(needed: int, stored: int, settings: DatasetSettings, device: torch.device) -> Place:
    """What `dataset.cache` names, or for auto the fastest that the pixels fit into.

    Args:
        needed: bytes of all pixels.
        stored: bytes of such pixels, of these photos or of others, that are on the disk already.

    Raises:
        UserError: they do not fit.
    """
    on_disk = min(settings.cache_max_gb * 1e9, free_disk(settings.cache_dir) + stored)
    fits: dict[Place, bool] = {
        "device": device.type != "cpu" and needed < free_memory(device) / 2,  # the other half is for the model
        "disk": needed <= on_disk,
        "ram": needed <= free_memory() / 2,
        "off": True,
    }
    if settings.cache == "auto":
        return next(place for place, enough in fits.items() if enough)
    if not fits[settings.cache]:
        raise UserError(
            f"dataset.cache={settings.cache}: {needed / 1e9:.2g} GB of decoded images do not fit there: "
            "use dataset.cache=auto, or set dataset.cache_max_gb"
        )
    return settings.cache


def free_memory(device: torch.device = CPU) -> float:
    """Bytes that this process could take on a device; on the CPU with what the system uses for files."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    with contextlib.suppress(OSError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2  # no Linux: say half of all is taken


def free_disk(folder: Path) -> int:
    """Bytes left where a folder is, or would be made."""
    return shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.is_dir())).free


def _stamp(path: str) -> bytes:
    """Key of a file in the state that it is in, by path, size and time; none where it is not there or just written."""
    try:
        about = os.stat(path)  # noqa: PTH116  a path object costs more than the question
    except OSError:
        return b""
    if time.time_ns() - about.st_mtime_ns < SETTLED:
        return b""
    return digest_of(f"{os.path.abspath(path)}\0{about.st_size}\0{about.st_mtime_ns}".encode())  # noqa: PTH100  likewise


def _key(digest: bytes, least: str, depth: Depth) -> bytes:
    """Of the pixels of a photo at a depth, where `least` is its own."""
    return digest if least == "" or depth in (least, "auto") else digest_of(digest, depth.encode())
