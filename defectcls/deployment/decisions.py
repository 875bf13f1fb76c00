"""What a model has decided: every decision a row of a database before it is told, and the photos that are kept.

| column                   | meaning                                                                                   |
| ------------------------ | ----------------------------------------------------------------------------------------- |
| `id`                     | rises as rows become visible, whoever writes: who reads `after` the last one misses none  |
| `time`                   | UTC, ISO 8601, to the millisecond                                                         |
| `source`, `name`         | http, folder:<name> or camera:<name>; of the photo in there                               |
| `photo`                  | digest of its bytes                                                                       |
| `model`, `model_digest`  | the name that it is served by, and which version of it                                    |
| `decision`, `prediction` | as of `Predictor.predict`; "" where there is an `error`, and then `score` is NULL         |
| `seconds`                | from its arrival to the decision                                                          |
| `unlike`, `cause`        | 0 to 1, how unlike it is what the model was measured on, NULL where unknown; why in words |
| `reason`                 | why a person should look at it: review, doubted, unlike, audit; "" where nobody need      |
| `chance`                 | with which it was drawn into the audit; NULL of what was not                              |

What people say of photos are rows of `defectcls.data.verdicts`. No row is ever changed.
"""

import math
import os
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import imagecodecs
import numpy as np
import pandas as pd
import sqlalchemy as sql
from sqlalchemy.exc import SQLAlchemyError

from defectcls import files
from defectcls.data.samples import IMAGE_SUFFIXES, writable
from defectcls.data.verdicts import NUMBER, STANDING, TABLES, UNSURE, address_of
from defectcls.errors import UserError, did_you_mean, one_line
from defectcls.evaluation.predictions import ACCEPT, REJECT, REVIEW
from defectcls.files import written_whole

Keep = Literal["none", "reject", "review", "all"]
UNREADABLE = "unreadable"  # what a decision is called where there is none
KINDS = (REJECT, REVIEW, ACCEPT, UNREADABLE)
KEPT: dict[Keep, int] = {"none": 0, "reject": 1, "review": 2, "all": 4}  # so many of them
LEFT = 0.9  # of what kept photos may take, once the oldest have made room
BUSY_S = 30  # that a writer of SQLite waits for another process's

TEXTS = ("time", "source", "name", "photo", "model", "model_digest", "decision", "prediction", "error", "cause")
INDEXED = ("time", "source", "photo", "reason")
UNASKED = {"reason": "", "chance": None}  # of a photo that nobody need look at
DECISIONS = sql.Table(
    "decisions",
    TABLES,
    sql.Column("id", NUMBER, primary_key=True),
    *(sql.Column(name, sql.Text, nullable=False, index=name in INDEXED) for name in (*TEXTS, "reason")),
    *(sql.Column(name, sql.Double) for name in ("score", "seconds", "unlike", "chance")),
    sqlite_autoincrement=True,
)
PROMOTIONS = sql.Table(
    "promotions",
    TABLES,
    sql.Column("id", NUMBER, primary_key=True),
    *(sql.Column(name, sql.Text, nullable=False) for name in ("time", "who", "why", "model", "digest", "before")),
    *(sql.Column(name, sql.Text, nullable=False) for name in ("run", "sentence")),  # its folder; what was known of it
    sql.Column("undoes", NUMBER),  # the id of the row that this one takes back
    sqlite_autoincrement=True,
)
DELIVERIES = sql.Table(
    "deliveries", TABLES, sql.Column("sink", sql.String(255), primary_key=True), sql.Column("last", NUMBER)
)


