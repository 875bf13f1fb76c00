"""Tables of any tool: how their text is written, and which column is which. Every cell is text, "" where empty.

Of photos (the sample table) and of what a model says of them (the predictions table) alike: `defective` is a bool in
both, and `split` train, val or test.
"""

import codecs
import csv
import io
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from defectcls.errors import UserError, did_you_mean

log = logging.getLogger(__name__)

SOUND, DEFECTIVE = "sound", "defective"
OPTIONAL_COLUMNS = ("defect_type", "category", "group", "split", "mask")
# How people name the folders and cells of a split, in any case.
SPLIT_NAMES = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val"}
SPLIT_NAMES |= {"test": "test", "testing": "test"}
TRUTH = {"true": True, "false": False, "1": True, "0": False, "1.0": True, "0.0": False, "yes": True, "no": False}
# What other tools call a column, without case, spaces and signs between the words.
OTHER_NAMES = {
    "path": ("path", "file", "filename", "filepath", "image", "imagename", "imagepath", "imagefile"),
    "label": ("label", "class", "classname", "choice", "target"),
}
MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
BETWEEN = {",": "", ";": "';' between cells", "\t": "tabs between cells"}
HEADER = 1 << 20  # letters at most


def read_table(table: Path, columns: Sequence[str]) -> pd.DataFrame:
    """The rows as text: a class may be called NA, None or 007. What was assumed of a text table is said in one line.

    Args:
        columns: to be found also where another tool writes them otherwise and the meaning is beyond doubt.

    Raises:
        UserError: no .parquet and no text, one that cannot be read, a column twice, no rows, or another word in
            `defective` or `split`.
    """
    if not table.is_file():
        raise UserError(f"table={table} is not a file")
    assumed: list[str] = []
    try:
        if table.suffix.lower() == ".parquet":
            rows = pd.read_parquet(table).astype("string").fillna("").astype(str)
        else:
            rows, assumed = _read_text(table)
    except ImportError:
        raise UserError(f"reading {table} needs pyarrow: pip install 'defectcls[table]'") from None
    except (OSError, ValueError, csv.Error) as error:  # what pandas and pyarrow raise for a broken file
        raise UserError(f"cannot read {table}: {str(error).strip()}") from error
    for column in columns:
        found = [name for name in rows.columns if _plain(name) in OTHER_NAMES.get(column, (_plain(column),))]
        if column not in rows and len(found) == 1:
            rows = rows.rename(columns={found[0]: column})
            assumed.append(f"'{found[0]}' taken for {column}")
    if assumed:
        log.info("%s: %s", table.name, ", ".join(assumed))
    if rows.empty:
        raise UserError(f"{table} has no rows")
    rows = rows.reset_index(drop=True)
    words: dict[str, dict[str, Any]] = {"defective": TRUTH, "split": SPLIT_NAMES}
    for column in (column for column in words if column in columns and column in rows):
        known = rows[column].str.casefold().map(words[column])
        told = "0, 1, true, false, yes or no" if column == "defective" else "train, val or test"
        refuse(sorted(set(rows[column][known.isna()])), f"{table} has values of '{column}' that are not {told}")
        rows[column] = known.astype(bool) if column == "defective" else known
    return rows


def _read_text(table: Path) -> tuple[pd.DataFrame, list[str]]:
    """The rows, and what was assumed where it is not UTF-8 with commas."""
    content = table.read_bytes()
    encoding = next((name for mark, name in MARKS.items() if content.startswith(mark)), "utf-8")
    if encoding == "utf-8" and b"\0" in content:
        raise ValueError("it is no text: save it as CSV UTF-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError:
        encoding, text = "cp1252", content.decode("cp1252")
    headers = {sign: next(csv.reader(io.StringIO(text[:HEADER], newline=""), delimiter=sign), []) for sign in BETWEEN}
    # By which there is a column of paths, or else by which there are the most columns.
    with_path = {sign: any(_plain(name) in OTHER_NAMES["path"] for name in names) for sign, names in headers.items()}
    sign = max(headers, key=lambda sign: (with_path[sign], len(headers[sign])))
    refuse(
        {name for name in headers[sign] if headers[sign].count(name) > 1},
        f"{table} has a column twice, of which one must go",
    )
    utf8 = io.BytesIO(content if encoding == "utf-8" else text.encode())
    rows = pd.read_csv(utf8, sep=sign, dtype=str, keep_default_na=False, skipinitialspace=True)
    if not isinstance(rows.index, pd.RangeIndex):  # pandas would take the first column for an index
        raise UserError(f"{table} has more cells in a row than columns in the header")
    assumed = ["" if encoding.startswith("utf-8") else f"read as {encoding}", BETWEEN[sign]]
    return rows, list(filter(None, assumed))


def missing_column(table: Path, column: str, rows: pd.DataFrame) -> UserError:
    """The sentence for a table without a column that it needs."""
    hint = did_you_mean(column, rows.columns)
    return UserError(
        f"{table} needs a column '{column}', it has: {', '.join(rows.columns)}{hint or f'; call one of them {column}'}"
    )


def numbers(cells: pd.Series, table: Path) -> np.ndarray:
    """float64 (rows,), every bit as it was written; a decimal comma is understood.

    Raises:
        UserError: a cell is empty, or no finite number.
    """
    try:
        found = cells.to_numpy(object).astype(np.float64)  # by Python's float, which is exact, as pandas' is not
    except ValueError:
        found = pd.to_numeric(cells.str.replace(",", "."), errors="coerce").to_numpy(np.float64)
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


def _plain(name: str) -> str:
    return "".join(letter for letter in name.casefold() if letter not in " _-")
