"""Tables of predictions that grow batch by batch: CSV, of which a killed process loses no row."""

import csv
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import pandas as pd

from defectcls.errors import UserError

Append = Callable[[pd.DataFrame], None]


def refuse_output(output: Path, overwrite: bool) -> None:
    """To be asked before anything is computed.

    Raises:
        UserError: an output that is no .csv, that is there already, or that cannot be written.
    """
    if output.suffix.lower() != ".csv":
        raise UserError(f"output={output} should end in .csv")
    if output.is_dir():
        raise UserError(f"output={output} is a folder: give a file in it, such as {output / 'predictions.csv'}")
    if output.exists() and not overwrite:
        raise UserError(f"output={output} exists: give another name, or overwrite=true")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output.parent):
            pass
    except OSError as error:
        raise UserError(f"output={output} cannot be written: {error.strerror}") from None


@contextmanager
def appending(output: Path, mode: Literal["a", "w"] = "a") -> Iterator[Append]:
    """A function that appends the rows of a table, with a header where the file is empty; every bit can be restored.

    The rows are handed to the system at once.
    """
    with output.open(mode, encoding="utf-8", newline="") as file:

        def append(rows: pd.DataFrame) -> None:  # text in quotes: else a carriage return within a name ends the line
            header = file.tell() == 0
            rows.to_csv(file, index=False, header=header, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
            file.flush()

        yield append


@contextmanager
def written_by_and_by(output: Path) -> Iterator[Append]:
    """As `appending`; `<output>.part` holds the rows until all are written, and is what a killed process leaves."""
    part = output.with_name(f"{output.name}.part")
    with appending(part, "w") as append:
        yield append
    part.replace(output)


def read_output(output: Path) -> pd.DataFrame:
    """The last row of each photo, as text but for the score. None are there yet where there is no file."""
    if not output.is_file() or not output.stat().st_size:
        return pd.DataFrame(columns=["path", "decision", "prediction", "score", "error"])
    rows = pd.read_csv(output, dtype=str, keep_default_na=False).drop_duplicates("path", keep="last")
    return rows.assign(score=pd.to_numeric(rows["score"]))
