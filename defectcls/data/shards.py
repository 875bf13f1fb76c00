"""Photos inside tar and Parquet files: `<archive>/<photo>` is the path of one, as if the archive were a folder.

In a tar file a photo goes by its name, and in a Parquet file by its row, as 00000017; 24 bytes of each are remembered.
"""

import errno
import json
import os
import posixpath
import re
import tarfile
import threading
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from defectcls.data.samples import IMAGE_SUFFIXES, is_left_behind, writable
from defectcls.errors import UserError, one_line
from defectcls.tables import refuse

ARCHIVES = {".tar", ".parquet"}
KEY = re.compile(r"(.*/)?[^./]*", re.DOTALL)  # of webdataset: a/1 of a/1.jpg
LABELS = (".cls", ".json")  # of a key: its label, or an object of columns
LABEL_BYTES = 2**20  # at most, of a member that says a label
GROUP_BYTES = 2**29  # at most, of a row group of Parquet, which is read for each of its photos unless it was the last
_PLACES: dict[Path, tuple[np.ndarray, np.ndarray]] = {}  # hashes (photos,); offset and size, or group and row in it
_LOCK = threading.Lock()  # what one thread lists, or reads of a row group, others wait for


def file_of(path: str) -> str:
    """The file of a photo, or the archive that it is in; "" where there is neither."""
    while path and not os.path.isfile(path):  # noqa: PTH113  a path object costs more than the question
        path = "" if os.path.isdir(path) else posixpath.dirname(path)  # noqa: PTH112
    return path


def read_member(path: str) -> bytes:
    """Content of a photo in an archive.

    Raises:
        Exception: there is none, or the archive is damaged; of pyarrow any.
    """
    found = file_of(path)
    archive, key = Path(found), hash(path[len(found) + 1 :])
    with _LOCK:
        if archive not in _PLACES and archive.suffix.lower() in ARCHIVES:
            list_archive(archive)
        hashes, places = _PLACES.get(archive, (np.zeros(0), np.zeros(0)))
        at = int(np.searchsorted(hashes, key))
        if at == len(hashes) or hashes[at] != key:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        one, other = places[at].tolist()
        if archive.suffix.lower() == ".parquet":
            return _row_group(archive, one)[other].as_py() or b""
    with open(found, "rb", buffering=0) as file:  # noqa: PTH123
        file.seek(one)
        return file.read(other)


def photos_in(root: Path, files: Sequence[str], left_out: Counter[str]) -> list[str]:
    """The files, relative to `root`, and in place of each archive the photos in it."""
    archives = (name for name in files if posixpath.splitext(name)[1].lower() in ARCHIVES)
    listed = {name: list_archive(root / name, (), left_out)["path"] for name in archives}
    return [one for name in files for one in (f"{name}/" + listed[name] if name in listed else [name])]


def list_archive(path: Path, columns: Sequence[str] = (), left_out: Counter[str] | None = None) -> pd.DataFrame:
    """Of each photo its name as `path`, and such of these columns as are there, as text; nothing is decoded.

    Args:
        columns: `label`, which each has to have, and others; none: what lies beside the photos is left out.
        left_out: to which other members are added by suffix.

    Raises:
        UserError: damaged, cut off, of another kind, without photos; one lacks a label, or two have one name.
    """
    of_kind = _list_tar if path.suffix.lower() == ".tar" else _list_parquet
    try:
        rows, places = of_kind(path, columns, Counter() if left_out is None else left_out)
    except (tarfile.TarError, ArithmeticError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"cannot read the archive {path}: {one_line(error)}") from error
    if not len(places):
        raise UserError(f"the archive {path} holds no photo: leave it out")
    refuse(rows["path"][rows["path"].duplicated()], f"{path} has photos more than once")
    if columns:
        labels = rows.get("label", pd.Series("", rows.index)).fillna("")
        refuse(rows["path"][labels == ""], f"{path} has photos without a label")
    hashes = np.array([hash(name) for name in rows["path"]], np.int64)
    order = np.argsort(hashes)
    _PLACES[path] = hashes[order], places[order]
    _row_group.cache_clear()
    return rows.sort_values("path", ignore_index=True)


