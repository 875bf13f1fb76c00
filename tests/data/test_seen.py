"""The photos that a model has seen are known again: as they are, and re-encoded, darker or smaller."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from defectcls.data.datamodule import DefectDataModule
from defectcls.data.folder import Folder
from defectcls.data.near_duplicates import near_copies
from defectcls.data.photo import FREQUENCIES
from defectcls.data.seen import find_seen, remember_seen
from defectcls.data.synthetic import Synthetic
from defectcls.errors import UserError

CPU = torch.device("cpu")


def opened(root: Path, split: bool = True, **dataset: Any) -> DefectDataModule:
    """Photos of a folder, sound and defective."""
    data = Folder(root=root, sound="sound", image_size=32, batch_size=8, test_all=not split, **dataset)
    data.setup()
    return data


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, Image.Image]]:
    """120 drawn photos of 128 px, each of a canvas of its own, with the folder of its class."""
    root = tmp_path_factory.mktemp("drawn")
    knobs = {"image_count": 120, "image_side": 128, "crops_per_photo": 1, "defect_share": 0.5, "difficulty": 0.3}
    samples = Synthetic(root=root, **knobs, data_seed=3).sample_table()
    kinds = samples["defective"].map({False: "sound", True: "dent"})
    return [(kind, Image.open(root / path)) for kind, path in zip(kinds, samples["path"], strict=True)]


@pytest.fixture(scope="module")
def trained(photos: list[tuple[str, Image.Image]], tmp_path_factory: pytest.TempPathFactory) -> DefectDataModule:
    """A run on the first 80 of them."""
    root = tmp_path_factory.mktemp("trained")
    for number, (kind, image) in enumerate(photos[:80]):
        (root / kind).mkdir(exist_ok=True)
        image.save(root / kind / f"{number:03}.png")
    return opened(root)


COPIES = {
    "re-encoded": lambda image: image,
    "darker": lambda image: ImageEnhance.Brightness(image).enhance(0.85),
    "smaller": lambda image: image.resize((96, 96), Image.Resampling.BILINEAR),
}


@pytest.mark.parametrize("copy", COPIES)
def test_seen_photos_and_their_copies_are_found_among_new_ones(
    trained: DefectDataModule, photos: list[tuple[str, Image.Image]], tmp_path: Path, copy: str
) -> None:
    """Of 16 seen ones every second is copied, and 40 are new; the file of each says what it is."""
    rows = np.concatenate([trained.part("train"), trained.part("val")])[:16]
    for number, (kind, image) in enumerate(photos[80:]):
        (tmp_path / kind).mkdir(exist_ok=True)
        image.save(tmp_path / kind / f"new_{number}.png")
    for place, row in enumerate(rows):
        source = trained.settings.root / trained.samples["path"][row]
        if place % 2:
            COPIES[copy](Image.open(source)).save(tmp_path / f"sound/copy_{place}.jpg", quality=75)
        else:
            (tmp_path / f"sound/same_{place}.png").write_bytes(source.read_bytes())

    kept = io.BytesIO()
    torch.save(remember_seen(trained), kept)
    seen = torch.load(io.BytesIO(kept.getvalue()), weights_only=True)
    known = len(trained.part("train")) + len(trained.part("val"))
    assert seen["digests"].shape == (known, 16)
    assert len(kept.getvalue()) < 4000 + known * (16 + 4 * len(FREQUENCIES))

    data = opened(tmp_path, split=False)
    identical, near, own_test = find_seen(seen, data, "test")
    names = data.samples["path"].str.rpartition("/")[2]
    assert names[identical].str.startswith("same_").tolist() == [True] * 8
    assert names[near].str.startswith("copy_").tolist() == [True] * 8
    assert not own_test


def test_twins_of_a_seen_photo_that_is_here_too_are_told_by_their_pixels(
    trained: DefectDataModule, photos: list[tuple[str, Image.Image]], tmp_path: Path
) -> None:
    """A shifted copy has another coarse spectrum; but the photo itself stands beside it."""
    row = trained.part("train")[0]
    source = trained.settings.root / trained.samples["path"][row]
    for number, (kind, image) in enumerate(photos[80:]):
        (tmp_path / kind).mkdir(exist_ok=True)
        image.save(tmp_path / kind / f"new_{number}.png")
    (tmp_path / "sound/same.png").write_bytes(source.read_bytes())
    shifted = np.pad(np.asarray(Image.open(source))[3:, 3:], ((0, 3), (0, 3), (0, 0)), mode="edge")
    Image.fromarray(shifted).save(tmp_path / "sound/shifted.jpg", quality=90)
    data = opened(tmp_path, split=False)
    identical, near, _ = find_seen(remember_seen(trained), data, "test")
    assert data.samples["path"][identical].tolist() == ["sound/same.png"]
    assert data.samples["path"][near].tolist() == ["sound/shifted.jpg"]


def test_the_own_test_part_is_known_photo_for_photo(trained: DefectDataModule, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, test = remember_seen(trained), trained.part("test")
    identical, near, own_test = find_seen(seen, trained, "test")
    assert (identical.any(), near.any(), own_test) == (False, False, True)
    digests = list(trained.digests)  # the same, but that one photo has become a copy of one that is trained on
    digests[test[0]] = digests[trained.part("train")[0]]
    monkeypatch.setattr(trained, "digests", digests)
    identical, _, own_test = find_seen(seen, trained, "test")
    assert (identical.tolist(), own_test) == ([True] + [False] * (len(test) - 1), False)


def test_without_spectra_only_the_very_files_are_known(trained: DefectDataModule) -> None:
    seen = remember_seen(trained)
    identical, near, _ = find_seen(seen | {"spectra": seen["spectra"][:0]}, trained, "train")
    assert (identical.all(), near.any()) == (True, False)


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        [],
        {},
        {"digests": [1]},
        {"digests": torch.zeros(3, 8, dtype=torch.uint8)},
        {"digests": torch.zeros(3, 16)},
        {"digests": torch.zeros(3, 16, dtype=torch.uint8), "spectra": torch.zeros(3, 2, 2, dtype=torch.float16)},
    ],
)
def test_what_nobody_remembered(trained: DefectDataModule, wrong: Any) -> None:
    with pytest.raises(UserError, match=r"^what the checkpoint remembers of the photos .* is damaged$"):
        find_seen(wrong, trained, "test")


def test_among_few_photos_of_one_kind_none_is_called_a_copy() -> None:
    """With nothing to tell what is usual, all parts of one kind are alike."""
    generator = np.random.default_rng(0)
    shape = (24, len(FREQUENCIES))
    usual = 50 * np.exp(1j * generator.uniform(0, 6, shape[1:]))
    photos = (usual + generator.normal(size=shape) + 1j * generator.normal(size=shape)).astype(np.complex64)
    assert not near_copies(photos[:12], photos[12:]).any()
    assert not near_copies(photos[:0], photos).any()
