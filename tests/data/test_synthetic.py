"""The drawn dataset against its promises: labels follow the masks, shares are exact, twins near, one seed one set."""

import hashlib
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from omegaconf import OmegaConf
from PIL import Image
from scipy.ndimage import distance_transform_edt

from defectcls.data import synthetic
from defectcls.data.synthetic import Knobs, Synthetic, draw_images, draw_photo, plan_images
from defectcls.errors import UserError

PRESET = OmegaConf.load(Path(__file__).parents[2] / "conf/dataset/synthetic.yaml")
DEFAULTS = {knob.name: PRESET[knob.name] for knob in fields(Knobs)}
SMALL = DEFAULTS | {"image_count": 90, "image_side": 64}
DEFECTS = {
    "concrete": {"crack", "spalling"},
    "brushed_metal": {"scratch", "dent"},
    "casting": {"pitting", "cold_shut"},
}


def listed(root: Path, **knobs: Any) -> pd.DataFrame:
    return Synthetic(root=root, **knobs).sample_table()


def pixels(file: Path) -> np.ndarray:
    return np.asarray(Image.open(file)).astype(float)


def digests(folder: Path) -> dict[str, str]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture(scope="module")
def flawed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    """A set with 18 twins among 90 images and 9 wrong labels."""
    root = tmp_path_factory.mktemp("flawed") / "not" / "there" / "yet"
    return root, listed(root, **SMALL | {"near_duplicates": 0.2, "wrong_labels": 0.1})


def test_the_truth_follows_the_mask(flawed: tuple[Path, pd.DataFrame]) -> None:
    root, samples = flawed
    assert len(samples) == 90
    assert set(samples["true_defect_type"]) == {"sound"}.union(*DEFECTS.values())
    for row in samples.itertuples():
        assert pixels(root / row.path).shape == (64, 64, 3)
        assert bool(row.mask) == (row.true_defect_type != "sound") == (row.severity > 0)
        assert {row.true_defect_type, row.defect_type} <= DEFECTS[row.category] | {"sound"}
        assert row.defective == (row.defect_type != "sound")
        if row.mask:
            mask = pixels(root / row.mask)
            assert mask.shape == (64, 64)
            assert set(np.unique(mask)) == {0, 255}
    masks = [path.relative_to(root).as_posix() for path in root.glob("*/masks/*")]
    assert sorted(masks) == sorted(filter(None, samples["mask"]))


def test_twins_and_wrong_labels_are_no_images_of_the_same_bytes(flawed: tuple[Path, pd.DataFrame]) -> None:
    """Which training refuses under different labels."""
    root, samples = flawed
    assert len({(root / path).read_bytes() for path in samples["path"]}) == 90


@pytest.mark.parametrize(("share", "count"), [(0, 0), (0.25, 10), (1, 40)])
def test_the_share_of_defects_is_exact_even_where_they_are_hardest_to_draw(
    tmp_path: Path, share: float, count: int
) -> None:
    knobs = SMALL | {"image_count": 40, "crops_per_photo": 7, "difficulty": 1, "defect_share": share}
    samples = listed(tmp_path, **knobs)
    assert samples["defective"].sum() == count
    assert samples.groupby("group").size().tolist() == [7, 7, 7, 7, 7, 5]
    assert samples.groupby("group")["category"].nunique().max() == 1


def test_defects_come_in_photos() -> None:
    plan = plan_images(Knobs(**DEFAULTS | {"image_count": 6000}))
    counts = plan.groupby("photo")["defective"].sum()
    assert plan["defective"].mean() == 0.4
    assert counts.var() > 1.5 * 6 * 0.4 * 0.6  # of crops chosen one by one it would be the binomial's, 6 p (1 - p)
    assert set(counts) == set(range(7))


def aligned(image: np.ndarray, other: np.ndarray) -> tuple[float, bool, float]:
    """Mean difference in grey levels at the best shift within 3 px, after equal brightness; if shifted; brightness."""
    inner = image[3:-3, 3:-3]
    windows = np.lib.stride_tricks.sliding_window_view(other, inner.shape)
    gains = inner.mean() / windows.mean((2, 3), keepdims=True)
    differences = np.abs(inner - gains * windows).mean((2, 3))
    best = np.unravel_index(differences.argmin(), differences.shape)
    return differences[best], best != (3, 3), gains[best].item()


def test_twins_repeat_their_originals_but_for_a_few_pixels_or_grey_levels(flawed: tuple[Path, pd.DataFrame]) -> None:
    root, samples = flawed
    twins, originals = samples[samples["twin_of"] != ""], samples[samples["twin_of"] == ""].set_index("path")
    assert len(twins) == 18
    assert twins["twin_of"].is_unique
    assert samples.groupby("group").size().value_counts().to_dict() == {1: 18, 6: 12}
    kinds = []
    for twin in twins.itertuples():
        original = originals.loc[twin.twin_of]
        assert (twin.true_defect_type, twin.severity) == (original["true_defect_type"], original["severity"])
        assert (root / twin.path).read_bytes() != (root / twin.twin_of).read_bytes()
        image = pixels(root / twin.path).mean(2)
        beside = {
            path: aligned(image, pixels(root / path).mean(2))
            for path in originals.index[originals["group"] == original["group"]]
        }
        difference, shifted, brightness = beside.pop(twin.twin_of)
        assert difference < 6
        assert difference < 0.7 * min(other for other, *_ in beside.values())
        kinds.append("shifted" if shifted else "brighter" if brightness > 1.04 else "re-encoded")
    assert set(kinds) == {"shifted", "brighter", "re-encoded"}


