"""What a person gives to be predicted: one photo, a folder, a pattern, or a table of paths."""

import glob
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from defectcls.data.samples import LEFT_BEHIND, images_in, what_is_there
from defectcls.data.shards import ARCHIVES, file_of, is_archive, photos_in
from defectcls.errors import UserError
from defectcls.tables import read_table, refuse

TABLES = (".csv", ".tsv", ".parquet")


class Photos(NamedTuple):
    """Files by name, relative to a folder, with forward slashes; a name may also be absolute."""

    root: Path
    names: list[str]
    left_out: dict[str, int]  # files beside them in the folder, by suffix


def list_inputs(given: str, root: Path | None) -> Photos:
    """The photos that `given` stands for; whether they can be read is not looked at.

    Args:
        given: a folder, whose images at any depth are taken, or where it has none, those in its archives; a photo; an
            archive; a pattern such as `photos/**/*.png`; or a .csv, .tsv or .parquet table with a column `path`.
        root: folder that the paths of a table are relative to; None: where the table lies.

    Raises:
        UserError: nothing is there, no images, or a table without paths.
    """
    path = Path(given)
    left_out = Counter[str]()
    if path.suffix.lower() in TABLES and path.is_file() and not is_archive(path):
        return _photos_of_table(path, path.parent if root is None else root)
    if root is not None:
        raise UserError(f"root={root} is of the paths in a table, and input={given} is none: leave root out")
    if path.is_dir():
        names = images_in(path, "", left_out)
        if not names and left_out.keys() & ARCHIVES:
            left_out.clear()
            names = photos_in(path, images_in(path, "", left_out, suffixes=ARCHIVES), left_out)
        if not names:
            raise UserError(f"the folder {path} {what_is_there(path)}")
        return Photos(path, names, dict(left_out))
    if path.is_file():
        return Photos(path.parent, photos_in(path.parent, [path.name], left_out), dict(left_out))
    found = map(Path, sorted(set(glob.glob(given, recursive=True))))  # noqa: PTH207  a pattern may be absolute
    names = [m.as_posix() for m in found if m.is_file() and LEFT_BEHIND.isdisjoint(map(str.casefold, m.parts))]
    if not names:
        kinds = "a photo, a folder, a pattern such as photos/*.png, or a table"
        raise UserError(f"input={given} is not there: give {kinds}")
    return Photos(Path(), photos_in(Path(), names, left_out), dict(left_out))


def _photos_of_table(table: Path, root: Path) -> Photos:
    names = read_table(table, ("path",), required=("path",))["path"].str.replace("\\", "/")
    refuse(names[names.duplicated()].unique(), f"{table} has photos more than once")
    if not any(file_of(f"{root}/{name}") for name in names):
        raise UserError(f"no photo of {table} is in {root}: give root=<the folder that its paths are relative to>")
    return Photos(root, names.tolist(), {})
