"""Concrete Crack Images for Classification, Ç. F. Özgenel 2019, doi 10.17632/5y9wdsg2zt.2, CC BY 4.0."""

import pandas as pd

from defectcls.data.datamodule import DefectDataModule
from defectcls.data.samples import samples_in


class ConcreteCrack(DefectDataModule):
    """Patches of concrete walls, sound or cracked, 227 x 227 px.

        root/
            Negative/00001.jpg …      20,000 sound patches
            Positive/00001.jpg …      20,000 with a crack

    The patches were cut from 458 photos whose names are lost, and 1,598 of them are byte-identical copies.
    """

    def list_samples(self) -> pd.DataFrame:
        folders = {"Negative": {"defective": False}, "Positive": {"defective": True}}
        return samples_in(self.root, folders, "{Negative,Positive}/<image>")