def test_wrong_labels_are_as_many_as_asked_and_change_no_image(tmp_path: Path) -> None:
    right = listed(tmp_path, **SMALL)
    wrong = listed(tmp_path, **SMALL | {"wrong_labels": 0.2})
    assert (right["defect_type"] == right["true_defect_type"]).all()
    assert wrong["true_defect_type"].tolist() == right["defect_type"].tolist()
    flipped = wrong["defective"] != right["defective"]
    assert flipped.sum() == 18
    assert ((wrong["defect_type"] != wrong["true_defect_type"]) == flipped).all()
    assert wrong.loc[flipped, "defective"].nunique() == 2
    first, second = (digests(tmp_path / samples["path"][0].split("/")[0]) for samples in (right, wrong))
    assert first.pop("samples.csv") != second.pop("samples.csv")
    assert first == second


def test_one_seed_gives_the_same_files_and_another_gives_none_of_them(tmp_path: Path) -> None:
    knobs = SMALL | {"image_count": 18, "near_duplicates": 0.2, "wrong_labels": 0.2}
    first, again = (listed(tmp_path / name, **knobs) for name in ("first", "again"))
    pd.testing.assert_frame_equal(first, again)
    assert digests(tmp_path / "first") == digests(tmp_path / "again")
    listed(tmp_path / "other", **knobs | {"data_seed": 1})
    assert not set(digests(tmp_path / "first").values()) & set(digests(tmp_path / "other").values())


@pytest.mark.parametrize("number", range(6))
def test_a_defect_shows_under_its_mask_and_nowhere_else(number: int) -> None:
    sound, easy, hard = (
        draw_photo(Knobs(**SMALL | {"difficulty": difficulty}), number, [has_defect] * 6)
        for difficulty, has_defect in ((0, False), (0, True), (1, True))
    )
    assert not sound.mask.any()
    change = np.abs(easy.image.astype(float) - sound.image).mean(2)
    away = distance_transform_edt(~easy.mask)
    for (top, left), severity in zip(easy.corners, easy.severities, strict=True):
        crop = np.s_[top : top + 64, left : left + 64]
        seen, unseen = change[crop][easy.mask[crop]].mean(), change[crop][away[crop] > 12]
        assert seen > 20 * severity  # grey levels
        assert unseen.max() <= 1
    calm = draw_photo(Knobs(**SMALL | {"difficulty": 1}), number, [False] * 6)
    faint = np.abs(hard.image.astype(float) - calm.image).mean(2)
    assert hard.severities == easy.severities
    assert faint[hard.mask].mean() < 0.7 * change[easy.mask].mean()


def test_no_crop_shows_its_neighbours_defect() -> None:
    knobs = Knobs(**SMALL)
    alone = draw_photo(knobs, 0, [True, False, False, True, False, False])
    among = draw_photo(knobs, 0, [True] * 6)
    for crop in (0, 3):
        top, left = among.corners[crop]
        area = np.s_[top - 3 : top + 67, left - 3 : left + 67]  # with all that a twin may show
        assert np.array_equal(alone.image[area], among.image[area])
        assert np.array_equal(alone.mask[area], among.mask[area])


def test_the_second_use_only_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    knobs = SMALL | {"image_count": 6, "defect_share": 0}
    first = listed(tmp_path, **knobs)
    monkeypatch.setattr(synthetic, "draw_images", None)
    pd.testing.assert_frame_equal(listed(tmp_path, **knobs | {"defect_share": 0.0}), first)
    for name in DEFAULTS:
        assert Knobs(**knobs | {name: knobs[name] + 1e-6}).folder != Knobs(**knobs).folder


def test_a_broken_run_leaves_nothing_and_of_two_at_once_the_first_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    knobs = Knobs(**SMALL | {"image_count": 8})
    folder = tmp_path / knobs.folder
    with monkeypatch.context() as broken:
        broken.setattr(synthetic, "photograph", None)
        with pytest.raises(TypeError):
            draw_images(folder, knobs)
    assert list(tmp_path.iterdir()) == []
    draw_images(folder, knobs)
    (folder / "mine").touch()
    draw_images(folder, knobs)
    assert (folder / "mine").exists()
    assert list(tmp_path.iterdir()) == [folder]
    (folder / "samples.csv").unlink()
    with pytest.raises(OSError, match="not empty"):
        draw_images(folder, knobs)


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("image_count", 0, "dataset.image_count=0 is not from 1 to 1000000"),
        ("image_side", 63, "dataset.image_side=63 is not from 64 to 2048"),
        ("crops_per_photo", 65, "dataset.crops_per_photo=65 is not from 1 to 64"),
        ("defect_share", 1.01, "dataset.defect_share=1.01 is not from 0 to 1"),
        ("difficulty", -0.1, "dataset.difficulty=-0.1 is not from 0 to 1"),
        ("near_duplicates", 0.6, "dataset.near_duplicates=0.6 is not from 0 to 0.5"),
        ("wrong_labels", float("nan"), "dataset.wrong_labels=nan is not from 0 to 1"),
        ("data_seed", -1, "dataset.data_seed=-1 is not from 0 to 4294967295"),
    ],
)
def test_a_knob_out_of_its_range_is_one_sentence(tmp_path: Path, name: str, value: float, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        listed(tmp_path, **DEFAULTS | {name: value})
    assert str(error.value) == sentence
    assert list(tmp_path.iterdir()) == []
