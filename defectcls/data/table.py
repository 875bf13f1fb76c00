"""Your own table of images: a CSV file with a header or a Parquet file; see `defectcls.tables` for the kinds."""

import ntpath
import posixpath
from pathlib import Path

import pandas as pd

from defectcls.data.datamodule import DefectDataModule
from defectcls.data.samples import Names, folded
from defectcls.data.shards import file_of
from defectcls.errors import UserError
from defectcls.tables import OPTIONAL_COLUMNS, read_table, refuse

COLUMNS = ("path", "label", "defective", *OPTIONAL_COLUMNS)


class Table(DefectDataModule):
    """Your own table of images.

        path,label                      required; paths relative to `root`
        a/1.png,good
        b/2.png,scratch

    A column `defective` (0, 1, true, false, yes, no) says which parts an inspector would reject; without it, the labels
    in `sound` are sound. The sample table's columns `defect_type` (the label where empty), `category`, `group`, `split`
    and `mask` are taken over where they are there; others are not read.

    Args:
        table: the file.
        sound: the label or labels of sound parts.
        labels: those that may occur; None: any.
    """

    table: Path
    sound: Names
    labels: Names | None

    def list_samples(self) -> pd.DataFrame:
        table, root = self.table, self.root
        rows = read_table(table, COLUMNS, required=("path", "label"))
        for column in rows.columns.intersection(["path", "mask"]):
            cells = [posixpath.normpath(cell.replace("\\", "/")) if cell else "" for cell in rows[column]]
            outside = (cell for cell in cells if cell.startswith(("/", "../")) or ntpath.isabs(cell))
            refuse(outside, f"{table} has {column}s outside root={root}")
            missing = (cell for cell in cells if cell and not file_of(f"{root}/{cell}"))
            refuse(missing, f"{table} has {column}s that are not in root={root}")
            rows[column] = cells
        refuse(rows["path"][rows["path"].duplicated()].unique(), f"{table} has images more than once")
        return labelled(rows, table, self.sound, self.labels)


def labelled(rows: pd.DataFrame, table: Path, sound: list[str], labels: list[str] | None) -> pd.DataFrame:
    """The sample table of rows with a `label`; see `Table`."""
    if labels is not None:
        known = rows["label"].map(folded).isin(set(map(folded, labels)))
        refuse(rows["label"][~known].unique(), f"{table} has labels that dataset.labels does not name")
    if "defective" not in rows:
        rows["defective"] = ~rows["label"].map(folded).isin(set(map(folded, sound)))
        if rows["defective"].all():
            found = ", ".join(sorted(set(rows["label"]))[:10])
            raise UserError(f"{table} has the labels {found}, none of them sound: dataset.sound=[<label>]")
    named = rows.get("defect_type", rows["label"])
    rows["defect_type"] = named.where(named != "", rows["label"])
    return rows[rows.columns.intersection(["path", "defective", *OPTIONAL_COLUMNS])]
