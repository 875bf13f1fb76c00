"""Tables of any tool, CSV or Parquet, in which every cell is text, "" where empty.

Of photos (the sample table) and of what a model says of them (the predictions table) alike: `defective` is a bool in
both, and `split` train, val or test.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from defectcls.errors import UserError, did_you_mean

SOUND, DEFECTIVE = "sound", "defective"
OPTIONAL_COLUMNS = ("defect_type", "category", "group", "split", "mask")
SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}  # in any case
TRUTH = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False, "yes": True, "no": False}
WORDS: dict[str, tuple[dict[str, Any], str]] = {  # that a column may hold, and how to tell them
    "defective": (TRUTH, "0, 1, true, false, yes or no"),
    "split": (SPLIT_NAMES, "train, val or test"),
}


def read_table(table: Path, columns: Sequence[str], required: Sequence[str] = ()) -> pd.DataFrame:
    """The rows as text: a class may be called NA, None or 007.

    Args:
        table: .parquet, or text in UTF-8 with commas, semicolons or tabs between the cells.
        columns: whose names may be written in any case.
        required: those that must be there, with a text in every row.

    Raises:
        UserError: it cannot be read, lacks a column or a text or has a column twice, has no rows, or another word in
            `defective` or `split`.
    """
    if not table.is_file():
        raise UserError(f"table={table} is not a file")
    try:
        if table.suffix.lower() == ".parquet":
            rows = pd.read_parquet(table).astype("string").fillna("").astype(str)
        else:
            with table.open(encoding="utf-8") as file:
                sign = max(",;\t", key=file.readline().count)
            cells = pd.read_csv(table, sep=sign, header=None, dtype=str, keep_default_na=False, skipinitialspace=True)
            rows = cells[1:].set_axis(cells.iloc[0].tolist(), axis=1)  # a name that stands there twice is left as it is
    except ImportError:
        raise UserError(f"reading {table} needs pyarrow: pip install 'defectcls[table]'") from None
    except (OSError, ValueError) as error:  # what pandas and pyarrow raise for a broken file
        raise UserError(f"cannot read {table} as Parquet or as CSV in UTF-8: {str(error).strip()}") from error
    return checked(rows, table, columns, required)


def checked(rows: pd.DataFrame, table: Path, columns: Sequence[str], required: Sequence[str] = ()) -> pd.DataFrame:
    """Such rows, of texts, with names and words as they are written here; see `read_table`."""
    names = [name.casefold() if name.casefold() in columns else name for name in rows.columns]
    refuse({name for name in names if names.count(name) > 1}, f"{table} has a column twice, of which one must go")
    rows = rows.set_axis(names, axis=1).reset_index(drop=True)
    if rows.empty:
        raise UserError(f"{table} has no rows")
    for column in (column for column in required if column not in names):
        hint = did_you_mean(column, names) or f"; call one of them {column}"
        raise UserError(f"{table} needs a column '{column}', it has: {', '.join(names)}{hint}")
    for column in (column for column in WORDS if column in columns and column in names):
        meanings, told = WORDS[column]
        known = rows[column].str.casefold().map(meanings)
        refuse(sorted(set(rows[column][known.isna()])), f"{table} has values of '{column}' that are not {told}")
        rows[column] = known.astype(bool) if column == "defective" else known
    for column in required:
        empty = rows.index[rows[column] == ""] + 1
        refuse(empty, f"{table} has no {column} in some rows (counted from 1, after the header)")
    return rows


def numbers(cells: pd.Series, table: Path) -> np.ndarray:
    """float64 (rows,), every bit as it was written.

    Raises:
        UserError: a cell is empty, or no finite number.
    """
    try:
        found = cells.to_numpy(object).astype(np.float64)  # by Python's float, which is exact, as pandas' is not
    except ValueError:
        found = pd.to_numeric(cells, errors="coerce").to_numpy(np.float64)
    if not np.isfinite(found).all():
        row = int(np.flatnonzero(~np.isfinite(found))[0])
        given = f"is '{cells.iloc[row]}'" if cells.iloc[row] else "is missing"
        raise UserError(f"{table}: {cells.name} {given} in row {row + 1} (after the header); it must be a number")
    return found


def refuse(found: Iterable, sentence: str) -> None:
    """Raise the sentence with the first three of what was found, and how many they are."""
    names = [str(name) or "(empty)" for name in found]
    if names:
        more = f" … ({len(names)} in all)" if len(names) > 3 else ""
        raise UserError(f"{sentence}: {', '.join(names[:3])}{more}")
