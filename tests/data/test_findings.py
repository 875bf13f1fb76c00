"""The photos that a model has seen are known again as they are, and by a near twin that stands beside them."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from defectcls.data.datamodule import DefectDataModule
from defectcls.data.findings import find_seen, remember_seen
from defectcls.data.folder import Folder
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


@pytest.mark.slow
def test_seen_photos_are_found_among_new_ones(
    trained: DefectDataModule, photos: list[tuple[str, Image.Image]], tmp_path: Path
) -> None:
    for number, (kind, image) in enumerate(photos[80:]):
        (tmp_path / kind).mkdir(exist_ok=True)
        image.save(tmp_path / kind / f"new_{number}.png")
    for row in np.concatenate([trained.part("train"), trained.part("val")])[:8]:
        source = trained.settings.root / trained.samples["path"][row]
        (tmp_path / f"sound/same_{row}.png").write_bytes(source.read_bytes())

    kept = io.BytesIO()
    torch.save(remember_seen(trained), kept)
    seen = torch.load(io.BytesIO(kept.getvalue()), weights_only=True)
    assert seen["digests"].shape == (len(trained.part("train")) + len(trained.part("val")), 16)

    data = opened(tmp_path, split=False)
    identical, near, own_test = find_seen(seen, data, "test")
    names = data.samples["path"].str.rpartition("/")[2]
    assert names[identical].tolist() == names[names.str.startswith("same_")].tolist()
    assert identical.sum() == 8
    assert not near.any()
    assert not own_test


@pytest.mark.slow
def test_twins_of_a_seen_photo_that_is_here_too_are_told_by_their_pixels(
    trained: DefectDataModule, photos: list[tuple[str, Image.Image]], tmp_path: Path
) -> None:
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


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        [],
        {},
        {"digests": [1]},
        {"digests": torch.zeros(3, 8, dtype=torch.uint8)},
        {"digests": torch.zeros(3, 16)},
    ],
)
def test_what_nobody_remembered(trained: DefectDataModule, wrong: Any) -> None:
    with pytest.raises(UserError, match=r"^what the checkpoint remembers of the photos .* is damaged$"):
        find_seen(wrong, trained, "test")
