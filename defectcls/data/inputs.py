"""What a person gives to be predicted: one photo, a folder, a pattern, or a table of paths."""

import glob
import logging
import os
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from defectcls.data.samples import IMAGE_SUFFIXES, LEFT_BEHIND, counted, images_in
from defectcls.errors import UserError
from defectcls.tables import read_table, refuse

log = logging.getLogger(__name__)

TABLES = (".csv", ".tsv", ".parquet")
LOOKED_FOR = 100  # photos of a table, one of which is to be there


class Photos(NamedTuple):
    """Files by name, relative to a folder, with forward slashes; a name may also be absolute."""

    root: Path
    names: list[str]
    left_out: dict[str, int]  # files beside them in the folder, by suffix


def list_inputs(given: str, root: Path | None) -> Photos:
    """The photos that `given` stands for; whether they can be read is not looked at.

    Args:
        given: a folder, whose images at any depth are taken; a photo; a pattern such as `photos/**/*.png`; or a .csv,
            .tsv or .parquet table with a column `path`.
        root: folder that the paths of a table are relative to; None: where the table lies.

    Raises:
        UserError: nothing is there, no images, or a table without paths.
    """
    path = Path(given)
    if path.suffix.lower() in TABLES and path.is_file():
        return _photos_of_table(path, path.parent if root is None else root)
    if root is not None:
        raise UserError(f"root={root} is of the paths in a table, and input={given} is none: leave root out")
    if path.is_dir():
        left_out = Counter[str]()
        names = images_in(path, "", left_out)
        if not names:
            suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
            only = f", only {counted(left_out)}" if left_out else ""
            raise UserError(f"the folder {path} holds no image{only}: {suffixes} count as such")
        return Photos(path, names, dict(left_out))
    if path.is_file():
        return Photos(path.parent, [path.name], {})
    if not glob.has_magic(given):
        raise UserError(
            f"input={given} does not exist: give a photo, a folder, a pattern such as photos/*.png, or a CSV"
        )
    # A folder may be called `line [1]`: what is there under the very name is no pattern.
    there = next(folder for folder in path.parents if folder.exists())
    pattern, asked = os.path.join(glob.escape(str(there)), path.relative_to(there)), set(path.parts)  # noqa: PTH118
    matches = (match for match in glob.iglob(pattern, recursive=True) if os.path.isfile(match))  # noqa: PTH113, PTH207
    found = sorted(m for m in matches if LEFT_BEHIND.isdisjoint(map(str.casefold, set(Path(m).parts) - asked)))
    if not found:
        raise UserError(f"input={given} matches no file: ** stands for any folders, * for any part of a name")
    return Photos(Path(), [Path(match).as_posix() for match in found], {})


def _photos_of_table(table: Path, root: Path) -> Photos:
    rows = read_table(table, ("path",), required=("path",))
    refuse((f"row {row + 1}" for row in rows.index[rows["path"] == ""]), f"{table} has rows without a path")
    names = rows["path"].str.replace("\\", "/").drop_duplicates().tolist()
    if len(names) < len(rows):
        log.info("%s: rows that repeat a path count once: %d", table.name, len(rows) - len(names))
    if not any((root / name).is_file() for name in names[:LOOKED_FOR]):
        raise UserError(
            f"{root / names[0]}, the first photo of {table}, is not there, nor are the next: give "
            "root=<the folder that its paths are relative to>"
        )
    return Photos(root, names, {})
