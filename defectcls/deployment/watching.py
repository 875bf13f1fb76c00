"""Watch a folder: a model judges each version of a photo once, also across restarts, since the output remembers."""

import csv
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from defectcls.data.samples import images_in, writable
from defectcls.deployment.output import append
from defectcls.errors import UserError
from defectcls.files import locked

if TYPE_CHECKING:
    from defectcls.deployment.predictor import Predictor
    from defectcls.settings import PredictSettings

log = logging.getLogger(__name__)

State = tuple[str, int]  # MODIFIED and bytes: they tell a version of a file from the next, and a whole one from a part
MODIFIED = "modified"  # column of the output: when the file was last changed, UTC, to the nanosecond
MODEL = "model"  # column: where the checkpoint lies


def watch(predictor: "Predictor", folder: Path, output: Path, settings: "PredictSettings") -> Iterator[pd.DataFrame]:
    """Append the predictions of the photos in a folder, and of those that come, to `output`; yield them too, for ever.

    To look, instead of being told by the system, works on network drives too; a look at 10,000 files takes 0.1 s. A
    photo whose copy rests for longer than it takes to look twice is unreadable until it is whole.

    Raises:
        UserError: the output has other columns, or another process appends to it.
    """
    columns, model = ["path", MODIFIED, MODEL, *predictor.columns[1:]], str(settings.checkpoint.resolve())
    held = f"another process watches with output={output}: stop it, or give another output"
    with locked(Path(f"{output}.lock"), held, wait=False):
        if settings.overwrite:
            output.unlink(missing_ok=True)
        append(pd.DataFrame(columns=columns), output)  # the header, of a new one
        done = remembered(output, columns, model)
        before: dict[str, State] | None = {}
        while True:
            now = look(folder)
            if now is None and before is not None:
                log.warning("%s is not there, or cannot be read: waiting for it", folder)
            states, before = due(before or {}, now or {}, done), now
            for rows in predictor.stream((f"{folder}/{name}" for name in states), settings.batch_size):
                names = [path.removeprefix(f"{folder}/") for path in rows["path"]]
                # What changed or went before it could be read is due again when it comes back.
                same = [state_of(folder, name) == states[name] for name in names]
                rows = rows.assign(path=list(map(writable, names)), modified=[states[name][0] for name in names])
                rows = rows.assign(model=model)[columns][(rows["error"] == "") | np.array(same)]
                append(rows, output)
                done.update(zip(rows["path"], rows[MODIFIED], strict=True))
                yield rows
            time.sleep(settings.watch_seconds)


def look(folder: Path) -> dict[str, State] | None:
    """The photos in a folder, at any depth, by their names relative to it; None where there is no folder now."""
    try:
        if not folder.is_dir():
            return None
        states = [(name, state_of(folder, name)) for name in images_in(folder, "")]
    except (OSError, UserError):  # a network drive that is being lost
        return None
    return {name: state for name, state in states if state is not None}


def state_of(folder: Path, name: str) -> State | None:
    """None where there is no such file (any more)."""
    try:
        found = os.stat(f"{folder}/{name}")  # noqa: PTH116  a path object for each of many files takes as long
    except OSError:
        return None
    return f"{np.datetime64(found.st_mtime_ns, 'ns')}Z", found.st_size


def due(before: dict[str, State], now: dict[str, State], done: set[tuple[str, str]]) -> dict[str, State]:
    """Those of `now` that are the same as before and not done, those first that were changed first.

    Args:
        done: names as they are written, and MODIFIED.
    """
    same = [(state, name) for name, state in now.items() if before.get(name) == state]
    return {name: state for state, name in sorted(same) if (writable(name), state[0]) not in done}


def remembered(output: Path, columns: list[str], model: str) -> set[tuple[str, str]]:
    """The versions that a model has judged in an output, as of `due`; a row that a kill has left torn is cut off.

    Raises:
        UserError: the output is no such table, or that of a model with other classes.
    """
    content = output.read_bytes()
    header = pd.DataFrame(columns=columns).to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    if not content.startswith(header.encode()):  # before a foreign file loses its last row
        what = f"no table of this watch: its columns are not {', '.join(columns)}"
        raise UserError(f"output={output} is {what}; give another output, or overwrite=true")
    whole = content.rfind(b"\n") + 1
    while content.count(b'"', 0, whole) % 2:  # a name within quotes may hold the end of a line
        whole = content.rfind(b"\n", 0, whole - 1) + 1
    os.truncate(output, whole)
    rows = pd.read_csv(output, usecols=["path", MODIFIED, MODEL], dtype=str, keep_default_na=False)
    rows = rows[rows[MODEL] == model]
    return set(zip(rows["path"], rows[MODIFIED], strict=True))
