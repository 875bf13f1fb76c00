"""Your own photos, one folder a class.

    root/
        good/…                    a sound class: named by `sound`
        scratch/…  dent/…         every other folder is a defect type; images may lie in folders below it

or the same under folders of the split, if `root` holds no others:

    root/
        train/good/…  train/scratch/…
        val/…  test/…             in any case; `val` may be called `valid` or `validation`, and so on
"""

from pathlib import Path

import pandas as pd

from defectcls.data.samples import (
    NameOrNames,
    folded,
    folders_in,
    images_expected_in,
    images_in,
    sample_table,
)
from defectcls.errors import UserError, did_you_mean
from defectcls.tables import SPLIT_NAMES

LAYOUT = "<class>/<image> or {train,val,test}/<class>/<image>"


def list_samples(root: Path, sound: NameOrNames) -> pd.DataFrame:
    """The sample table (see `defectcls.data.samples`), with a split where the folders have one.

    Raises:
        UserError: no class folders, an empty one, none of the name of a sound class, or an image beside them.
    """
    sound = [sound] if isinstance(sound, str) else sound
    folders = folders_in(root)
    has_split = bool(folders) and {name.casefold() for name in folders} <= SPLIT_NAMES.keys()
    parents = [f"{name}/" for name in folders] if has_split else [""]
    class_folders = [f"{parent}{name}" for parent in parents for name in folders_in(root / parent)]
    classes = sorted({Path(folder).name for folder in class_folders})
    if not classes:
        raise UserError(f"{root} holds no class folders: expected {LAYOUT}")
    for name in sound:
        if folded(name) not in map(folded, classes):
            hint = did_you_mean(name, classes)
            hint = hint or ": say which are sound, dataset.sound=[<folder>]"
            raise UserError(f"{root} has the class folders {', '.join(classes)}; not sound={name}{hint}")
    is_sound = set(map(folded, sound))
    images, left_out = images_expected_in(root, class_folders, LAYOUT)
    rows = [
        {"path": path, "defective": folded(name) not in is_sound, "defect_type": name}
        | ({"split": SPLIT_NAMES[folder.partition("/")[0].casefold()]} if has_split else {})
        for folder, name in ((folder, folder.rpartition("/")[2]) for folder in class_folders)
        for path in images[folder]
    ]
    above = dict.fromkeys(["", *parents])
    beside = [path for folder in above for path in images_in(root, folder, left_out, below=False)]
    if beside:
        raise UserError(f"'{min(beside)}' in {root} is in no class folder ({len(beside)} such): expected {LAYOUT}")
    return sample_table(rows, left_out)
