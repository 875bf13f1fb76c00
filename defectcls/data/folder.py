"""Your own photos, one folder a class."""

from typing import Any

import pandas as pd

from defectcls.data.datamodule import DefectDataModule
from defectcls.data.samples import Names, folded, folders_in, images_in, samples_in
from defectcls.errors import UserError, did_you_mean
from defectcls.tables import SPLIT_NAMES

LAYOUT = "<class>/<image> or {train,val,test}/<class>/<image>"


class Folder(DefectDataModule):
    """Your own photos, one folder a class.

        root/
            good/…                    a sound class: named by `sound`
            scratch/…  dent/…         every other folder is a defect type; images may lie in folders below it

    or the same under folders of the split, if `root` holds no others:

        root/
            train/good/…  train/scratch/…
            val/…  test/…             in any case; `val` may be called `valid` or `validation`

    Args:
        sound: the folder or folders of sound parts.
    """

    sound: Names

    def list_samples(self) -> pd.DataFrame:
        top = folders_in(self.root)
        has_split = bool(top) and {name.casefold() for name in top} <= SPLIT_NAMES.keys()
        parents = {f"{name}/": {"split": SPLIT_NAMES[name.casefold()]} for name in top} if has_split else {"": {}}
        sound = set(map(folded, self.sound))
        folders: dict[str, dict[str, Any]] = {}
        for parent, part in parents.items():
            for name in folders_in(self.root / parent):
                folders[parent + name] = {"defect_type": name, "defective": folded(name) not in sound, **part}
        classes = sorted({columns["defect_type"] for columns in folders.values()})
        if not classes:
            raise UserError(f"{self.root} holds no class folders: expected {LAYOUT}")
        for name in self.sound:
            if folded(name) not in map(folded, classes):
                hint = did_you_mean(name, classes) or ": say which are sound, dataset.sound=[<folder>]"
                raise UserError(f"{self.root} has the class folders {', '.join(classes)}; not sound={name}{hint}")
        samples = samples_in(self.root, folders, LAYOUT)
        left_out, above = samples.attrs["left_out"], dict.fromkeys(["", *parents])
        beside = [path for folder in above for path in images_in(self.root, folder, left_out, below=False)]
        if beside:
            raise UserError(f"'{min(beside)}' in {self.root} is in no class folder: expected {LAYOUT}")
        return samples