class Decisions:
    """The rows of a database, for many threads. What the database refuses raises SQLAlchemyError.

    Args:
        given: an address of SQLAlchemy, as postgresql://user@host/name, or the file of an SQLite one; tables are made.

    Raises:
        UserError: it is no such address, its driver is not installed, nobody answers there, or its tables are others.
    """

    def __init__(self, given: str | Path) -> None:
        self._writing, url = threading.Lock(), address_of(given)
        try:
            lite = url.get_backend_name() == "sqlite"
            options: dict[str, Any] = {"connect_args": {"timeout": BUSY_S}} if lite else {"pool_pre_ping": True}
            self._engine = sql.create_engine(url, **options)
            if lite:
                sql.event.listen(self._engine, "connect", _durable)
            there = sql.inspect(self._engine)
            for table in (one for one in TABLES.sorted_tables if there.has_table(one.name)):
                if lacking := {*table.columns.keys()} - {one["name"] for one in there.get_columns(table.name)}:
                    raise UserError(
                        f"database={url} is of another tool or version: its table {table.name} lacks "
                        f"{', '.join(sorted(lacking))}; give another one, or a new folder"
                    )
            TABLES.create_all(self._engine)
        except (SQLAlchemyError, ImportError) as error:
            why = f"cannot be used ({one_line(error)}): start it, or give one such as decisions.sqlite"
            raise UserError(f"database={url} {why}") from error

    def add(self, rows: list[dict[str, Any]], table: sql.Table = DECISIONS) -> list[int]:
        """Commit rows, all or none; their ids, in order. Each has each column of the table but `id` and of UNASKED."""
        names = [column.name for column in table.columns if column.name != "id"]
        values = [{name: _storable((UNASKED | row)[name]) for name in names} for row in rows]
        asked = sql.insert(table).returning(table.c.id, sort_by_parameter_order=True)
        with self._writing, self._engine.begin() as connection:
            if connection.dialect.name == "postgresql":  # else a later id may be visible before an earlier one
                connection.execute(sql.text(f"LOCK TABLE {table.name} IN EXCLUSIVE MODE"))
            return list(connection.execute(asked, values).scalars()) if values else []

    def promotions(self, at_work: dict[str, str]) -> list[dict[str, Any]]:
        """All of them, with `until`: the time of the next one, "" of what is at work, None of what never took over.

        A row is what was meant. That it came to pass is told by the next one, which took over from it, or by the file
        at work: so no row is changed, and one that a kill has left without its file is not taken for more.

        Args:
            at_work: the digest of each model's file; of one that is not told the last row is believed.
        """
        rows, later = self.rows(sql.select(PROMOTIONS).order_by(PROMOTIONS.c.id.desc())), dict[str, tuple[str, str]]()
        for row in rows:
            following, time = later.get(row["model"], (at_work.get(row["model"], row["digest"]), ""))
            row["until"] = time if following == row["digest"] else None
            later[row["model"]] = row["before"], time if row["until"] is None else row["time"]
        return rows[::-1]

    def versions(self) -> list[dict[str, Any]]:
        """Of each `model` and `model_digest` how many `rows` of decisions there are, the times of first and last."""
        of, time = DECISIONS.c, DECISIONS.c.time
        counted = sql.func.count().label("rows"), sql.func.min(time).label("first"), sql.func.max(time).label("last")
        return self.rows(sql.select(of.model, of.model_digest, *counted).group_by(of.model, of.model_digest))

    def recent(self, count: int) -> list[dict[str, Any]]:
        """The last rows, the newest first."""
        return self.rows(sql.select(DECISIONS).order_by(DECISIONS.c.id.desc()).limit(count))

    def after(self, last: int, limit: int) -> list[dict[str, Any]]:
        """The rows behind an id, the oldest first."""
        return self.rows(sql.select(DECISIONS).where(DECISIONS.c.id > last).order_by(DECISIONS.c.id).limit(limit))

    def counts(self, since: datetime) -> dict[str, int]:
        """How many rows there are of each decision since an aware time; those without one are `unreadable`."""
        kind, times = DECISIONS.c.decision, DECISIONS.c.time >= moment(since)
        found = self.rows(sql.select(kind, sql.func.count().label("rows")).where(times).group_by(kind))
        return dict.fromkeys(KINDS, 0) | {row["decision"] or UNREADABLE: row["rows"] for row in found}

    def judged(self, source: str) -> set[tuple[str, str]]:
        """Name and digest of every photo of a source."""
        asked = sql.select(DECISIONS.c.name, DECISIONS.c.photo).where(DECISIONS.c.source == source).distinct()
        return {(row["name"], row["photo"]) for row in self.rows(asked)}

    def of_model(self, digest: str, since: datetime) -> list[dict[str, Any]]:
        """The last decision of a version of a model on each photo since a time: photo, name, decision, score."""
        of = DECISIONS.c
        rows = (of.model_digest == digest, of.decision != "", of.time >= moment(since))
        last = sql.select(sql.func.max(of.id)).where(*rows).group_by(of.photo)
        return self.rows(sql.select(of.photo, of.name, of.decision, of.score).where(of.id.in_(last)).order_by(of.id))

    def cursor(self, sink: str) -> int | None:
        """The last id that a sink has delivered; None of a new one."""
        found = self.rows(sql.select(DELIVERIES.c.last).filter_by(sink=sink))
        return found[0]["last"] if found else None

    def move_cursor(self, sink: str, last: int) -> None:
        """All to `last` is delivered."""
        with self._writing, self._engine.begin() as connection:
            if not connection.execute(sql.update(DELIVERIES).filter_by(sink=sink).values(last=last)).rowcount:
                connection.execute(sql.insert(DELIVERIES).values(sink=sink, last=last))

    def rows(self, asked: "sql.Select[Any]") -> list[dict[str, Any]]:
        """All that a query finds."""
        return [*self.stream(asked)]

    def stream(self, asked: "sql.Select[Any]") -> Iterator[dict[str, Any]]:
        """What a query finds, read as far as it is asked for."""
        with self._engine.connect().execution_options(yield_per=100) as connection:
            yield from map(dict, connection.execute(asked).mappings())


