"""What earlier runs have computed of images: bytes by key in one sqlite file, shared by concurrent jobs."""

import logging
import sqlite3
from collections.abc import Iterable
from pathlib import Path

log = logging.getLogger(__name__)

KEYS_AT_ONCE = 900  # sqlite of before 2020 takes 999 values a statement


class Store:
    """Bytes by key in `folder/file`; a folder that cannot be used is a warning, and nothing is kept there.

    sqlite rolls back what a killed job had begun. A damaged file is begun anew, with a warning, and so is one that has
    grown beyond `max_gb` (None: no limit) by the time it is opened.
    """

    def __init__(self, folder: Path, file: str, max_gb: float | None) -> None:
        self.path = folder / file
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._open(self.path)
            if max_gb is not None and self.path.stat().st_size > max_gb * 1e9:
                log.info("%s is larger than dataset.cache_max_gb=%g: it is begun anew", self.path, max_gb)
                self._empty()
        except (OSError, sqlite3.Error) as error:
            self._recover(error)

    def get(self, keys: list[bytes]) -> dict[bytes, bytes]:
        """The entries of those keys that are known. 20,000 of 10 kB take 0.2 s."""
        found: dict[bytes, bytes] = {}
        try:
            for start in range(0, len(keys), KEYS_AT_ONCE):
                some = keys[start : start + KEYS_AT_ONCE]
                marks = ",".join("?" * len(some))
                found.update(self.connection.execute(f"SELECT key, value FROM entries WHERE key IN ({marks})", some))
        except sqlite3.Error as error:
            self._recover(error)
        return found

    def put(self, entries: Iterable[tuple[bytes, bytes]]) -> None:
        """Remember entries, all or none of them."""
        try:
            with self.connection:
                self.connection.executemany("INSERT OR REPLACE INTO entries VALUES (?, ?)", entries)
        except sqlite3.Error as error:
            self._recover(error)

    def _open(self, file: Path | str) -> None:
        self.connection = sqlite3.connect(file, timeout=60)
        self.connection.execute("PRAGMA journal_mode=WAL")  # readers do not wait for a writer
        self.connection.execute("PRAGMA synchronous=NORMAL")  # a power cut may cost the last entries, not the file
        with self.connection:
            self.connection.execute("CREATE TABLE IF NOT EXISTS entries (key BLOB PRIMARY KEY, value BLOB)")

    def _empty(self) -> None:
        """By statements, not by deleting the file: another job may have it open."""
        with self.connection:
            self.connection.execute("DELETE FROM entries")
        self.connection.execute("VACUUM")
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
