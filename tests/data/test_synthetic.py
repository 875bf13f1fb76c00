"""The drawn dataset against its promises: labels follow the masks, shares are exact, twins near, one seed one set."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.ndimage import distance_transform_edt

from defectcls.data import synthetic
from defectcls.data.synthetic import MARGIN, Synthetic
from defectcls.errors import UserError

SMALL = {"image_count": 90, "image_side": 64}
KINDS = {"sound", "crack", "spalling"}


def listed(root: Path, **knobs: Any) -> pd.DataFrame:
    return Synthetic(root=root, **knobs).sample_table()


def pixels(file: Path) -> np.ndarray:
    return np.asarray(Image.open(file)).astype(float)


def digests(folder: Path) -> dict[str, str]:
    files = (file for file in folder.rglob("*") if file.is_file() and file.name != "lock")
    return {file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture(scope="module")
def flawed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    """A set with 18 twins among 90 images and 9 wrong labels."""
    root = tmp_path_factory.mktemp("flawed") / "not" / "there" / "yet"
    return root, listed(root, **SMALL | {"near_duplicates": 0.2, "wrong_labels": 0.1})


def test_the_truth_follows_the_mask(flawed: tuple[Path, pd.DataFrame]) -> None:
    root, samples = flawed
    assert len(samples) == 90
    assert set(samples["true_defect_type"]) == set(samples["defect_type"]) == KINDS
    for row in samples.itertuples():
        assert pixels(root / row.path).shape == (64, 64, 3)
        assert bool(row.mask) == (row.true_defect_type != "sound") == (row.severity > 0)
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


def test_defects_come_in_photos() -> None:
    plan = Synthetic(image_count=6000).plan()
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


@pytest.mark.parametrize("photo", range(6))
def test_a_defect_shows_under_its_mask_and_nowhere_else(photo: int) -> None:
    easy, hard = (Synthetic(**SMALL, difficulty=difficulty) for difficulty in (0, 1))
    for crop in range(6):
        change, least = (
            np.abs(data.image(photo, crop, True)[0].astype(float) - data.image(photo, crop, False)[0]).mean(2)
            for data in (easy, hard)
        )
        (_, mask, _, severity), (_, where, _, same) = (data.image(photo, crop, True) for data in (easy, hard))
        assert not easy.image(photo, crop, False)[1].any()
        inner = np.s_[MARGIN:-MARGIN, MARGIN:-MARGIN]
        away = distance_transform_edt(~mask)[inner]
        assert change[mask].mean() > 20 * severity  # grey levels
        assert change[inner][away > 12].max(initial=0) <= 1
        assert severity == same
        assert least[where].mean() < 0.7 * change[mask].mean()


def test_the_second_use_only_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    knobs = SMALL | {"image_count": 6, "defect_share": 0}
    first = listed(tmp_path, **knobs)
    monkeypatch.setattr(synthetic, "photograph", None)
    pd.testing.assert_frame_equal(listed(tmp_path, **knobs | {"defect_share": 0.0}), first)
    for knob in ("image_count", "crops_per_photo", "defect_share", "data_seed"):
        assert Synthetic(**knobs | {knob: 1}).folder != Synthetic(**knobs).folder


def test_what_a_killed_run_left_is_drawn_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    knobs = SMALL | {"image_count": 8}
    with monkeypatch.context() as broken:
        broken.setattr(Synthetic, "_save", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            listed(tmp_path / "broken", **knobs)
    assert not list(tmp_path.rglob("samples.csv"))
    pd.testing.assert_frame_equal(listed(tmp_path / "broken", **knobs), listed(tmp_path / "whole", **knobs))
    assert digests(tmp_path / "broken") == digests(tmp_path / "whole")


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("image_count", 0, "dataset.image_count=0: it has to be greater than or equal to 1"),
        ("image_side", 2049, "dataset.image_side=2049: it has to be less than or equal to 2048"),
        ("defect_share", 1.01, "dataset.defect_share=1.01: it has to be less than or equal to 1"),
        ("near_duplicates", 0.6, "dataset.near_duplicates=0.6: it has to be less than or equal to 0.5"),
        ("wrong_labels", float("nan"), "dataset.wrong_labels=nan: it has to be less than or equal to 1"),
    ],
)
def test_a_knob_out_of_its_range_is_one_sentence(tmp_path: Path, name: str, value: float, sentence: str) -> None:
    with pytest.raises(UserError) as error:
        listed(tmp_path, **{name: value})
    assert str(error.value) == sentence
    assert list(tmp_path.iterdir()) == []
