"""Decoded images in one file, that concurrent jobs, the jobs of a sweep and the folds of a cross-validation share.

    <dataset.cache_dir>/pixels/
        lock                  held by the job that decodes; the next one waits, and finds the file it wanted
        <name>.pixels         the readable images one after the other, uint8 (images, 3, size, size); a sum of each; why
                              the others are unreadable, as JSON; FOOTER
        <name>.part           being written, or left by a killed job: whoever holds the lock may delete it

The name is a digest of all contents in their order, the size, the way of resizing and the depth, so a set that has
changed in any way has another file. One lock for all sets: two jobs that decode would only share the cores.
"""

import contextlib
import errno
import hashlib
import json
import logging
import os
import struct
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import numpy as np
import pandas as pd
from tqdm import tqdm

from defectcls.data.digests import Digests, refuse_changed
from defectcls.data.images import Depth, Resize, UnreadableImageError, decode
from defectcls.data.threads import map_in_threads
from defectcls.files import locked

log = logging.getLogger(__name__)

FOOTER = struct.Struct("<QI20s")  # bytes of JSON, sum of all that follows the pixels, and VERSION
TOGETHER = 8  # images a task
LANES = 1024  # bytes side by side in a checksum
VERSION = b"defectcls pixels 2\n\n"  # raise it when `decode` comes to give other pixels


