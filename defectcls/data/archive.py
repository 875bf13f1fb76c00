"""Your own photos in tar files, as webdataset has them, or in Parquet files."""

from collections import Counter

import pandas as pd

from defectcls.data.datamodule import DefectDataModule
from defectcls.data.samples import Names, images_in
from defectcls.data.shards import ARCHIVES, list_archive
from defectcls.data.table import COLUMNS, labelled
from defectcls.errors import UserError
from defectcls.tables import checked


class Archive(DefectDataModule):
    """Your own photos in archives, at any depth, which are neither unpacked nor written to.

        root/shard-000.tar          0001.jpg with its label in 0001.cls, or in 0001.json: {"label": "scratch", …}
        root/shard-001.parquet      a column of photos, bytes or a struct with bytes; and a column label, …

    The other columns of `defectcls.data.table.Table` but `mask` may stand beside `label`.

    Args:
        sound: the label or labels of sound parts.
        labels: those that may occur; None: any.
    """

    sound: Names
    labels: Names | None

    def list_samples(self) -> pd.DataFrame:
        left_out, columns = Counter[str](), [name for name in COLUMNS if name not in ("path", "mask")]
        archives = images_in(self.root, "", left_out, suffixes=ARCHIVES)
        if not archives:
            what = "(none that is compressed, as .tar.gz): dataset=folder takes photos in folders"
            raise UserError(f"{self.root} holds no .tar or .parquet file {what}")
        listed = [list_archive(self.root / name, columns, left_out) for name in archives]
        listed = [rows.assign(path=f"{name}/" + rows["path"]) for name, rows in zip(archives, listed, strict=True)]
        rows = checked(pd.concat(listed).fillna("").astype(str), self.root, COLUMNS)
        samples = labelled(rows, self.root, self.sound, self.labels)
        samples.attrs["left_out"] = left_out
        return samples