def _list_tar(path: Path, columns: Sequence[str], left_out: Counter[str]) -> tuple[pd.DataFrame, np.ndarray]:
    photos, places, said = list[dict[str, str]](), list[tuple[int, int]](), dict[str, dict[str, str]]()
    with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
        while (member := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # each would take a kilobyte
            name = posixpath.normpath(member.name.lstrip("/"))
            if name.startswith("../") or writable(name) != name or member.size < 0:
                raise ValueError(f"its member '{writable(name)}' leads out of it, has no size or is no UTF-8")
            if member.isdir() or any(map(is_left_behind, name.split("/"))):
                continue
            key = KEY.match(name)[0]  # type: ignore[index]
            suffix = posixpath.splitext(name)[1].lower()
            if member.isreg() and not member.sparse and suffix in IMAGE_SUFFIXES:
                photos.append({"path": name, "key": key})
                places.append((member.offset_data, member.size))
            elif name[len(key) :] in LABELS:
                if not columns:
                    continue
                file.seek(member.offset_data)
                content = file.read(min(member.size, LABEL_BYTES))
                try:
                    given = {"label": content.decode().strip()} if suffix == ".cls" else dict(json.loads(content))
                except ValueError as error:
                    raise ValueError(f"its member {name}: {error}") from error
                lower = {one.casefold(): cell for one, cell in given.items() if cell is not None}
                new = {column: str(lower[column]) for column in columns if column in lower}
                if (known := said.setdefault(key, new)) | new != new | known:
                    raise ValueError(f"it says two things of {key}")
                known |= new
            else:
                left_out[suffix or "without suffix"] += 1
        file.seek(tar.offset)
        if (rest := file.read(LABEL_BYTES)).strip(b"\0") or not rest:  # which tarfile takes for its end
            raise ValueError(f"it is cut off or damaged at byte {tar.offset:,}")
    for photo in photos:
        photo |= said.get(photo["key"], {})
    rows = pd.DataFrame(photos, columns=None if photos else ["path", "key"])
    if columns:
        refuse(rows["path"][rows["key"].duplicated()], f"{path} has a second photo of one label, such as a mask")
        refuse(sorted(said.keys() - set(rows["key"])), f"{path} has labels of photos that it lacks")
    return rows, np.array(places, np.int64)


def _list_parquet(path: Path, columns: Sequence[str], _: Counter[str]) -> tuple[pd.DataFrame, np.ndarray]:
    import pyarrow.parquet as pq

    _photos_of(path)
    with pq.ParquetFile(path) as file:
        groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
        if (most := max((group.total_byte_size for group in groups), default=0)) > GROUP_BYTES:
            raise ValueError(f"a row group of it has {most / 1e9:.1f} GB: write it with row_group_size=1000")
        names = [name for name in file.schema_arrow.names if name.casefold() in columns]
        rows = file.read(names).to_pandas(ignore_metadata=True).rename(columns=str.casefold).astype("string")
    sizes = np.array([group.num_rows for group in groups], np.int64)
    number, start = np.repeat([np.arange(len(sizes)), sizes.cumsum() - sizes], sizes, axis=1)
    rows.insert(0, "path", [f"{row:08d}" for row in range(len(number))])
    return rows, np.stack([number, np.arange(len(number)) - start], axis=1)


@lru_cache(maxsize=2)  # what is read in order, by some threads, is of two
def _row_group(path: Path, number: int) -> Any:
    """Its photos, an array of pyarrow."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        cells = file.read_row_group(number, [_photos_of(path)]).column(0)
    return pc.struct_field(cells, "bytes") if cells.type.num_fields else cells


def _photos_of(path: Path) -> str:
    """The column of photos: their bytes, or a struct with these as `bytes`, as Hugging Face's datasets have it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema, binary = pq.read_schema(path), (pa.binary(), pa.large_binary())
    parts = ((one.name, part) for one in schema for part in one.flatten())  # a struct in its fields
    photos = [name for name, part in parts if part.name in (name, f"{name}.bytes") and part.type in binary]
    if len(photos) != 1:
        raise ValueError(f"it needs one column of photos, bytes or a struct with bytes, and has {len(photos)}")
    return photos[0]


def is_archive(path: Path) -> bool:
    """Whether photos are in the file."""
    try:
        return path.suffix.lower() == ".tar" or (path.suffix.lower() == ".parquet" and bool(_photos_of(path)))
    except (OSError, ValueError):  # told by who reads it as a table
        return False
