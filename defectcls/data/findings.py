"""What is found in a set of images without a model: copies, leaks, unreadable and plain files, photos seen before."""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from defectcls.data.datamodule import DefectDataModule
from defectcls.data.duplicates import NO_PAIRS, PLAIN, first_of, near_identical_pairs, split_units
from defectcls.data.splits import UNUSED
from defectcls.errors import UserError
from defectcls.files import digest_of


class Finding(NamedTuple):
    """One row of audit.csv, but for the splits and labels."""

    kind: str
    path: str = ""
    other: str = ""
    detail: str = ""
    suspected: str = ""  # label


def find_faults(data: DefectDataModule) -> tuple[list[Finding], np.ndarray, np.ndarray]:
    """Copies, near-identical images, unreadable and plain files of a set that is set up.

    And of each image the number of its copies and near-identical images, and that of all that it is tied to, with those
    of its group, int64 (images,).
    """
    first, paths = first_of(data.digests), data.samples["path"]
    sought = "near_identical" in data.settings.split.together
    near = data.near if sought else near_identical_pairs(data.images)
    findings = [
        *(Finding("identical", paths[row], paths[first[row]]) for row in np.flatnonzero(first != paths.index)),
        *(Finding("near_identical", paths[row], paths[other]) for row, other in near),
        *(Finding("unreadable", file["path"], detail=file["reason"]) for file in data.unreadable),
        *(Finding("plain", path) for path in paths[data.images.records["spread"] < PLAIN]),
    ]
    return findings, split_units(first, None, near), split_units(first, data.samples.get("group"), near)


def table_of(findings: list[Finding], samples: pd.DataFrame) -> pd.DataFrame:
    """All findings as audit.csv has them, pairs across the split first, then those across classes.

    Args:
        samples: labelled; `split` is "" where none can be made.
    """
    of_one = samples[["path", "split", "label"]]
    of_other = of_one.set_axis(["other", "other_split", "other_label"], axis=1)
    found = pd.DataFrame(findings, columns=list(Finding._fields))
    found = found.merge(of_one, "left", "path").merge(of_other, "left", "other").fillna("")
    paired = found["other"] != ""
    dealt = ~found[["split", "other_split"]].isin(["", UNUSED]).any(axis=1)
    across_split = paired & dealt & (found["split"] != found["other_split"])
    across_classes = paired & (found["label"] != found["other_label"])
    columns = ["kind", "path", "other", "split", "other_split", "label", "other_label", "detail"]
    return found.iloc[np.lexsort((~across_classes, ~across_split))][columns].reset_index(drop=True)


def balance(samples: pd.DataFrame) -> pd.DataFrame:
    """Images by category, class and part of the split, with the sum of the parts."""
    rows = [column for column in ("category", "label") if column in samples]
    counts = pd.crosstab([samples[column] for column in rows], samples["split"].replace("", "no split"))
    folds = sorted(str(part) for part in counts if str(part).startswith("fold"))
    order = [part for part in ("train", *folds, "val", "test", UNUSED, "no split") if part in counts]
    return counts[order].assign(all=counts.sum(axis=1)).reset_index()


def remember_seen(data: DefectDataModule, folds: torch.Tensor | None = None) -> dict[str, Any]:
    """For a checkpoint: `digests` of the photos for training and validation, uint8 (photos, 16), and `test`, one of the
    whole test part; with the folds of all photos also `folds`, int64 (photos,).
    """
    rows = np.concatenate([data.part("train"), data.part("val")])
    digests = np.frombuffer(b"".join(data.digests[row] for row in rows), np.uint8).reshape(-1, 16)
    folded = {} if folds is None else {"folds": folds[rows]}
    return {"digests": torch.tensor(digests), "test": _digest_of_part(data, "test"), **folded}


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
    units = split_units(first_of(data.digests), None, NO_PAIRS if own_test else data.near)
    near = np.isin(units, units[identical]) & ~identical
    rows = data.part(part)
    return identical[rows], near[rows], own_test


def _digest_of_part(data: DefectDataModule, part: str) -> str:
    return digest_of(*sorted(data.digests[row] for row in data.part(part))).hex()
