"""What earlier runs have computed of images: bytes by key in one sqlite file, shared by concurrent jobs."""

import logging
import sqlite3
import time
from collections.abc import Iterable
from pathlib import Path

from defectcls.settings import DatasetSettings

log = logging.getLogger(__name__)

KEPT = 0.8  # share of the room that is still taken once some was made: the next jobs need not make it again
KEYS_AT_ONCE = 900  # sqlite of before 2020 takes 999 values a statement


def image_store(settings: DatasetSettings) -> "Store":
    """What is remembered of each image of a dataset; with `dataset.cache=off` in memory alone."""
    folder = None if settings.cache == "off" else settings.cache_dir
    return Store(folder, "images.sqlite", settings.cache_max_gb)


class Store:
    """Bytes by key in `folder/file`; in memory, for this process, where `folder` is None or, with a warning, unusable.

    sqlite rolls back what a killed job had begun. A damaged file is begun anew, with a warning. One that takes more
    than `max_gb` (None: no limit) by the time it is opened loses what was stored first.
    """

    def __init__(self, folder: Path | None, file: str, max_gb: float | None) -> None:
        self.path = Path(":memory:") if folder is None else folder / file
        try:
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
            self._open(self.path)
            if max_gb is not None:
                self._make_room(max_gb)
        except (OSError, sqlite3.Error) as error:
            self._recover(error)

    def get(self, keys: list[bytes], length: int | None = None) -> dict[bytes, bytes]:
        """The entries of those keys that are known. 20,000 of 10 kB take 0.2 s.

        Args:
            length: of every entry, in bytes; another one is damaged, and as if it were not known.
        """
        found: dict[bytes, bytes] = {}
        try:
            for start in range(0, len(keys), KEYS_AT_ONCE):
                some = keys[start : start + KEYS_AT_ONCE]
                marks = ",".join("?" * len(some))
                found.update(self.connection.execute(f"SELECT key, value FROM entries WHERE key IN ({marks})", some))
        except sqlite3.Error as error:
            self._recover(error)
        return found if length is None else {key: entry for key, entry in found.items() if len(entry) == length}

    def put(self, entries: Iterable[tuple[bytes, bytes]]) -> None:
        """Remember entries, all or none of them."""
        try:
            with self.connection:
                self.connection.executemany("INSERT OR REPLACE INTO entries VALUES (?, ?)", entries)
        except sqlite3.Error as error:
            self._recover(error)

    def _open(self, file: Path | str) -> None:
        self.connection = sqlite3.connect(file, timeout=60)
        self.connection.execute("PRAGMA auto_vacuum=INCREMENTAL")  # of a file that is new
        for pause in (0.1, 1.0, 10.0, None):
            try:
                self.connection.execute("PRAGMA journal_mode=WAL")  # readers do not wait for a writer
                break
            except sqlite3.OperationalError:  # another job makes the same file, for which sqlite does not wait
                if pause is None:
                    raise
                time.sleep(pause)
        self.connection.execute("PRAGMA synchronous=NORMAL")  # a power cut may cost the last entries, not the file
        with self.connection:
            self.connection.execute("CREATE TABLE IF NOT EXISTS entries (key BLOB PRIMARY KEY, value BLOB)")

    def _make_room(self, max_gb: float) -> None:
        """By statements, not by deleting the file: another job may have it open."""
        asked = ("page_count", "freelist_count", "page_size")
        pages, free, size = (self.connection.execute(f"PRAGMA {name}").fetchone()[0] for name in asked)
        taken = (pages - free) * size
        if taken <= max_gb * 1e9:
            return
        log.info("%s is larger than dataset.cache_max_gb=%g: what was stored first is deleted", self.path, max_gb)
        before = "SELECT rowid AS row, sum(length(value)) OVER (ORDER BY rowid) - length(value) AS before FROM entries"
        surplus = taken - KEPT * max_gb * 1e9
        with self.connection:
            self.connection.execute(
                f"DELETE FROM entries WHERE rowid IN (SELECT row FROM ({before}) WHERE before < ?)", (surplus,)
            )
        self.connection.executescript("PRAGMA incremental_vacuum")  # `execute` would free a single page
        self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _recover(self, error: Exception) -> None:
        if type(error) is sqlite3.DatabaseError:  # no database, or a malformed one; a full disk is a subclass
            log.warning("%s is damaged and begun anew: %s", self.path, error)
            self.connection.close()
            for suffix in ("", "-wal", "-shm"):
                Path(f"{self.path}{suffix}").unlink(missing_ok=True)
            self._open(self.path)
        else:
            log.warning("dataset.cache_dir=%s: nothing is kept there for the next run: %s", self.path.parent, error)
            self._open(":memory:")