class Kept:
    """Photos by what was decided of them, `<folder>/<decision>/<digest>.<suffix>`; the oldest make room for new ones.

    Args:
        keep: `reject`; `review`, which is what is to be looked at and what is rejected; `all`, with those that could
            not be read; or `none`.
        gigabytes: what they may take of the disk.
    """

    def __init__(self, folder: Path, keep: Keep, gigabytes: float) -> None:
        self.folder, self._kinds, self._most = folder, KINDS[: KEPT[keep]], gigabytes * 1e9
        self._held, self._writing = sum(file.stat().st_size for file in folder.glob("*/*")), threading.Lock()

    def add(self, photo: bytes | np.ndarray, name: str, digest: str, decision: str, surely: bool = False) -> None:
        """Keep it where the rule says so, or `surely`: whole on the disk when this returns.

        Args:
            photo: content of a file, or an array uint8 or uint16, which becomes a PNG.
            name: a suffix of its own that photos have stays.

        Raises:
            OSError: the disk is full, or refuses.
        """
        kind, suffix = decision or UNREADABLE, Path(name).suffix.lower()
        if kind not in self._kinds and not surely:
            return
        if isinstance(photo, np.ndarray):
            photo, suffix = bytes(imagecodecs.png_encode(np.ascontiguousarray(photo), level=1)), ".png"
        file = self.folder / kind / f"{digest}{suffix if suffix in IMAGE_SUFFIXES else '.bin'}"
        with self._writing:
            if file.exists():
                return
            file.parent.mkdir(parents=True, exist_ok=True)
            with written_whole(file) as unfinished, unfinished.open("wb") as writing:
                writing.write(photo)
                writing.flush()
                os.fsync(writing.fileno())
            self._held += len(photo)
            if self._held > self._most:
                self._make_room()

    def find(self, row: dict[str, Any]) -> Path | None:
        """Where the photo of a decision lies that is kept (still)."""
        place = self.folder / (row["decision"] or UNREADABLE)  # which may hold 50,000: they are not listed
        files = (place / (row["photo"] + one) for one in (Path(row["name"]).suffix.lower(), ".png", ".bin"))
        return next((file for file in files if file.is_file()), None)

    def _make_room(self) -> None:
        files = sorted((file.stat().st_mtime_ns, file.stat().st_size, file) for file in self.folder.glob("*/*"))
        self._held = sum(size for _, size, _ in files)
        while self._held > LEFT * self._most and len(files) > 1:  # the newest stays
            _, size, file = files.pop(0)
            file.unlink(missing_ok=True)
            self._held -= size


def audited_photos(address: str, classes: dict[str, bool], digest: str, since: datetime) -> tuple[pd.DataFrame, int]:
    """What `defectcls.evaluation.audited.audit` takes, and on how many photos people disagree.

    Args:
        address: of a database.
        digest: of the model's file, whose decisions since a time count.

    Raises:
        UserError: it is not there, or knows no decision of this model, or a label is none of its classes.
    """
    address_of(address, there=True)
    database = Decisions(address)
    decided = pd.DataFrame(database.of_model(digest, since))
    if decided.empty:
        of = f"audited={address} has no decision of this model ({digest[:12]}) since {since}"
        raise UserError(f"{of}: checkpoint=<the very file that was served>")
    said = pd.DataFrame(database.rows(STANDING), columns=["photo", "label", "chance"]).astype({"chance": float})
    said = said[said["label"] != UNSURE]
    for label in said["label"][~said["label"].isin([*classes])]:
        near = did_you_mean(label, classes) or f": there are {', '.join(classes)}"
        raise UserError(f"audited={address} has the label '{label}', which is no class of the model{near}")
    of_photo = said.assign(defective=said["label"].map(classes)).groupby("photo")
    found = of_photo.agg(defective=("defective", "max"), said=("defective", "nunique"), chance=("chance", "max"))
    joined = decided.join(found, on="photo")
    return joined, int((joined["said"] > 1).sum())


def digest_of(photo: bytes | np.ndarray) -> str:
    """Of a photo's bytes, or of an array's: 32 digits."""
    return files.digest_of(photo if isinstance(photo, bytes) else photo.tobytes()).hex()


def moment(when: datetime) -> str:
    """An aware time as the rows have it, so that texts compare as times do."""
    return when.astimezone(UTC).isoformat(timespec="milliseconds")


def _durable(connection: Any, _: Any) -> None:
    """What is committed is on the disk, and readers hold no writer up."""
    for setting in ("journal_mode=WAL", "synchronous=FULL"):
        connection.execute(f"PRAGMA {setting}").close()


def _storable(value: Any) -> Any:
    """Text without what databases refuse, numbers of Python's; what is no number is none."""
    if isinstance(value, str):
        return writable(value).replace("\0", "\\0")
    return None if value is None or not math.isfinite(value) else float(value)
