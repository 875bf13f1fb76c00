"""The photos that a model learned from and was chosen on, as its checkpoint remembers them, found among others."""

from typing import Any

import numpy as np
import torch

from defectcls.data.datamodule import DefectDataModule
from defectcls.data.duplicates import NO_PAIRS, identical_files, split_units
from defectcls.data.photo import digest_of
from defectcls.errors import UserError


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
