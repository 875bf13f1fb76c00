"""The content of every file as 16 bytes, read once: what copies, fingerprints and cached pixels are known by."""

import hashlib
import os
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from defectcls.data.threads import map_in_threads
from defectcls.errors import UserError

BLOCK = 1 << 24  # bytes read at once


class Digests(NamedTuple):
    """Of every file: `digests`, 16 bytes, or none where it cannot be read, and `stamps`, see `refuse_changed`."""

    digests: list[bytes]
    stamps: np.ndarray


def digest_files(paths: list[str]) -> Digests:
    """Read every file once; 10 us for a small one."""
    digests, stamps = [], np.zeros((len(paths), 2), dtype=np.int64)
    found = map_in_threads(digest_file, paths, together=64)
    for row, (digest, stamp) in enumerate(tqdm(found, "digests", len(paths), unit="img", disable=None, leave=False)):
        digests.append(digest)
        stamps[row] = stamp
    return Digests(digests, stamps)


def refuse_changed(path: str, stamp: np.ndarray) -> None:
    """To be asked after a file was decoded, so that its pixels are those of its digest.

    Args:
        stamp: size in bytes and time of the last change in ns, when it was digested; to digest it again would double
            the cost of a small JPEG's reading.

    Raises:
        UserError: the file has changed or gone since.
    """
    try:
        now = os.stat(path)  # noqa: PTH116  a path object costs more than the question
    except OSError as error:
        raise UserError(f"{path} was there at the start of this run and is not any more: {error.strerror}") from None
    if (now.st_size, now.st_mtime_ns) != tuple(stamp.tolist()):
        raise changed(path)


def changed(path: str) -> UserError:
    """The sentence for a file that was written to while this run read it."""
    return UserError(f"{path} has changed since the start of this run: start anew once nothing writes to it")


def digest_file(path: str) -> tuple[bytes, tuple[int, int]]:
    """Digest and stamp; a file that cannot be read has none, and `decode` then gives the reason."""
    state = hashlib.blake2b(digest_size=16)
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError:
        return b"", (0, 0)
    try:
        about = os.fstat(file)
        while block := os.read(file, BLOCK):
            state.update(block)
    except OSError:  # a folder
        return b"", (0, 0)
    finally:
        os.close(file)
    return state.digest(), (about.st_size, about.st_mtime_ns)
