"""Tables of predictions that grow batch by batch: CSV, of which a killed process loses no row."""

import csv
from pathlib import Path

import pandas as pd

from defectcls.errors import UserError


def refuse_output(output: Path, overwrite: bool) -> None:
    """To be asked before anything is computed.

    Raises:
        UserError: an output that is no .csv, or that is there already.
    """
    if output.suffix.lower() != ".csv":
        raise UserError(f"output={output} should end in .csv")
    if output.exists() and not overwrite:
        raise UserError(f"output={output} exists: give another name, or overwrite=true")
    output.parent.mkdir(parents=True, exist_ok=True)


def append(rows: pd.DataFrame, output: Path) -> None:
    """The rows are handed to the system at once, with a header where there are none yet; every bit can be restored."""
    with output.open("ab") as file:  # text in quotes: else a carriage return within a name ends the line
        text = rows.to_csv(index=False, header=file.tell() == 0, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
        file.write(text.encode())


def read_output(output: Path) -> pd.DataFrame:
    """The last row of each photo, as text but for the score."""
    rows = pd.read_csv(output, dtype=str, keep_default_na=False).drop_duplicates("path", keep="last")
    return rows.assign(score=pd.to_numeric(rows["score"]))
