"""Tables of predictions that grow batch by batch: CSV, of which a killed process loses no row.

So a folder can be watched: a model judges each version of a photo once, also across restarts, as the output remembers.
"""

import contextlib
import csv
import logging
import mmap
import os
import time
from collections.abc import Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import pandas as pd
from pydantic import NonNegativeInt, PositiveInt

from defectcls.data.images import UnreadableImageError, read_file
from defectcls.data.inputs import Photos
from defectcls.data.samples import images_in, writable
from defectcls.errors import Stopped, UserError
from defectcls.evaluation.predictions import ACCEPT
from defectcls.files import locked
from defectcls.pages.wording import unlike_words
from defectcls.settings import Positive, RaySettings, Text, TrainedSettings

if TYPE_CHECKING:
    from defectcls.deployment.predictor import Predictor

log = logging.getLogger(__name__)

TOGETHER = 16  # photos that are in memory at once
BLOCK, AT_ONCE = 2**24, 100_000  # bytes and rows of a table that are looked at together
State = tuple[str, int]  # MODIFIED and bytes: they tell a version of a file from the next, and a whole one from a part
Version = tuple[str, str, bytes]  # name as it is written, relative to the folder; MODIFIED; content
MODIFIED = "modified"  # column of the output: when the file was last changed, UTC, to the nanosecond
CSV: Any = {"index": False, "quoting": csv.QUOTE_NONNUMERIC, "lineterminator": "\n"}
MODEL = "model"  # column: where the checkpoint lies


class PredictSettings(TrainedSettings):
    checkpoint: Path
    input: Annotated[str, Text]
    output: Path | None
    overwrite: bool
    batch_size: PositiveInt
    gallery: NonNegativeInt
    heat_maps: bool
    watch: bool
    resume: Path | None
    watch_seconds: Positive
    window: PositiveInt
    ray: RaySettings
    shard: PositiveInt

    def model_post_init(self, _: Any) -> None:
        if self.heat_maps and not self.gallery:
            raise ValueError("heat_maps=true shows them in the gallery: gallery=200, not 0")
        if self.watch and (self.output is None or not Path(self.input).is_dir()):
            raise ValueError("watch=true needs input=<folder>, and output=<file>.csv to remember what is predicted")
        if self.ray.address and (self.watch or self.overwrite or self.output is None or self.output.suffix == ".csv"):
            raise ValueError(
                "ray.address needs output=<folder>, which goes on, and neither watch=true nor overwrite=true"
            )


class Watched:
    """A folder, of which each version of a photo arrives once.

    To look, instead of being told by the system, works on network drives too; a look at 10,000 files takes 0.1 s. A
    photo whose copy rests for longer than it takes to look twice is unreadable until it is whole.

    Args:
        done: name and MODIFIED of versions that do not arrive.
    """

    def __init__(self, folder: Path, done: Iterable[tuple[str, str]] = ()) -> None:
        self.folder, self._done = folder, set(done)
        self._before: dict[str, State] = {}
        self._told: set[str] = set()  # names of what cannot be read

    def look(self, together: int = TOGETHER) -> Iterator[list[Version]]:
        """The photos, at any depth, that are as at the look before, some at a time, those first that changed first.

        Each is done when the next ones are asked for; what is changing or cannot be read is looked at again.

        Raises:
            UserError: there is no folder now, as where a network drive is lost.
        """
        before, self._before = self._before, {}
        if not os.path.isdir(self.folder):  # noqa: PTH112  of a drive that is being lost a path object may raise
            raise UserError(f"the folder {self.folder} is not there, or cannot be read")
        now = ((name, self._state(name)) for name in images_in(self.folder, ""))
        self._before = {name: state for name, state in now if state is not None}
        same = sorted((state, name) for name, state in self._before.items() if before.get(name) == state)
        due = [(name, state) for state, name in same if (writable(name), state[0]) not in self._done]
        for start in range(0, len(due), together):
            read = [self._read(name, state) for name, state in due[start : start + together]]
            if arrived := [one for one in read if one is not None]:
                yield arrived
                self._done.update((written, modified) for written, modified, _ in arrived)

    def _read(self, name: str, state: State) -> Version | None:
        try:
            content = read_file(f"{self.folder}/{name}")
        except UnreadableImageError as error:  # gone, and due when it comes back; or held by who writes it
            if self._state(name) == state and name not in self._told:
                log.warning("%s/%s cannot be read: %s; waiting for it", self.folder, writable(name), error)
                self._told.add(name)
            return None
        return (writable(name), state[0], content) if self._state(name) == state else None

    def _state(self, name: str) -> State | None:
        try:
            found = os.stat(f"{self.folder}/{name}")  # noqa: PTH116  a path object for each of many files takes as long
        except OSError:
            return None
        return f"{np.datetime64(found.st_mtime_ns, 'ns')}Z", found.st_size


