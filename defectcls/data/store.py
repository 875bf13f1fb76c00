"""What is computed once of an image and kept for every later run, split, fold and audit: rows of arrays by key.

    store = Store(settings.cache_dir, settings.cache_max_gb)             # Store(None): in memory, for this process
    rows = store.rows(f"features-{digest_of_weights}", (1280,), np.float32)
    with rows.lock():                                                    # one process computes, the others wait for it
        missing = np.flatnonzero(rows.find(keys) < 0)                    # keys: 16 bytes each
        rows.add([keys[row] for row in missing], compute(missing))       # as often as one likes
    values = rows[rows.find(keys)]                                       # float32 (keys, 1280), the caller's own

On the disk, where each process appends to files of its own, so that none waits for another or spoils what it wrote:

    <folder>/<kind>/lock
    <folder>/<kind>/<time>-<random>.rows     rows one after the other
    <folder>/<kind>/<time>-<random>.keys     of each row its key and a checksum, written after it

A row counts once its key and its checksum are right. What a killed job has left half, what is damaged or of somebody
else is not known, and computed anew; nothing in these files is more than numbers.
"""

import contextlib
import hashlib
import logging
import os
import time
import uuid
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from defectcls.data.threads import map_in_threads
from defectcls.files import locked

log = logging.getLogger(__name__)

KEY = np.dtype([("key", "V16"), ("sum", "<u4")])
LARGE = 1 << 14  # bytes of a row whose checksum is worth a thread
PLACES = 1 << 32  # a position is the number of a file times this, and a place in the file


class Store:
    """Rows of several kinds, which take no more than `max_gb` together: files that were used longest ago make room.

    A folder that cannot be written to, or is full, is a warning; what comes then is kept in memory, for this process.

    Args:
        folder: None keeps all in memory, without a limit.
    """

    def __init__(self, folder: Path | None, max_gb: float = float("inf")) -> None:
        self.folder, self.max_bytes = folder, max_gb * 1e9
        self.in_use: set[Path] = set()

    def rows(self, kind: str, shape: tuple[int, ...], dtype: Any) -> "Rows":
        """The rows of one kind.

        Args:
            kind: a name for files, of all that decides the values beside their keys.
            shape, dtype: of one row.
        """
        return Rows(self, kind, shape, np.dtype(dtype))

    def give_up(self, error: Exception) -> None:
        """Keep what comes in memory from now on."""
        if self.folder is not None:
            log.warning("dataset.cache_dir=%s: nothing is kept there for the next run: %s", self.folder, error)
        self.folder = None

    def make_room(self, needed: int) -> None:
        """Delete files that were used longest ago, by other processes, until so many bytes more fit.

        Raises:
            OSError: they do not fit.
        """
        assert self.folder is not None
        files = [(path, path.stat()) for path in self.folder.glob("*/*.rows")]
        excess = sum(state.st_size for _, state in files) + needed - self.max_bytes
        for path, state in sorted(files, key=lambda file: file[1].st_mtime):
            if excess > 0 and path not in self.in_use:  # who has it mapped keeps it
                path.with_suffix(".keys").unlink(missing_ok=True)
                path.unlink(missing_ok=True)
                excess -= state.st_size
        if excess > 0:
            raise OSError(f"dataset.cache_max_gb={self.max_bytes / 1e9:g} is taken by this run alone")


