"""Castings of pump impellers, CC BY-NC-ND 4.0,
https://www.kaggle.com/datasets/ravirajsinh45/real-life-industrial-dataset-of-casting-product.

    root/                                    either the 512 x 512 px photos as they were taken
        def_front/cast_def_0_0.jpeg …        781
        ok_front/cast_ok_0_1018.jpeg …       519

    root/casting_data/                       or the 300 x 300 px version, or root/ with its {train,test} directly
        train/{def_front,ok_front}/…         6,633
        test/{def_front,ok_front}/…          715

The 300 px version was augmented before it was published, so one part may be in it several times, in train and in test.
"""

from pathlib import Path

import pandas as pd

from defectcls.data.samples import images_expected_in, sample_table
from defectcls.errors import UserError

FOLDERS = {"def_front": True, "ok_front": False}
LAYOUT = "{def_front,ok_front}/<image> or casting_data/{train,test}/{def_front,ok_front}/<image>"


def list_samples(root: Path) -> pd.DataFrame:
    """The sample table (see `defectcls.data.samples`), with a split for the 300 px version only.

    Raises:
        UserError: a folder is missing or empty, or `root` holds both versions.
    """
    above = "casting_data/" if (root / "casting_data").is_dir() else ""
    has_split = any((root / above / split).is_dir() for split in ("train", "test"))
    if has_split and any((root / folder).is_dir() for folder in FOLDERS):
        raise UserError(f"{root} holds both versions of the castings: expected either {LAYOUT}")
    parents = {f"{above}{split}/": {"split": split} for split in ("train", "test")} if has_split else {"": {}}
    images, left_out = images_expected_in(root, [parent + name for parent in parents for name in FOLDERS], LAYOUT)
    rows = (
        {"path": path, "defective": defective} | part
        for parent, part in parents.items()
        for name, defective in FOLDERS.items()
        for path in images[parent + name]
    )
    return sample_table(rows, left_out)
