"""Tables of predictions that grow batch by batch: .csv, .jsonl or .parquet."""

import csv
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pandas as pd

from defectcls.errors import UserError

Append = Callable[[pd.DataFrame], None]

SUFFIXES = (".csv", ".jsonl", ".parquet")
ROW_GROUP = 4096  # rows of a Parquet table that are compressed and read together


def refuse_output(output: Path, overwrite: bool) -> None:
    """To be asked before anything is computed.

    Raises:
        UserError: an output of no known kind, that is there already, or that pyarrow is missing for.
    """
    if output.suffix.lower() not in SUFFIXES:
        raise UserError(f"output={output} should end in one of {', '.join(SUFFIXES)}")
    if output.is_dir():
        raise UserError(f"output={output} is a folder: give a file in it, such as {output / 'predictions.csv'}")
    if output.exists() and not overwrite:
        raise UserError(f"output={output} exists: give another name, or overwrite=true")
    if output.suffix.lower() == ".parquet":
        try:
            import pyarrow  # noqa: F401
        except ImportError:
            raise UserError(f"writing {output} needs pyarrow: pip install 'defectcls[table]'") from None
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output.parent):
            pass
    except OSError as error:
        raise UserError(f"output={output} cannot be written: {error.strerror}") from None


@contextmanager
def written_by_and_by(output: Path) -> Iterator[Append]:
    """A function that appends the rows of a table; `<output>.part` holds them until all are written.

    A killed process leaves the part; that of a .parquet cannot be read without its end.
    """
    part = output.with_name(f"{output.name}.part")
    opened = _parquet(part) if output.suffix.lower() == ".parquet" else _text(part, output.suffix.lower())
    with opened as append:
        yield append
    part.replace(output)


@contextmanager
def _text(part: Path, suffix: str) -> Iterator[Append]:
    with open_text(part, "w") as file:
        yield lambda rows: write_text(rows, file, suffix)


@contextmanager
def _parquet(part: Path) -> Iterator[Append]:
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    held: list[pd.DataFrame] = []
    writer: ParquetWriter | None = None

    def flush() -> None:
        nonlocal writer
        table = pyarrow.Table.from_pandas(pd.concat(held, ignore_index=True), preserve_index=False)
        writer = writer or ParquetWriter(part, table.schema)
        writer.write_table(table)
        held.clear()

    def append(rows: pd.DataFrame) -> None:
        held.append(rows)
        if sum(map(len, held)) >= ROW_GROUP:
            flush()

    try:
        yield append
    finally:  # what was computed before a failure is kept
        if held:
            flush()
        if writer is not None:
            writer.close()


def open_text(path: Path, mode: str) -> IO[str]:
    """For `write_text`."""
    return path.open(mode, encoding="utf-8", newline="")


def write_text(rows: pd.DataFrame, file: IO[str], suffix: str) -> None:
    """Append rows to a .csv, with a header where it is empty, or .jsonl file, so that every bit can be restored.

    The rows are handed to the system at once: a killed process loses none.
    """
    if suffix == ".csv":  # text in quotes: else a carriage return within a name would end the line
        rows.to_csv(file, index=False, header=file.tell() == 0, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    else:  # pandas' own to_json cuts numbers off after 15 digits
        for row in rows.to_dict("records"):
            plain = {name: None if value != value else value for name, value in row.items()}  # NaN is no JSON
            file.write(json.dumps(plain, ensure_ascii=False) + "\n")
    file.flush()


def columns_of(output: Path) -> list[str]:
    """Of a .csv or .jsonl file.

    Raises:
        UserError: the file is of another kind.
    """
    with _readable(output) as file:
        return next(csv.reader(file), []) if output.suffix.lower() == ".csv" else list(json.loads(file.readline()))


def read_rows(output: Path) -> Iterator[dict[str, str]]:
    """The rows of a .csv or .jsonl file, one after another; numbers of a .csv as text.

    Raises:
        UserError: the file is of another kind.
    """
    with _readable(output) as file:
        yield from csv.DictReader(file) if output.suffix.lower() == ".csv" else map(json.loads, file)


def latest(output: Path) -> pd.DataFrame:
    """What `Tally` takes of a .csv or .jsonl file: of each photo its last row."""
    columns = ["path", "decision", "prediction", "score", "error"]
    last = {row["path"]: [row[column] for column in columns] for row in read_rows(output)}
    rows = pd.DataFrame(last.values(), columns=columns)
    return rows.assign(score=pd.to_numeric(rows["score"]))


@contextmanager
def _readable(output: Path) -> Iterator[IO[str]]:
    try:
        with open_text(output, "r") as file:
            yield file
    except (ValueError, TypeError, csv.Error) as error:  # no UTF-8, no JSON, or not of rows
        raise UserError(f"output={output} is no table of predictions: {error}") from error


def cut_torn_row(output: Path) -> None:
    """Take away the last row of a .csv or .jsonl file if it was not written to its end."""
    quoted = output.suffix.lower() == ".csv"  # there a name within quotes may hold the end of a line
    whole = length = quotes = 0
    with output.open("r+b") as file:
        for line in file:
            length += len(line)
            quotes += quoted * line.count(b'"')
            if line.endswith(b"\n") and quotes % 2 == 0:
                whole = length
        file.truncate(whole)
