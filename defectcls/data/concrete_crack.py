"""Concrete Crack Images for Classification, Ç. F. Özgenel 2019, doi 10.17632/5y9wdsg2zt.2, CC BY 4.0.

    root/
        Negative/00001.jpg …      20,000 patches of sound concrete, 227 x 227 px
        Positive/00001.jpg …      20,000 patches with a crack

The patches were cut from 458 photos whose names are lost, and 1,598 of them are byte-identical copies.
"""

from pathlib import Path

import pandas as pd

from defectcls.data.samples import images_expected_in, sample_table

FOLDERS = {"Negative": False, "Positive": True}


def list_samples(root: Path) -> pd.DataFrame:
    """The sample table (see `defectcls.data.samples`)."""
    images, left_out = images_expected_in(root, FOLDERS, "{Negative,Positive}/<image>")
    rows = ({"path": path, "defective": defective} for folder, defective in FOLDERS.items() for path in images[folder])
    return sample_table(rows, left_out)
