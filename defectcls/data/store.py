"""What is computed once of an image and kept for every later run, split, fold and audit: rows of arrays by key.

    store = Store(settings.cache_dir, settings.cache_max_gb)             # Store(None): in memory, for this process
    rows = Rows(store, f"features-{digest_of_weights}", (1280,), np.float32)
    with rows.lock():                                                    # one process computes, the others wait for it
        missing = np.flatnonzero(rows.find(keys) < 0)                    # keys: 16 bytes each
        rows.add([keys[row] for row in missing], compute(missing))       # as often as one likes
    values = rows[rows.find(keys)]                                       # float32 (keys, 1280), the caller's own

On the disk each process appends to files of its own, `<folder>/<kind>/<time>-<process>.rows` and `.keys`: the rows, and
of each its key and a checksum, written after it. A row counts once both are right: what a killed job has left half, or
is damaged, is computed anew; nothing in these files is more than numbers.
"""

import contextlib
import logging
import os
import time
import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from defectcls.data.threads import map_in_threads
from defectcls.files import locked

log = logging.getLogger(__name__)

KEY = np.dtype([("key", "V16"), ("sum", "<u4")])
PLACES = 1 << 32  # a position is the number of a block times this, and a place in the block


class Store:
    """Rows of several kinds, which take no more than `max_gb` together: files that were used longest ago make room.

    A folder that cannot be written to, or is full, is a warning; what comes then is kept in memory, for this process.

    Args:
        folder: None keeps all in memory, without a limit.
    """

    def __init__(self, folder: Path | None, max_gb: float = float("inf")) -> None:
        self.folder, self.max_bytes = folder, max_gb * 1e9
        self.in_use: set[Path] = set()

    def give_up(self, error: Exception) -> None:
        """Keep what comes in memory from now on."""
        log.warning("dataset.cache_dir=%s: nothing is kept there for the next run: %s", self.folder, error)
        self.folder = None

    def make_room(self, needed: int) -> None:
        """Delete files that were used longest ago, by other processes, until so many bytes more fit.

        Raises:
            OSError: they do not fit.
        """
        assert self.folder is not None
        files = {}
        for path in self.folder.glob("*/*.rows"):
            with contextlib.suppress(FileNotFoundError):  # another process makes room, too
                files[path] = path.stat()
        excess = sum(state.st_size for state in files.values()) + needed - self.max_bytes
        for path in sorted(files.keys() - self.in_use, key=lambda path: files[path].st_mtime):
            if excess > 0:  # who has it mapped keeps it
                path.with_suffix(".keys").unlink(missing_ok=True)
                path.unlink(missing_ok=True)
                excess -= files[path].st_size
        if excess > 0:
            raise OSError(f"dataset.cache_max_gb={self.max_bytes / 1e9:g} is taken by this run alone")


