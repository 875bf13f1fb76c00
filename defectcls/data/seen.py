"""The photos that a model learned from and was chosen on, as its checkpoint remembers them, found among others."""

from typing import Any

import numpy as np
import torch

from defectcls.data.datamodule import DefectDataModule
from defectcls.data.duplicates import identical_files, split_units
from defectcls.data.near_duplicates import PLAIN, near_copies
from defectcls.data.photo import FREQUENCIES, digest_of
from defectcls.errors import UserError

KEPT = {"digests": (torch.uint8, (16,)), "spectra": (torch.float16, (len(FREQUENCIES), 2))}  # of each photo


def remember_seen(data: DefectDataModule) -> dict[str, Any]:
    """For a checkpoint: KEPT of the photos for training and validation, and `test`, one digest of the whole test part.

    There are no spectra where the split did not ask for near-identical photos.
    """
    rows = np.concatenate([data.part("train"), data.part("val")])
    digests = np.frombuffer(b"".join(data.digests[row] for row in rows), np.uint8).reshape(-1, 16)
    spectra = np.zeros((0, *KEPT["spectra"][1]), np.float16)
    if data.near is not None:
        records = data.images.records[rows]
        spectra = records["spectrum"] * (records["spread"] >= PLAIN)[:, None, None]  # 0 is like nothing
    seen = {"digests": torch.tensor(digests), "spectra": torch.from_numpy(spectra)}
    return seen | {"test": _digest_of_part(data, "test")}


def find_seen(seen: Any, data: DefectDataModule, part: str) -> tuple[np.ndarray, np.ndarray, bool]:
    """Which photos of a part the model has seen, bool (photos,): those very files, and near copies of them; and whether
    the part is the test part of its run, photo for photo, of which near copies are not sought.

    A near copy is what has as good as the same coarse spectrum, or a twin, by its pixels, that is seen and is here too.

    Raises:
        UserError: `seen` is nothing that `remember_seen` gives.
    """
    for name, (dtype, shape) in KEPT.items():
        values = seen.get(name) if isinstance(seen, dict) else None
        if not isinstance(values, torch.Tensor) or (values.dtype, values.shape[1:]) != (dtype, shape):
            raise UserError("what the checkpoint remembers of the photos that it was trained on is damaged")
    known = set(map(bytes, seen["digests"].numpy()))
    identical, rows = np.array([digest in known for digest in data.digests]), data.part(part)
    near, own_test = np.zeros(len(identical), bool), _digest_of_part(data, part) == seen.get("test")
    if len(seen["spectra"]) and not own_test and not identical[rows].all():
        near = near_copies(torch.view_as_complex(seen["spectra"].float()).numpy(), data.images.spectra)
        units = split_units(identical_files(data.digests), None, data.near_twins())
        near = np.isin(units, units[identical | near]) & ~identical
    return identical[rows], near[rows], own_test


def _digest_of_part(data: DefectDataModule, part: str) -> str:
    return digest_of(*sorted(data.digests[row] for row in data.part(part))).hex()