class Rows:
    """Rows of one kind; made by `Store.rows`. Positions stay what they are as rows are added, by whomever."""

    def __init__(self, store: Store, kind: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self.store, self.shape, self.dtype = store, shape, dtype
        self.row_bytes = dtype.itemsize * int(np.prod(shape))
        form = hashlib.blake2b(repr((shape, dtype.descr)).encode(), digest_size=4).hexdigest()
        self.name = f"{kind}-{form}"
        self._blocks: list[np.ndarray] = []  # (rows, *shape): a map of each file, or what is in memory alone
        self._sums: list[np.ndarray] = []  # of each block: checksums, int64, -1 of what is known to be right
        self._files: dict[Path, int] = {}  # the number of each file's block, if it is not in memory alone
        self._positions: dict[bytes, int] = {}
        self._own = _new_name()
        self._open()

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
                    self._open()
                except (OSError, NotImplementedError) as error:  # a file system that knows no locks
                    self.store.give_up(error)
            yield

    def find(self, keys: Sequence[bytes]) -> np.ndarray:
        """Position of each key's row, int64 (keys,); -1 where it is not known, or damaged, which is a warning."""
        found = np.fromiter((self._positions.get(key, -1) for key in keys), np.int64, len(keys))
        known = np.flatnonzero(found >= 0)
        each = map_in_threads if self.row_bytes > LARGE else map
        right = np.fromiter(each(self._is_right, found[known].tolist()), bool, len(known))
        for row in known[~right]:
            self._positions.pop(keys[row], None)
        if not right.all():
            log.warning("%s: %d of %d rows are damaged and computed anew", self.folder, (~right).sum(), len(keys))
        found[known[~right]] = -1
        used = set((found[known[right]] // PLACES).tolist())
        for path in {path for path, number in self._files.items() if number in used} - self.store.in_use:
            self.store.in_use.add(path)
            with contextlib.suppress(OSError):  # of another user, or deleted to make room
                os.utime(path)
        return found

    def __getitem__(self, positions: np.ndarray) -> np.ndarray:
        """The rows at these positions, (positions, *shape), as an array of the caller's own; 0 at -1."""
        taken = np.zeros((len(positions), *self.shape), self.dtype)
        blocks, places = np.divmod(positions, PLACES)
        for number in np.unique(blocks[positions >= 0]):
            taken[blocks == number] = self._blocks[number][places[blocks == number]]
        return taken

    def add(self, keys: Sequence[bytes], values: Sequence[np.ndarray] | np.ndarray) -> None:
        """Keep the rows of those keys that are not known yet."""
        new = {key: row for row, key in enumerate(keys) if key not in self._positions}
        if not new:
            return
        keys, values = list(new), np.array([values[row] for row in new.values()], self.dtype)
        values = values.reshape(len(new), *self.shape)
        if self.folder is not None:
            records = np.zeros(len(keys), KEY)
            records["key"] = [np.void(key) for key in keys]
            records["sum"] = [zlib.crc32(_bytes(row)) for row in values]
            own = self.folder / self._own
            if own in self._files and not own.exists():  # deleted by another process to make room
                self._own = _new_name()
                own = self.folder / self._own
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                self.store.in_use.add(own)
                self.store.make_room(values.nbytes)
                for path, content in ((own, values), (own.with_suffix(".keys"), records)):
                    with path.open("ab") as file:  # plain writes, which a full disk answers with an error
                        file.write(_bytes(content))
                self._map(own, right=True)
                return
            except OSError as error:
                self.store.give_up(error)
        self._take_up(len(self._blocks), 0, keys, values, np.full(len(keys), -1))

    def _open(self) -> None:
        """Take up what has been added by other processes."""
        for keys in sorted(self.folder.glob("*.keys")) if self.folder is not None else ():
            try:
                self._map(keys.with_suffix(".rows"))
            except OSError as error:
                if not isinstance(error, FileNotFoundError):  # deleted meanwhile to make room
                    self.store.give_up(error)

    def _map(self, path: Path, right: bool = False) -> None:
        number = self._files.get(path, len(self._blocks))
        known = len(self._blocks[number]) if path in self._files else 0
        content = path.with_suffix(".keys").read_bytes()
        count = min(len(content) // KEY.itemsize, path.stat().st_size // self.row_bytes)
        if count > known:
            records = np.frombuffer(content, KEY, count)[known:]
            mapped = np.asarray(np.memmap(path, self.dtype, "r", 0, (count, *self.shape)))
            sums = np.full(len(records), -1) if right else records["sum"].astype(np.int64)
            self._files[path] = number
            self._take_up(number, known, records["key"].tolist(), mapped, sums)

    def _take_up(self, number: int, known: int, keys: Sequence[bytes], block: np.ndarray, sums: np.ndarray) -> None:
        if number == len(self._blocks):
            self._blocks.append(block)
            self._sums.append(sums)
        else:
            self._blocks[number] = block
            self._sums[number] = np.concatenate([self._sums[number], sums])
        first = number * PLACES + known
        self._positions.update(zip(keys, range(first, first + len(keys)), strict=True))

    def _is_right(self, position: int) -> bool:
        number, place = divmod(position, PLACES)
        wanted = self._sums[number][place]
        right = wanted < 0 or zlib.crc32(_bytes(self._blocks[number][place])) == wanted
        if right:
            self._sums[number][place] = -1
        return bool(right)


def _bytes(values: np.ndarray) -> memoryview:
    return values.reshape(-1).view(np.uint8).data


def _new_name() -> str:
    """Of a file; what is computed anew comes last."""
    return f"{time.time_ns()}-{uuid.uuid4().hex[:8]}.rows"
