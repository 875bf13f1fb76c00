"""Your own table of images: a CSV file (UTF-8, commas, a header) or a Parquet file.

    path,label                      required; paths relative to `root`
    a/1.png,good
    b/2.png,scratch

A column `defective` (0, 1, true, false) says which parts an inspector would reject; without it, the labels in `sound`
are sound. The sample table's columns `defect_type` (the label where empty), `category`, `group`, `split` and `mask`
are taken over where they are there; others are not read.
"""

import ntpath
import os
import posixpath
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from defectcls.data.samples import OPTIONAL_COLUMNS, SPLIT_NAMES, sample_table
from defectcls.errors import UserError, did_you_mean

DEFECTIVE_VALUES = {"0": False, "false": False, "1": True, "true": True}


def list_samples(root: Path, table: Path, sound: str | list[str], classes: list[str] | None) -> pd.DataFrame:
    """The sample table (see `defectcls.data.samples`) of the images in `table`.

    Raises:
        UserError: the file cannot be read, a column is missing, or a cell cannot be used; no row is left out.
    """
    rows = read_table(table)
    for column in ("path", "label"):
        if column not in rows:
            hint = did_you_mean(column, rows.columns)
            raise UserError(f"{table} needs a column '{column}', it has: {', '.join(rows.columns)}{hint}")
        empty = rows.index[rows[column] == ""] + 1
        refuse(empty, f"{table} has no {column} in some rows (counted from 1, after the header)")
    unknown = [] if classes is None else sorted(set(rows["label"]) - set(classes))
    refuse(unknown, f"{table} has labels that the classes do not have")

    for column in rows.columns.intersection(["path", "mask"]):
        cells = rows[column].tolist()
        refuse(filter(is_absolute, cells), f"{table} has absolute {column}s, not relative to root={root}")
        cells = [posixpath.normpath(cell.replace("\\", "/")) if cell else "" for cell in cells]
        missing = (cell for cell in cells if cell and not os.path.isfile(f"{root}/{cell}"))  # noqa: PTH113  a million
        refuse(missing, f"{table} has {column}s that are not in root={root}")
        rows[column] = cells
    refuse(rows["path"][rows["path"].duplicated()].unique(), f"{table} has images more than once")

    if "split" in rows:
        refuse(sorted(set(rows["split"]) - SPLIT_NAMES.keys()), f"{table} has splits that are not train, val or test")
        rows["split"] = rows["split"].map(SPLIT_NAMES)
    rows["defective"] = which_defective(rows, table, [sound] if isinstance(sound, str) else sound)
    named = rows.get("defect_type", rows["label"])
    rows["defect_type"] = named.where(named != "", rows["label"])
    kept = rows.columns.intersection(["path", "defective", *OPTIONAL_COLUMNS])
    return sample_table(rows[kept])


def read_table(table: Path) -> pd.DataFrame:
    """Every cell as text, "" where empty: a class may be called NA, None or 007."""
    if not table.is_file():
        raise UserError(f"table={table} is not a file")
    try:
        if table.suffix.lower() == ".csv":
            rows = pd.read_csv(table, dtype=str, keep_default_na=False, skipinitialspace=True)
            if not isinstance(rows.index, pd.RangeIndex):  # pandas would take the first column for an index
                raise UserError(f"{table} has more cells in a row than columns in the header")
        elif table.suffix.lower() == ".parquet":
            rows = pd.read_parquet(table).astype("string").fillna("").astype(str)
        else:
            raise UserError(f"table={table} should be a .csv or a .parquet file")
    except ImportError:
        raise UserError(f"reading {table} needs pyarrow: pip install 'defectcls[table]'") from None
    except ValueError as error:  # what pandas and pyarrow raise for a broken file
        raise UserError(f"cannot read {table}: {str(error).strip()}") from error
    if rows.empty:
        raise UserError(f"{table} has no rows")
    return rows.reset_index(drop=True)


def which_defective(rows: pd.DataFrame, table: Path, sound: list[str]) -> pd.Series:
    """The column `defective`, as bool, or what the labels say."""
    if "defective" in rows:
        values = rows["defective"].str.lower()
        unknown = sorted(set(values) - DEFECTIVE_VALUES.keys())
        refuse(unknown, f"{table} has values of 'defective' that are not 0, 1, true or false")
        return values.map(DEFECTIVE_VALUES).astype(bool)
    labels = sorted(set(rows["label"]))
    if not set(labels) & set(sound):
        raise UserError(
            f"{table} has the labels {', '.join(labels[:10])}, none of them sound: name the sound ones, sound=[...], "
            "or give a column 'defective'"
        )
    return ~rows["label"].isin(sound)


def is_absolute(path: str) -> bool:
    """Whether the path starts at a root, of this system or of Windows, where tables often come from."""
    return path.startswith(("/", "\\")) or ntpath.isabs(path)


def refuse(found: Iterable, sentence: str) -> None:
    """Raise the sentence with the first three of what was found, and how many they are."""
    names = [str(name) or "(empty)" for name in found]
    if names:
        more = f" … ({len(names)} in all)" if len(names) > 3 else ""
        raise UserError(f"{sentence}: {', '.join(names[:3])}{more}")