class Files(NamedTuple):
    """Files that are to be decoded: `names` relative to `root`, (files,), in pandas' compact form."""

    root: Path
    names: pd.api.extensions.ExtensionArray
    known: Digests
    size: int
    resize: Resize
    depth: Depth

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one image."""
        return 3, self.size, self.size

    @property
    def bytes(self) -> int:
        """Of all images, decoded."""
        return len(self.names) * 3 * self.size**2

    def path(self, row: int) -> str:
        return f"{self.root}/{self.names[row]}"

    def keep(self, rows: np.ndarray) -> "Files":
        """The same with some of the files."""
        digests = [self.known.digests[row] for row in rows.tolist()]
        return self._replace(names=self.names[rows], known=Digests(digests, self.known.stamps[rows]))

    def decode(self, row: int) -> np.ndarray:
        """Pixels uint8 (3, size, size).

        Raises:
            UnreadableImageError: see `defectcls.data.images.decode`.
        """
        return decode(self.path(row), self.size, self.resize, self.depth)

    def refuse_changed(self, rows: Iterable[int]) -> None:
        """To be asked when they have been decoded: whether that was what was digested.

        Raises:
            UserError: a file has changed or gone since.
        """
        for row in rows:
            if self.known.digests[row]:
                refuse_changed(self.path(row), self.known.stamps[row])


class Decoded(NamedTuple):
    """Pixels uint8 (readable files, 3, size, size), and why the others cannot be read, by position."""

    pixels: np.ndarray
    unreadable: dict[int, str]


def decode_files(files: Files, take: Callable[[int, np.ndarray], object]) -> dict[int, str]:
    """Decode all on all cores, and there let `take` have the position of the first of some images, and their pixels.

    A few at a time, since threads lose more by taking turns than by the work that is left to do here.

    Returns:
        Why some cannot be read, by position; their pixels are all 0.

    Raises:
        UserError: a file has changed or gone since it was digested.
    """
    count = len(files.names)

    def attempt(first: int) -> dict[int, str]:
        unreadable = {}
        pixels = np.zeros((min(TOGETHER, count - first), *files.shape), np.uint8)
        for number in range(len(pixels)):
            try:
                pixels[number] = files.decode(first + number)
            except UnreadableImageError as error:
                unreadable[first + number] = str(error)
        take(first, pixels)
        return unreadable

    unreadable: dict[int, str] = {}
    with tqdm(desc="reading", total=count, unit="img", disable=None, leave=False) as progress:
        for found in map_in_threads(attempt, range(0, count, TOGETHER), together=1):
            unreadable |= found
            progress.update(TOGETHER)
    files.refuse_changed(range(count))
    return unreadable


def checksums(pixels: np.ndarray) -> np.ndarray:
    """Of each image 32 bits that tell a changed byte or a lost block; a CRC of all pixels takes 4 % of a first pass."""
    flat = pixels.reshape(len(pixels), -1)
    whole = flat.shape[1] // LANES * LANES
    lanes = flat[:, :whole].reshape(len(flat), -1, LANES).view(np.uint64).sum(axis=1)  # modulo 2^64
    return np.array(
        [zlib.crc32(rest, zlib.crc32(lane)) for lane, rest in zip(lanes, flat[:, whole:], strict=True)], "<u4"
    )


def pixel_path(folder: Path, files: Files) -> Path:
    """Where the decoded images of these files are kept."""
    name = hashlib.blake2b(VERSION + json.dumps([files.size, files.resize, files.depth]).encode(), digest_size=16)
    name.update(b"".join(digest.ljust(16, b"\0") for digest in files.known.digests))
    return folder / f"{name.hexdigest()}.pixels"


def open_pixels(folder: Path, files: Files, max_gb: float) -> Decoded | None:
    """A read-only map of the decoded images, decoded now if they are not there; None, with a warning, without a place.

    Others are deleted, those first that were used longest ago, until all take no more than `max_gb`.
    """
    path = pixel_path(folder, files)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError, ValueError):
            return _read(path, files)
        with locked(folder / "lock", f"another job decodes images into {folder}"):
            try:
                return _read(path, files)  # of the job that held the lock
            except FileNotFoundError:
                pass
            except ValueError as error:
                log.warning("%s is damaged and made anew: %s", path, error)
            _make_room(folder, path, files.bytes, max_gb)
            _write(path, files)
            return _read(path, files, checked=False)
    except (OSError, NotImplementedError) as error:  # full, not writable; a file system that knows no locks
        log.warning("dataset.cache_dir=%s: decoded images are not kept there: %s", folder.parent, error)
        return None


def _write(path: Path, files: Files) -> None:
    """By plain writes, which a full disk answers with an error; a killed job leaves the part behind."""
    part, sums = path.with_suffix(".part"), np.zeros(len(files.names), dtype="<u4")
    length, writing = int(np.prod(files.shape)), Lock()
    try:
        with part.open("w+b") as file:
            _reserve(file.fileno(), files.bytes)

            def take(first: int, pixels: np.ndarray) -> None:
                sums[first : first + len(pixels)] = checksums(pixels)
                with writing:
                    file.seek(first * length)
                    file.write(pixels.data)

            unreadable = decode_files(files, take)
            readable = np.delete(np.arange(len(files.names)), list(unreadable))
            for place, row in enumerate(readable.tolist() if unreadable else ()):  # closes the gaps
                file.seek(row * length)
                pixels = file.read(length)
                file.seek(place * length)
                file.write(pixels)
            reasons = json.dumps(unreadable).encode()  # keys become text
            tail = sums[readable].tobytes() + reasons
            file.seek(len(readable) * length)
            file.write(tail + FOOTER.pack(len(reasons), zlib.crc32(tail), VERSION))
            file.truncate()
        part.replace(path)  # not synchronised to the disk: what a power cut loses, the sums tell
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _reserve(file: int, length: int) -> None:
    """So that a full disk is known before the first image is decoded; writing then takes 0.7 of the time."""
    try:
        os.posix_fallocate(file, 0, max(1, length))
    except (AttributeError, OSError) as error:  # macOS has no such call, some file systems do not know it
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise


def _read(path: Path, files: Files, checked: bool = True) -> Decoded:
    """The file as it was written.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is damaged, or of other files.
    """
    image_bytes = int(np.prod(files.shape))
    with path.open("rb") as file:
        length = file.seek(0, os.SEEK_END)
        file.seek(max(0, length - FOOTER.size))
        footer = file.read()
        if len(footer) < FOOTER.size or not footer.endswith(VERSION):
            raise ValueError("its end is missing")
        json_bytes, tail_sum, _ = FOOTER.unpack(footer)
        images, rest = divmod(length - FOOTER.size - json_bytes, image_bytes + 4)
        file.seek(max(0, images * image_bytes))
        tail = file.read()[: -FOOTER.size]
    if rest or images < 0 or zlib.crc32(tail) != tail_sum:
        raise ValueError("its end is not what was written")
    sums = np.frombuffer(tail[: 4 * images], dtype="<u4")
    unreadable = {int(row): reason for row, reason in json.loads(tail[4 * images :]).items()}
    if images + len(unreadable) != len(files.names):
        raise ValueError(f"it is of {images + len(unreadable)} images and not of {len(files.names)}")
    shape = (images, *files.shape)
    pixels = np.asarray(np.memmap(path, np.uint8, "r", 0, shape)) if images else np.zeros(shape, np.uint8)
    if checked:
        found = map_in_threads(lambda row: checksums(pixels[row : row + TOGETHER]), range(0, images, TOGETHER))
        if wrong := int((np.concatenate([sums[:0], *found]) != sums).sum()):
            raise ValueError(f"{wrong} of {images} images are not what was written")
    with contextlib.suppress(OSError):  # of another user
        os.utime(path)  # used now
    return Decoded(pixels, unreadable)


def _make_room(folder: Path, path: Path, needed: int, max_gb: float) -> None:
    """Delete what killed jobs have left, the file that is made anew, and others, until `needed` bytes more fit."""
    for useless in (path, *folder.glob("*.part")):
        useless.unlink(missing_ok=True)
    kept = sorted(folder.glob("*.pixels"), key=lambda file: file.stat().st_mtime)
    taken = sum(file.stat().st_size for file in kept)
    for file in kept:
        if taken + needed <= max_gb * 1e9:
            break
        taken -= file.stat().st_size
        file.unlink()  # a job that has it mapped keeps it until it ends
