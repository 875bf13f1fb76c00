"""Castings of pump impellers, CC BY-NC-ND 4.0,
https://www.kaggle.com/datasets/ravirajsinh45/real-life-industrial-dataset-of-casting-product.
"""

import pandas as pd

from defectcls.data.datamodule import DefectDataModule
from defectcls.data.samples import samples_in

LAYOUT = "{def_front,ok_front}/<image> or {train,test}/{def_front,ok_front}/<image>"


class Casting(DefectDataModule):
    """Castings of pump impellers from above, with a published split for the 300 x 300 px version only.

        root/                                    either the 512 x 512 px photos as they were taken
            def_front/cast_def_0_0.jpeg …        781
            ok_front/cast_ok_0_1018.jpeg …       519

        root/                                    or casting_data of the 300 x 300 px version
            train/{def_front,ok_front}/…         6,633
            test/{def_front,ok_front}/…          715

    The 300 px version was augmented before it was published, so one part may be in it several times, in train and test.
    """

    def list_samples(self) -> pd.DataFrame:
        kinds = {"def_front": True, "ok_front": False}
        has_split = any((self.root / part).is_dir() for part in ("train", "test"))
        parts = {"train/": {"split": "train"}, "test/": {"split": "test"}} if has_split else {"": {}}
        folders = {part + kind: {"defective": kinds[kind], **parts[part]} for part in parts for kind in kinds}
        return samples_in(self.root, folders, LAYOUT)
