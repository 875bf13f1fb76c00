"""Watch a folder: each version of a photo is predicted once, also across restarts, since the output remembers them."""

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from defectcls.data.samples import images_in, writable
from defectcls.deployment.output import appending
from defectcls.errors import UserError
from defectcls.files import lock_at_once

if TYPE_CHECKING:
    from defectcls.deployment.predictor import Predictor
    from defectcls.verb_settings import PredictSettings

log = logging.getLogger(__name__)

MODIFIED = "modified"  # column of the output: when the file was last changed, UTC, to the nanosecond
MODEL = "model"  # column: digest of the checkpoint


class State(NamedTuple):
    """What tells a version of a file from the next, and a whole file from one that is still being written."""

    modified: int  # nanoseconds since 1970
    bytes: int

    def __str__(self) -> str:
        return f"{np.datetime64(self.modified, 'ns')}Z"


def watch(predictor: "Predictor", folder: Path, output: Path, settings: "PredictSettings") -> Iterator[pd.DataFrame]:
    """Append the predictions of the photos in a folder, and of those that come, to `output`; yield them too.

    Ends with Ctrl-C or SIGTERM. To look, instead of being told by the system, works on network drives too; a look at
    10,000 files takes 0.1 s. A slow copy may rest for longer than it takes to look twice: hence `watch_patience`.

    Raises:
        UserError: the output has other columns or is of another model, or another process appends to it.
    """
    columns = ["path", MODIFIED, MODEL, *predictor.columns[1:]]
    unreadable: dict[tuple[str, str], float] = {}  # since when
    with ExitStack() as held:
        lock = lock_at_once(Path(f"{output}.lock"))
        if lock is None:
            raise UserError(f"another process watches with output={output}: stop it, or give another output")
        held.callback(lock.release)
        stop = held.enter_context(_until_stopped())
        if settings.overwrite:
            output.unlink(missing_ok=True)
        done = remembered(output, columns, predictor.digest)
        append = held.enter_context(appending(output))
        before: dict[str, State] | None = {}
        while not stop.is_set():
            now = look(folder)
            if now is None and before is not None:
                log.warning("%s is not there, or cannot be read: waiting for it", folder)
            names, before = due(before or {}, now or {}, done), now
            for rows in predictor.stream((f"{folder}/{name}" for name in names), settings.batch_size):
                seen = {name: before[name] for name in names[: len(rows)]}  # type: ignore[index]
                del names[: len(rows)]
                rows = rows.assign(path=list(map(writable, seen)), modified=list(map(str, seen.values())))
                versions = list(zip(rows["path"], rows[MODIFIED], strict=True))
                since = [unreadable.setdefault(version, time.monotonic()) for version in versions]
                # What changed or went before it could be read is due again when it comes back.
                still = [state_of(f"{folder}/{name}") == state for name, state in seen.items()]
                given_up = np.array(still) & (time.monotonic() - np.array(since) >= settings.watch_patience)
                rows = rows.assign(model=predictor.digest)[columns][(rows["error"] == "") | given_up]
                append(rows)
                for version in zip(rows["path"], rows[MODIFIED], strict=True):
                    done.add(version)
                    del unreadable[version]
                yield rows
                if stop.is_set():
                    break
            stop.wait(settings.watch_seconds)


def look(folder: Path) -> dict[str, State] | None:
    """The photos in a folder, at any depth, by their names relative to it; None where there is no folder now."""
    if not os.path.isdir(folder):  # noqa: PTH112  pathlib's raises what a lost network drive raises
        return None
    try:
        names = images_in(folder, "")
    except UserError:  # a network drive that is being lost
        return None
    states = ((name, state_of(f"{folder}/{name}")) for name in names)
    return {name: state for name, state in states if state is not None}


def state_of(path: str) -> State | None:
    """None where there is no such file (any more)."""
    try:
        found = os.stat(path)  # noqa: PTH116  a path object for each of many files takes as long
    except OSError:
        return None
    return State(found.st_mtime_ns, found.st_size)


def due(before: dict[str, State], now: dict[str, State], done: set[tuple[str, str]]) -> list[str]:
    """Names of the photos that are the same as before and not done, those first that were changed first.

    Args:
        done: names as they are written, and MODIFIED.
    """
    names = [name for name, state in now.items() if before.get(name) == state]
    names = [name for name in names if (writable(name), str(now[name])) not in done]
    return sorted(names, key=lambda name: (now[name], name))


def remembered(output: Path, columns: list[str], model: str) -> set[tuple[str, str]]:
    """The versions that an output tells of, as of `due`; its last row is cut off where a kill has left it torn.

    Raises:
        UserError: the output is no such table, or another model's.
    """
    if not output.is_file() or not output.stat().st_size:
        return set()
    try:
        found = list(pd.read_csv(output, nrows=0))
    except ValueError:  # no UTF-8, or no columns
        found = []
    if found != columns:  # before a foreign file loses its last row
        raise UserError(
            f"output={output} is no table that watches with this model: its columns are not {', '.join(columns)}; "
            "give another output, or overwrite=true"
        )
    whole = length = quotes = 0
    with output.open("r+b") as file:
        for line in file:
            length += len(line)
            quotes += line.count(b'"')  # a name within quotes may hold the end of a line
            if line.endswith(b"\n") and quotes % 2 == 0:
                whole = length
        file.truncate(whole)
    rows = pd.read_csv(output, usecols=["path", MODIFIED, MODEL], dtype=str, keep_default_na=False)
    for other in rows[MODEL][rows[MODEL] != model][:1]:
        raise UserError(
            f"output={output} was written by another checkpoint, of digest {other}, and this one's is {model}: give "
            "another output, or overwrite=true"
        )
    return set(zip(rows["path"], rows[MODIFIED], strict=True))


@contextmanager
def _until_stopped() -> Iterator[threading.Event]:
    """Set by the first Ctrl-C or SIGTERM, so that what is at work comes to its end; the second one kills."""
    stop = threading.Event()

    def end(*_: object) -> None:
        stop.set()
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        end()
