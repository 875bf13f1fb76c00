"""Files that other processes may read or write at the same time."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

log = logging.getLogger(__name__)


@contextmanager
def written_whole(path: Path, leads: bool = True) -> Iterator[Path]:
    """Where to write what shall stand at `path`: a kill or a full disk leaves the file before it whole.

    Args:
        leads: of several processes, the one that puts the file in place.
    """
    unfinished = path.with_name(path.name + ".part")
    try:
        yield unfinished
        if leads:
            unfinished.replace(path)
    finally:
        if leads:
            unfinished.unlink(missing_ok=True)


@contextmanager
def locked(path: Path, waiting: str) -> Iterator[None]:
    """For one process at a time; the system takes the lock from one that is killed.

    Args:
        waiting: what the log says where another one is at it.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.warning("%s: waiting for it", waiting)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()
