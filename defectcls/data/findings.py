"""What is found in a set of images without a model: copies, leaks, unreadable and plain files, photos seen before."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from defectcls.data.datamodule import DefectDataModule
from defectcls.data.duplicates import NO_PAIRS, PLAIN, identical_files, split_units
from defectcls.data.reading import digest_of
from defectcls.data.splits import PARTS, leaked_units
from defectcls.errors import UserError
from defectcls.tables import DEFECTIVE, SOUND


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
    refusal: str  # why `train` would refuse the set, or ""

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
    data.settings = data.settings.model_copy(update={"on_unreadable": "skip", "contradictions": "allow"})
    if data.target == "defect":
        data.classes = {SOUND: False, DEFECTIVE: True}  # of a set of one class, too
    data.prepare_data()
    data.setup()
    samples, refusal = data.samples.assign(split=""), ""
    try:
        data.deal(data.settings.split, data.seed)
        samples = data.samples.copy()
    except UserError as error:
        refusal = f"train would refuse this set: {error}"
    first, near, paths = identical_files(data.digests), data.near_twins(), samples["path"]
    copies, units = (split_units(first, group, near) for group in (None, samples.get("group")))
    findings = [
        *(Finding("identical", paths[row], paths[first[row]]) for row in np.flatnonzero(first != samples.index)),
        *(Finding("near_identical", paths[row], paths[other]) for row, other in near),
        *(Finding("unreadable", file["path"], detail=file["reason"]) for file in data.unreadable),
        *(Finding("plain", path) for path in paths[data.images.records["spread"] < PLAIN]),
    ]
    return Inventory(samples, units, findings, leaked_units(samples["split"], copies), refusal)


def balance(samples: pd.DataFrame) -> pd.DataFrame:
    """Images by category, class and part of the split, with the sum of the parts."""
    rows = [column for column in ("category", "label") if column in samples]
    counts = pd.crosstab([samples[column] for column in rows], samples["split"].replace("", "no split"))
    order = [part for part in ("train", "val", "test", "unused", "no split") if part in counts]
    return counts[order].assign(all=counts.sum(axis=1)).reset_index()


def remember_seen(data: DefectDataModule) -> dict[str, Any]:
    """For a checkpoint: `digests` of the photos for training and validation, uint8 (photos, 16), and `test`, one of the
    whole test part.
    """
    rows = np.concatenate([data.part("train"), data.part("val")])
    digests = np.frombuffer(b"".join(data.digests[row] for row in rows), np.uint8).reshape(-1, 16)
    return {"digests": torch.tensor(digests), "test": _digest_of_part(data, "test")}


def find_seen(seen: Any, data: DefectDataModule, part: str) -> tuple[np.ndarray, np.ndarray, bool]:
    """Which photos of a part the model has seen, bool (photos,): those very files, and near twins of such as are here
    too; and whether the part is the test part of its run, photo for photo, of which near twins are not sought.

    Raises:
        UserError: `seen` is nothing that `remember_seen` gives.
    """
    digests = seen.get("digests") if isinstance(seen, dict) else None
    if not isinstance(digests, torch.Tensor) or (digests.dtype, digests.shape[1:]) != (torch.uint8, (16,)):
        raise UserError("what the checkpoint remembers of the photos that it was trained on is damaged")
    known = set(map(bytes, digests.numpy()))
    identical = np.array([digest in known for digest in data.digests])
    own_test = _digest_of_part(data, part) == seen.get("test")
    twins = NO_PAIRS if data.near is None or own_test else data.near
    units = split_units(identical_files(data.digests), None, twins)
    near = np.isin(units, units[identical]) & ~identical
    rows = data.part(part)
    return identical[rows], near[rows], own_test


def _digest_of_part(data: DefectDataModule, part: str) -> str:
    return digest_of(*sorted(data.digests[row] for row in data.part(part))).hex()
