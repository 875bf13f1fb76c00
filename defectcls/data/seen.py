"""The photos that a model learned from and was chosen on, as its checkpoint remembers them, found among others."""

import hashlib
from typing import Any, NamedTuple

import numpy as np
import torch

from defectcls.data.datamodule import DefectDataModule
from defectcls.data.duplicates import identical_files, split_units
from defectcls.data.fingerprints import FREQUENCIES, Fingerprints
from defectcls.data.near_duplicates import PLAIN, near_copies
from defectcls.errors import UserError


class Seen(NamedTuple):
    """Bool (photos,) of one part: the very file was seen, or a near copy of it; and whether the part is the run's own
    test part, photo for photo."""

    identical: np.ndarray
    near: np.ndarray
    own_test: bool


def remember_seen(data: DefectDataModule) -> dict[str, Any]:
    """For a checkpoint, of each photo for training and validation: `digests` uint8 (photos, 16) and, where the split
    asked for them, `spectra` float16 (photos, frequencies, 2). `test` is one digest of the test part.
    """
    rows = np.concatenate([data.part("train"), data.part("val")])
    digests = np.frombuffer(b"".join(data.digests[row] for row in rows), np.uint8).reshape(-1, 16)
    seen: dict[str, Any] = {"digests": torch.tensor(digests), "test": _digest_of_part(data, "test")}
    if data.prints is not None:
        seen["spectra"] = torch.from_numpy(_spectra(data.prints)[rows])
    return seen


def find_seen(seen: Any, data: DefectDataModule, part: str) -> Seen:
    """Which photos of one part are among those that `remember_seen` has kept.

    Near copies are those whose coarse spectra are as good as the same, and the near-identical twins, by their pixels,
    of a seen photo that is in `data` too.

    Raises:
        UserError: it is nothing that `remember_seen` gives.
    """
    known, spectra = (seen.get(name) if isinstance(seen, dict) else None for name in ("digests", "spectra"))
    shapes = [(known, torch.uint8, (16,)), (spectra, torch.float16, (len(FREQUENCIES), 2))]
    for values, dtype, shape in shapes if spectra is not None else shapes[:1]:
        if not isinstance(values, torch.Tensor) or values.dtype != dtype or values.shape[1:] != shape:
            raise UserError("what the checkpoint remembers of the photos that it was trained on is damaged")
    digests = set(map(bytes, known.numpy()))  # type: ignore[union-attr]
    identical = np.array([digest in digests for digest in data.digests])
    near, rows = np.zeros(len(identical), bool), data.part(part)
    own_test = _digest_of_part(data, part) == seen.get("test")
    if not own_test and not identical[rows].all() and spectra is not None:
        if data.prints is None:
            data.find_near_identical(data.samples["path"])
        assert data.prints is not None
        both = (torch.view_as_complex(torch.as_tensor(values).float()) for values in (spectra, _spectra(data.prints)))
        near = near_copies(*(values.numpy() for values in both))
        units = split_units(identical_files(data.digests), None, data.near)
        near = np.isin(units, units[identical | near]) & ~identical
    return Seen(identical[rows], near[rows], own_test)


def _spectra(prints: Fingerprints) -> np.ndarray:
    """Float16 (photos, frequencies, 2), 0 for a photo in which there is nothing to compare."""
    return prints.records["spectrum"] * (prints.records["spread"] >= PLAIN)[:, None, None]


def _digest_of_part(data: DefectDataModule, part: str) -> str:
    digests = sorted(data.digests[row] for row in data.part(part))
    return hashlib.blake2b(b"".join(digests), digest_size=16).hexdigest()