def watch(predictor: "Predictor", photos: Photos, settings: PredictSettings, output: Path) -> None:
    """Append the predictions of the photos in a folder, and of those that come, to `output`, until Ctrl-C or SIGTERM.

    Tells of each photo that is not accepted.

    Raises:
        UserError: the output has other columns, or another process appends to it.
    """
    columns, model = ["path", MODIFIED, MODEL, *predictor.columns[1:]], str(settings.checkpoint.resolve())
    held = f"another process watches with output={output}: stop it, or give another output"
    what = f"no table of this watch: its columns are not {', '.join(columns)}"
    log.info("watching %s, predictions go to %s; Ctrl-C ends it", photos.root, output)
    with contextlib.suppress(Stopped), locked(Path(f"{output}.lock"), held, wait=False):
        if settings.overwrite:
            output.unlink(missing_ok=True)
        mend_table(output, columns, f"output={output} is {what}; give another output, or overwrite=true")
        known = pd.read_csv(output, dtype=str, keep_default_na=False)
        known, drift = known[known[MODEL] == model], predictor.drift(settings.window)
        drift.windows(known.assign(unlike=pd.to_numeric(known["unlike"])))
        watched, away = Watched(photos.root, zip(known["path"], known[MODIFIED], strict=True)), False
        while True:
            try:
                for arrived in watched.look(min(settings.batch_size, TOGETHER)):
                    names, modified, contents = zip(*arrived, strict=True)
                    rows = predictor.predict(contents).assign(path=names, modified=modified, model=model)[columns]
                    append(rows, output)
                    for row in rows[rows["decision"] != ACCEPT].to_dict("records"):
                        read = not row["error"]
                        told = f"{row['decision']} {row['score']:.3f}" if read else f"unreadable ({row['error']})"
                        print(f"{datetime.now():%Y-%m-%d %H:%M:%S} {told} {row['path']}", flush=True)
                    for window in drift.windows(rows):
                        print(f"{datetime.now():%Y-%m-%d %H:%M:%S} {unlike_words(window._asdict())}", flush=True)
                away = False
            except UserError as error:
                if not away:
                    log.warning("%s: waiting for it", error)
                away = True
            time.sleep(settings.watch_seconds)


def mend_table(output: Path, columns: list[str], refusal: str) -> None:
    """Begin a table with its header, or cut off the row of it that a kill has left torn.

    Raises:
        UserError: it has other columns; what it says is `refusal`.
    """
    header = pd.DataFrame(columns=columns)
    append(header, output)
    with output.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if (
            not content[: len(line := header.to_csv(**CSV).encode())] == line
        ):  # before a foreign file loses its last row
            raise UserError(refusal)
        whole = content.rfind(b"\n") + 1
        while sum(content[at : min(at + BLOCK, whole)].count(b'"') for at in range(0, whole, BLOCK)) % 2:
            whole = content.rfind(b"\n", 0, whole - 1) + 1  # a name within quotes may hold the end of a line
    os.truncate(output, whole)


def append(rows: pd.DataFrame, output: Path) -> None:
    """The rows are handed to the system at once, with a header where there are none yet; every bit can be restored."""
    with output.open("ab") as file:  # text in quotes: else a carriage return within a name ends the line
        text = rows.to_csv(header=file.tell() == 0, **CSV)
        file.write(text.encode())


def read_output(output: Path, watched: bool = True) -> Iterator[pd.DataFrame]:
    """The rows, as text but for score and unlike, some at a time; of a watch all, and the last one of each photo."""
    if output.is_dir():  # of actors
        yield from map(pd.read_parquet, sorted(output.glob("0*")))
        return
    with pd.read_csv(output, dtype=str, keep_default_na=False, chunksize=AT_ONCE) as tables:
        for rows in [pd.concat(tables).drop_duplicates("path", keep="last")] if watched else tables:
            yield rows.assign(score=pd.to_numeric(rows["score"]), unlike=pd.to_numeric(rows["unlike"]))
