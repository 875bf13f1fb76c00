"""What is wrong with a set of images, found without a model: copies, leaks, unreadable and odd files, thin classes."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np
import pandas as pd

from defectcls.data.datamodule import DefectDataModule
from defectcls.data.duplicates import contradiction, identical_files, split_units
from defectcls.data.near_duplicates import PLAIN
from defectcls.data.splits import PARTS, leaked_units
from defectcls.errors import UserError
from defectcls.tables import DEFECTIVE, SOUND

ODD = 0.1  # share of the images, up to which those of another size, mode or suffix than the usual one are odd
THIN = 20  # images of a class: with fewer, a test part of a fifth holds less than four
TELLTALE = 0.5  # share of a majority vote's errors that the size, mode or suffix of a file saves: a short cut


class Finding(NamedTuple):
    """One row of audit.csv, but for the splits and labels."""

    kind: str
    path: str = ""
    other: str = ""
    detail: str = ""


@dataclass(frozen=True)
class Inventory:
    """The images of a set that can be read, as `train` would take them, and what was found."""

    samples: pd.DataFrame  # labelled; `split` is "" where none can be made
    units: np.ndarray  # of each image: tied by a copy, a near-identical twin or a group
    findings: list[Finding]
    leaks: int  # sets of copies and near-identical images that stand on both sides of the split
    refusal: str  # why `train` would refuse the set, "" where it would not

    def table(self, more: list[Finding]) -> pd.DataFrame:
        """All findings as audit.csv has them, pairs across the split first, then those across classes."""
        of_one = self.samples[["path", "split", "label"]]
        of_other = of_one.set_axis(["other", "other_split", "other_label"], axis=1)
        found = pd.DataFrame([*self.findings, *more], columns=list(Finding._fields))
        found = found.merge(of_one, "left", "path").merge(of_other, "left", "other").fillna("")
        paired = found["other"] != ""
        dealt = found["split"].isin(PARTS) & found["other_split"].isin(PARTS)
        across_split = paired & dealt & (found["split"] != found["other_split"])
        across_classes = paired & (found["label"] != found["other_label"])
        columns = ["kind", "path", "other", "split", "other_split", "label", "other_label", "detail"]
        return found.iloc[np.lexsort((~across_classes, ~across_split))][columns].reset_index(drop=True)


def take_inventory(data: DefectDataModule) -> Inventory:
    """List, read, compare and split the images of `data`, which is given with `test_all`, and is set up afterwards.

    Raises:
        UserError: the folder is missing, holds no images or none that can be read, or is not laid out as the dataset
            expects.
    """
    asked = data.settings
    data.settings = asked.model_copy(update={"on_unreadable": "skip", "contradictions": "allow"})
    if data.target == "defect":
        data.classes = {SOUND: False, DEFECTIVE: True}  # of a set of one class, too
    data.prepare_data()
    data.setup()
    first, near, paths = identical_files(data.digests), data.near_twins(), data.samples["path"]
    copies, units = (split_units(first, group, near) for group in (None, data.samples.get("group")))
    samples, refusal = data.samples.assign(split=""), ""
    try:
        if samples["label"].nunique() < 2:
            raise UserError(f"a classifier needs two classes, but all images are of one: {samples['label'].iloc[0]}")
        data.deal(asked.split, data.seed)
        samples = data.samples.copy()
        if asked.contradictions == "error" and (contradicted := contradiction(samples, data.digests)):
            refusal = f"{contradicted}: delete the wrong ones, or add dataset.contradictions=allow"
    except UserError as error:
        refusal = str(error)
    classes = samples["label"].value_counts().to_dict()
    findings = [
        *(Finding("identical", paths[row], paths[first[row]]) for row in np.flatnonzero(first != samples.index)),
        *(Finding("near_identical", paths[row], paths[other]) for row, other in near),
        *(Finding("unreadable", file["path"], detail=file["reason"]) for file in data.unreadable),
        *_odd_files(samples, data.images.records),
        *(Finding("few_images", detail=f"{label}: {n} images") for label, n in classes.items() if n < THIN),
    ]
    return Inventory(samples, units, findings, leaked_units(samples["split"], copies), refusal)


def balance(samples: pd.DataFrame) -> pd.DataFrame:
    """Images by category, class and part of the split, with the sum of the parts."""
    rows = [column for column in ("category", "label") if column in samples]
    counts = pd.crosstab([samples[column] for column in rows], samples["split"].replace("", "no split"))
    order = [part for part in ("train", "val", "test", "unused", "no split") if part in counts]
    return counts[order].assign(all=counts.sum(axis=1)).reset_index()


def _odd_files(samples: pd.DataFrame, records: np.ndarray) -> Iterator[Finding]:
    """Images without variation, of an unusual size, mode or suffix; and such a property that gives the class away."""
    for path in samples["path"][records["spread"] < PLAIN].tolist():
        yield Finding("odd_file", path, detail="every pixel is nearly the same")
    sizes = [f"{width} x {height}" for width, height in zip(records["width"], records["height"], strict=True)]
    suffixes = [PurePosixPath(path).suffix.lower() for path in samples["path"]]
    files = samples.assign(size=sizes, mode=records["mode"], suffix=suffixes)
    for name in ("size", "mode", "suffix"):
        counts = pd.crosstab(files[name], files["label"])
        usual, most = counts.sum(axis=1).idxmax(), counts.sum().max()
        odd = files[files[name] != usual]
        if len(odd) <= ODD * len(files):
            for path, value in zip(odd["path"], odd[name], strict=True):
                yield Finding("odd_file", path, detail=f"{name} {value}, usual is {usual}")
        if counts.max(axis=1).sum() - most >= TELLTALE * (len(files) - most) > 0:
            told = "; ".join(f"{value} is mostly {label}" for value, label in counts.idxmax(axis=1).head(4).items())
            yield Finding("short_cut", detail=f"the {name} of the file tells the class without a look at it: {told}")
