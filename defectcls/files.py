"""Files of a run, and those that other processes may read or write at the same time."""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from defectcls.errors import UserError

log = logging.getLogger(__name__)

BEST, LAST = Path("checkpoints", "best.ckpt"), Path("checkpoints", "last.ckpt")  # in the run folder


def refuse_output(output: Path, suffix: str, overwrite: bool) -> None:
    """To be asked before anything is computed.

    Raises:
        UserError: an output of another suffix, or that is there already.
    """
    if output.suffix.lower() != suffix:
        raise UserError(f"output={output} should end in {suffix}")
    if output.exists() and not overwrite:
        raise UserError(f"output={output} exists: give another name, or overwrite=true")
    output.parent.mkdir(parents=True, exist_ok=True)


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


def copied_whole(source: Path, path: Path) -> None:
    """Put a copy at `path`, on the disk when this returns: a kill leaves the file before it, or the copy."""
    with written_whole(path) as unfinished:
        shutil.copyfile(source, unfinished)
        with unfinished.open("rb+") as copied:
            os.fsync(copied)


def read_json(path: Path, remedy: str, keys: Iterable[str] = ()) -> dict[str, Any]:
    """What this tool wrote there.

    Raises:
        UserError: the file is cut off, or of another tool, which lacks `keys`; what to do is `remedy`.
    """
    try:
        content = json.loads(path.read_bytes())
    except ValueError:
        content = None
    if not isinstance(content, dict) or any(key not in content for key in keys):
        raise UserError(f"{path} is damaged: {remedy}")
    return content


@contextmanager
def locked(path: Path, held: str, wait: bool = True) -> Iterator[None]:
    """For one process at a time; the system takes the lock from one that is killed.

    Args:
        held: what the log says where another process is at it, or the error.

    Raises:
        UserError: another process is at it, and this one does not `wait`.
    """
    lock = FileLock(path)
    try:
        acquired = lock.acquire(timeout=0)
    except Timeout:
        if not wait:
            raise UserError(held) from None
        log.warning("%s: waiting for it", held)
        acquired = lock.acquire()
    with acquired:
        yield


def digest_of(*parts: bytes) -> bytes:
    """16 bytes that stand for a content."""
    return hashlib.blake2b(b"".join(parts), digest_size=16).digest()


def checkpoint_file(path: Path) -> Path:
    """The file itself, or the best checkpoint of a run folder.

    Raises:
        UserError: neither is there.
    """
    file = path if path.is_file() else path / BEST
    if not file.is_file():
        raise UserError(f"{path} is no .ckpt or .onnx file and no run folder with {BEST}")
    return file