class Rows:
    """Rows of one kind. Positions stay what they are as rows are added, by whomever.

    Args:
        kind: a name for files, of all that decides the values beside their keys.
        shape, dtype: of one row.
    """

    def __init__(self, store: Store, kind: str, shape: tuple[int, ...], dtype: Any) -> None:
        self.store, self.shape, self.dtype = store, shape, np.dtype(dtype)
        self.row_bytes = self.dtype.itemsize * int(np.prod(shape))
        self.name = "-".join(map(str, (kind, *shape, self.dtype.name)))
        self._blocks: list[np.ndarray] = []  # (rows, *shape): a map of each file, or what is in memory alone
        self._files: dict[Path, int] = {}  # the number of each file's block
        self._sums: list[np.ndarray] = []  # checksums of each block, uint32 (rows,)
        self._right: list[np.ndarray] = []  # of each block, int8 (rows,): 1 right, -1 damaged, 0 not looked at
        self._index: list[tuple[np.ndarray, np.ndarray]] = []  # keys, sorted, and positions; what is newest comes last
        self._own = Path()  # file
        self.take_up()

    @property
    def nbytes(self) -> int:
        """Of all rows."""
        return sum(block.nbytes for block in self._blocks)

    @property
    def folder(self) -> Path | None:
        """Where they are on the disk; None in memory."""
        return self.store.folder and self.store.folder / self.name

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """For one process at a time, which finds all that the others have added."""
        with contextlib.ExitStack() as held:
            if self.folder is not None:
                try:
                    self.folder.mkdir(parents=True, exist_ok=True)
                    held.enter_context(locked(self.folder / "lock", f"another job computes {self.folder}"))
                except (OSError, NotImplementedError) as error:  # a file system that knows no locks
                    self.store.give_up(error)
            self.take_up()
            yield

    def find(self, keys: Sequence[bytes]) -> np.ndarray:
        """Position of each key's row, int64 (keys,); -1 where it is not known, or damaged."""
        found = self._places(keys)
        used = dict(_by_block(found))
        for number, rows in used.items():
            places, right = found[rows] % PLACES, self._right[number]
            new = np.unique(places[right[places] == 0])
            look = map_in_threads if len(self.shape) > 1 else map  # pixels are worth a thread
            right[new] = [*look(partial(self._is_right, number), new.tolist())]
        for path in {path for path, number in self._files.items() if number in used} - self.store.in_use:
            self.store.in_use.add(path)
            with contextlib.suppress(OSError):  # of another user, or deleted to make room
                os.utime(path)
        return self._places(keys)

    def _places(self, keys: Sequence[bytes]) -> np.ndarray:
        """As `find`, of rows that may not have been looked at."""
        wanted, found = np.array(keys, "S16"), np.full(len(keys), -1, np.int64)
        for known, positions in self._index:
            at = np.searchsorted(known, wanted).clip(max=len(known) - 1)
            hit = known[at] == wanted
            found[hit] = positions[at[hit]]
        for number, rows in _by_block(found):
            found[rows[self._right[number][found[rows] % PLACES] < 0]] = -1
        return found

    def __getitem__(self, positions: np.ndarray) -> np.ndarray:
        """The rows at these positions, (positions, *shape), as an array of the caller's own; 0 at -1."""
        taken = np.zeros((len(positions), *self.shape), self.dtype)
        for number, rows in _by_block(positions):
            taken[rows] = self._blocks[number][positions[rows] % PLACES]
        return taken

    def add(self, keys: Sequence[bytes], values: Sequence[np.ndarray | bytes] | np.ndarray) -> None:
        """Keep the rows of those keys that are not known yet."""
        new = {key: row for row, (key, at) in enumerate(zip(keys, self._places(keys), strict=True)) if at < 0}
        if not new:
            return
        values = np.array([values[row] for row in new.values()], self.dtype).reshape(len(new), *self.shape)
        records = np.array([(key, zlib.crc32(row)) for key, row in zip(new, values, strict=True)], KEY)
        if self.folder is not None:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                if not self._own.is_file():  # the first, or another process has deleted it to make room
                    self._own = self.folder / f"{time.time_ns()}-{os.getpid()}.rows"  # the newest comes last
                self.store.in_use.add(self._own)
                self.store.make_room(values.nbytes)
                for path, content in ((self._own, values), (self._own.with_suffix(".keys"), records)):
                    with path.open("ab") as file:  # plain writes, which a full disk answers with an error
                        file.write(content.data)
                self._map(self._own)
                return
            except OSError as error:
                self.store.give_up(error)
        self._add_block(len(self._blocks), 0, values, records)

    def take_up(self) -> None:
        """Take up what has been added by other processes."""
        for keys in sorted(self.folder.glob("*.keys")) if self.folder is not None else ():
            with contextlib.suppress(OSError):  # of another user, or deleted meanwhile to make room
                self._map(keys.with_suffix(".rows"))

    def _map(self, path: Path) -> None:
        """Take up what has been added to a file."""
        number = self._files.get(path, len(self._blocks))
        known = len(self._blocks[number]) if path in self._files else 0
        records = np.fromfile(path.with_suffix(".keys"), KEY)
        count = min(len(records), path.stat().st_size // self.row_bytes)
        if count > known:
            block = np.asarray(np.memmap(path, self.dtype, "r", 0, (count, *self.shape)))
            self._files[path] = number
            self._add_block(number, known, block, records[known:count])

    def _add_block(self, number: int, known: int, block: np.ndarray, records: np.ndarray) -> None:
        keys = np.frombuffer(records["key"].tobytes(), "S16")[::-1]  # of two rows of one key the newer is found
        positions = number * PLACES + np.arange(known, len(block))[::-1]
        while self._index and len(self._index[-1][0]) <= len(keys):  # so that there are few, and each key moves seldom
            keys, positions = map(np.append, (keys, positions), self._index.pop())
        order = np.argsort(keys, kind="stable")
        self._index.append((keys[order], positions[order]))
        sums, right = records["sum"], np.zeros(len(records), np.int8)
        if known:
            sums, right = np.append(self._sums[number], sums), np.append(self._right[number], right)
        for kept, new in ((self._blocks, block), (self._sums, sums), (self._right, right)):
            kept[number : number + 1] = [new]

    def _is_right(self, number: int, place: int) -> int:
        return 1 if zlib.crc32(self._blocks[number][place]) == self._sums[number][place] else -1


def _by_block(positions: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """The number of each block, and which of the positions are in it, int64 (rows,); without -1."""
    order = np.argsort(positions, kind="stable")
    numbers, starts = np.unique(positions[order] // PLACES, return_index=True)
    parts = zip(numbers.tolist(), np.split(order, starts[1:]), strict=False)  # of nothing np.split makes one part
    return ((number, rows) for number, rows in parts if number >= 0)
