"""Train, validation and test: no leaks, the sizes that were asked for, one seed one split."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from defectcls.data.duplicates import split_units
from defectcls.data.samples import in_order
from defectcls.data.splits import deal_folds, leaked_units, split_samples
from defectcls.errors import UserError
from defectcls.settings import SplitSettings


def settings(**changed: Any) -> SplitSettings:
    defaults = {
        "together": [],
        "published": True,
        "train": None,
        "val": 0.15,
        "test": 0.2,
        "folds": None,
        "fold": 0,
        "seed": None,
    }
    protocol = {"anomalies": None, "hold_out_defect_type": None}
    return SplitSettings(**{**defaults, **protocol, **changed})


def table(labels: list[str], **columns: list[str]) -> pd.DataFrame:
    plain = {"path": [f"{row:05d}.png" for row in range(len(labels))], "label": labels, "defective": False}
    return pd.DataFrame(plain | columns)


def split(samples: pd.DataFrame, seed: int = 0, identical: np.ndarray | None = None, **changed: Any) -> pd.Series:
    copies = np.arange(len(samples)) if identical is None else identical
    return split_samples(samples, split_units(copies, samples.get("group")), settings(**changed), seed)


def counts(parts: pd.Series, *by: pd.Series) -> dict:
    return parts.groupby([*by, parts]).size().to_dict()


# --- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(103, 27), (300, 25), (50, 51, 8), (1000, 7)])
def test_shares_hold_to_within_one_image_of_each_class(sizes: tuple[int, ...]) -> None:
    samples = table([f"c{number}" for number, size in enumerate(sizes) for _ in range(size)])
    for seed in range(5):
        parts = split(samples, seed)
        for name, of_class in parts.groupby(samples["label"]):
            for part, share in (("train", 0.65), ("val", 0.15), ("test", 0.2)):
                assert abs((of_class == part).sum() - share * len(of_class)) <= 1, (name, part)


@pytest.mark.parametrize("train, val", [(0.7, 0.1), (0.6, 0.2), (0.7, 0.15)])
def test_shares_that_make_up_one_leave_no_image_unused(train: float, val: float) -> None:
    samples = table([f"c{size}" for size in range(20, 40) for _ in range(size)])
    assert set(split(samples, train=train, val=val, test=round(1 - train - val, 2))) == {"train", "val", "test"}


def test_stratified_by_class_category_and_defect_type() -> None:
    """Every combination is dealt by the shares, though the classes alone would allow all cracks in training."""
    rows = [
        ("defective" if kind != "good" else "sound", category, kind)
        for category, size in (("bottle", 40), ("screw", 60))
        for kind, images in (("good", 2 * size), ("crack", size), ("dent", size))
        for _ in range(images)
    ]
    labels, category, defect_type = (list(column) for column in zip(*rows, strict=True))
    samples = table(labels, category=category, defect_type=defect_type)
    for seed in range(5):
        found = counts(split(samples, seed), samples["category"], samples["defect_type"])
        for stratum, size in samples.groupby(["category", "defect_type"]).size().items():
            for part, share in (("train", 0.65), ("val", 0.15), ("test", 0.2)):
                assert abs(found[(*stratum, part)] - share * size) <= 1, (stratum, part)


def test_counts_are_exact_for_each_class_and_the_rest_is_unused() -> None:
    samples = table(["sound"] * 50 + ["defective"] * 31)
    assert counts(split(samples, train=5, val=3, test=10), samples["label"]) == {
        ("sound", "train"): 5,
        ("sound", "val"): 3,
        ("sound", "test"): 10,
        ("sound", "unused"): 32,
        ("defective", "train"): 5,
        ("defective", "val"): 3,
        ("defective", "test"): 10,
        ("defective", "unused"): 13,
    }


def test_counts_stay_exact_where_a_class_has_many_strata() -> None:
    """Five images cannot be shared evenly by seven categories; the class still gets five."""
    samples = table(["a", "b"] * 100, category=[f"c{row % 7}" for row in range(200)])
    for seed in range(10):
        found = counts(split(samples, seed, train=5, val=3, test=13), samples["label"])
        for name in "ab":
            assert [found[(name, part)] for part in ("train", "val", "test")] == [5, 3, 13]


def test_few_shot_training_tests_on_all_that_is_left() -> None:
    samples = table(["sound"] * 50 + ["defective"] * 31)
    found = counts(split(samples, train=5, val=5, test=None), samples["label"])
    assert found[("sound", "test")] == 40
    assert found[("defective", "test")] == 21
    assert not any(part == "unused" for _, part in found)


def test_counts_are_exact_with_groups_where_whole_groups_can_make_them() -> None:
    samples = table(["a"] * 40 + ["b"] * 40, group=[f"g{row // 2}" for row in range(80)])
    found = counts(split(samples, train=4, val=2, test=6), samples["label"])
    assert {part: found[("a", part)] for part in ("train", "val", "test")} == {"train": 4, "val": 2, "test": 6}
    assert {part: found[("b", part)] for part in ("train", "val", "test")} == {"train": 4, "val": 2, "test": 6}


def test_at_most_one_part_takes_the_rest() -> None:
    for pair in (
        {"train": None, "val": None},
        {"train": None, "test": None},
        {"train": None, "val": None, "test": None},
    ):
        with pytest.raises(ValidationError, match="at most one of train, val and test may be null"):
            settings(**pair)
    assert settings(train=0.5, val=None).val is None


def test_asking_for_more_than_there_is_names_the_class_and_the_sizes() -> None:
    with pytest.raises(
        UserError, match=r"^class 'b' has 9 images, fewer than dataset.split asks for: train=5, val=3, test=2$"
    ):
        split(table(["a"] * 50 + ["b"] * 9), train=5, val=3, test=2)
    with pytest.raises(
        UserError, match=r"class 'a' has 50 images, fewer than dataset.split asks for: train=0.8, val=0.15, test=0.2$"
    ):
        split(table(["a"] * 50 + ["b"] * 50), train=0.8)


def test_every_image_can_be_asked_for() -> None:
    """0.65 + 0.15 + 0.2 is a little more than 1 in floating point."""
    parts = split(table(["a"] * 20 + ["b"] * 20), train=0.65)
    assert counts(parts) == {"train": 26, "val": 6, "test": 8}


# --- small classes ----------------------------------------------------------------------------------------------------


def test_three_images_of_a_class_stand_one_in_each_part() -> None:
    samples = table(["sound"] * 60 + ["defective"] * 3)
    for seed in range(10):
        assert sorted(split(samples, seed)[60:]) == ["test", "train", "val"]


@pytest.mark.parametrize(("size", "lacking"), [(1, r"\w+ and \w+"), (2, r"\w+")])
def test_a_class_too_small_for_three_parts_is_named(size: int, lacking: str) -> None:
    counts = rf"\(images: {size}, independent of each other: {size}\)"
    way_out = "add some; model.head=memory needs sound ones alone"
    with pytest.raises(
        UserError, match=rf"^class 'crack' is too small to split {counts}, none is left for {lacking}: {way_out}$"
    ):
        split(table(["sound"] * 60 + ["crack"] * size))


def test_images_of_one_photo_count_as_one_unit_for_being_too_small() -> None:
    samples = table(["sound"] * 60 + ["crack"] * 12, group=[""] * 60 + ["photo 1"] * 6 + ["photo 2"] * 6)
    with pytest.raises(UserError, match="images: 12, independent of each other: 2"):
        split(samples)


# --- leaks ------------------------------------------------------------------------------------------------------------


def random_table(seed: int) -> tuple[pd.DataFrame, np.ndarray]:
    """Two to four classes in groups of one to six images, some with mixed classes, and some byte-identical copies."""
    rng = np.random.default_rng(seed)
    names = [f"c{number}" for number in range(rng.integers(2, 5))]
    rows = []
    for number in range(int(rng.integers(60, 120))):
        label, mixed = rng.choice(names), rng.random() < 0.2
        for _ in range(rng.integers(1, 7)):
            rows.append((rng.choice(names) if mixed else label, f"g{number}" if rng.random() < 0.9 else ""))
    labels, groups = (list(column) for column in zip(*rows, strict=True))
    identical = np.arange(len(rows))
    pairs = rng.choice(len(rows), (10, 2), replace=False)
    identical[pairs.max(1)] = pairs.min(1)
    return table(labels, group=groups), identical


@pytest.mark.parametrize("how", [{}, {"folds": 4, "fold": 2}, {"train": 8, "val": 5, "test": 5}])
def test_no_unit_ever_straddles_and_no_class_is_far_from_its_share(how: dict) -> None:
    for seed in range(25):
        samples, identical = random_table(seed)
        parts = split(samples, seed, identical, **how)
        units = split_units(identical, samples["group"])
        assert (parts.groupby(units).nunique() == 1).all()
        assert set(parts) <= {"train", "val", "test", "unused"}
        largest = np.bincount(units).max()
        for _, of_class in parts.groupby(samples["label"]):
            if not how:
                assert abs((of_class == "val").sum() - 0.15 * len(of_class)) <= largest
                assert abs((of_class == "test").sum() - 0.2 * len(of_class)) <= largest
            assert {"train", "val", "test"} <= set(of_class)


def test_groups_are_still_dealt_close_to_the_shares() -> None:
    """Groups of up to six leave each class within three images of its share: the largest are dealt first."""
    for seed in range(15):
        rng = np.random.default_rng(seed)
        sizes = {name: rng.integers(1, 7, 25) for name in ("a", "b", "c")}
        labels = [name for name, of_class in sizes.items() for _ in range(of_class.sum())]
        groups = [
            f"{name}{i}" for name, of_class in sizes.items() for i, size in enumerate(of_class) for _ in range(size)
        ]
        samples = table(labels, group=groups)
        for _, of_class in split(samples, seed).groupby(samples["label"]):
            assert abs((of_class == "val").sum() - 0.15 * len(of_class)) <= 3
            assert abs((of_class == "test").sum() - 0.2 * len(of_class)) <= 3


def test_byte_identical_copies_stay_together_across_classes_and_groups() -> None:
    samples = table(["a", "b"] * 30, group=[f"g{row // 2}" for row in range(60)])
    identical = np.arange(60)
    identical[[9, 40]] = 0  # ties the pairs 0-1, 8-9 and 40-41
    for seed in range(10):
        assert split(samples, seed, identical)[[0, 1, 8, 9, 40, 41]].nunique() == 1


# --- seeds and order --------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_split_and_another_seed_another() -> None:
    samples, identical = random_table(0)
    zero, again, one = (split(samples, seed, identical) for seed in (0, 0, 1))
    assert zero.equals(again)
    assert (zero != one).mean() > 0.2


def test_the_order_of_the_files_does_not_matter() -> None:
    rows = [
        {"path": f"{row}.png", "defective": row % 3 == 0, "label": f"c{row % 3 == 0}", "group": f"g{row // 4}"}
        for row in range(120)
    ]
    expected = None
    for seed in range(5):
        samples = in_order(pd.DataFrame(np.random.default_rng(seed).permutation(np.array(rows, dtype=object)).tolist()))
        parts = dict(zip(samples["path"], split(samples), strict=True))
        expected = expected or parts
        assert parts == expected


# --- folds ------------------------------------------------------------------------------------------------------------


def test_each_image_is_tested_in_exactly_one_fold() -> None:
    samples, identical = random_table(3)
    folds = [split(samples, 0, identical, folds=5, fold=fold) for fold in range(5)]
    tested = np.array([fold == "test" for fold in folds])
    assert (tested.sum(0) == 1).all()
    assert (tested.mean(1) > 0.15).all()
    assert (tested.mean(1) < 0.25).all()


@pytest.mark.parametrize("count", [3, 6, 7, 10, 20])
def test_any_count_of_folds_takes_every_image(count: int) -> None:
    """Three thirds of 7 are less than 7 in floating point, and what was left went to no fold."""
    samples = table([f"c{size}" for size in range(20, 40) for _ in range(size)])
    fold = deal_folds(samples, np.arange(len(samples)), count, np.random.default_rng(0))
    for _, of_class in samples.groupby("label"):
        found = np.bincount(fold[of_class.index], minlength=count)
        assert found.max() - found.min() <= 1


def test_a_fold_is_stratified_and_validates_on_its_share_of_the_rest() -> None:
    samples = table(["a"] * 100 + ["b"] * 50)
    for fold in range(5):
        found = counts(split(samples, folds=5, fold=fold), samples["label"])
        assert found[("a", "test")] == 20
        assert found[("b", "test")] == 10
        assert found[("a", "val")] == 12  # 0.15 of 80
        assert found[("b", "val")] == 6  # 0.15 of 40


def test_folds_are_numbered_from_0() -> None:
    with pytest.raises(ValidationError, match="fold 5 of 5: folds are numbered from 0 to 4"):
        settings(folds=5, fold=5)


# --- published splits -------------------------------------------------------------------------------------------------

PUBLISHED = table(["a"] * 40 + ["b"] * 20, split=["train"] * 30 + ["test"] * 10 + ["train"] * 15 + ["test"] * 5)


def test_a_whole_published_split_is_kept_to_the_row() -> None:
    published = ["train", "val", "test", "test"] * 10
    samples = table(["a", "b"] * 20, split=published)
    samples["label"] = ["a"] * 20 + ["b"] * 20
    assert split(samples).tolist() == published


def test_validation_is_carved_from_the_published_training_images() -> None:
    parts = split(PUBLISHED)
    assert ((parts == "test") == (PUBLISHED["split"] == "test")).all()
    found = counts(parts, PUBLISHED["label"])
    assert found[("a", "val")] in (4, 5)  # 0.15 of 30
    assert found[("b", "val")] in (2, 3)  # 0.15 of 15
    assert (parts == "train").sum() + (parts == "val").sum() == 45


@pytest.mark.parametrize(
    ("sizes", "val"),
    [({"val": 4}, 4), ({"train": 0.65, "val": 4}, 4), ({"train": 0.8, "val": None, "test": 0.2}, 6)],
)
def test_sizes_that_complete_a_published_split_are_of_its_training_images(sizes: dict, val: int) -> None:
    """`train` as a share takes what is left, unless `val` does."""
    of_a = split(PUBLISHED, **sizes)[:40]
    assert ((of_a == "val").sum(), (of_a == "train").sum(), (of_a == "test").sum()) == (val, 30 - val, 10)


def test_few_shot_counts_cut_a_published_training_part() -> None:
    found = counts(split(PUBLISHED, train=6, val=3), PUBLISHED["label"])
    assert found[("a", "train")] == found[("b", "train")] == 6
    assert found[("a", "unused")] == 30 - 9
    assert found[("b", "test")] == 5


@pytest.mark.parametrize("how", [{"published": False}, {"folds": 5, "fold": 1}])
def test_a_published_split_is_ignored_when_another_is_asked_for(how: dict) -> None:
    assert split(PUBLISHED, **how).equals(split(PUBLISHED.drop(columns="split"), **how))


def test_a_published_split_without_training_images_is_an_error_not_a_crash() -> None:
    with pytest.raises(UserError, match="none is left for train and val"):
        split(PUBLISHED.assign(split="test"))


def test_leaks_of_a_published_split_are_counted_by_unit() -> None:
    units = np.array([0, 0, 1, 1, 2, 2, 2, 3, 4, 4])
    parts = pd.Series(["train", "test", "val", "val", "train", "val", "test", "test", "train", "unused"])
    assert leaked_units(parts, units) == 2  # 0 and 2; that 4 is in part unused harms nobody


def test_a_split_of_our_own_has_no_leaks_where_the_published_one_has() -> None:
    samples = PUBLISHED.assign(group=[f"g{row % 20}" for row in range(60)])
    units = split_units(np.arange(60), samples["group"])
    assert leaked_units(split(samples), units) > 0
    assert leaked_units(split(samples, published=False), units) == 0


# --- few anomalies, new defects ---------------------------------------------------------------------------------------


def parts_of_products() -> pd.DataFrame:
    """Two categories of 20 sound training images, and for the test 10 sound ones, 12 cracks and 8 dents."""
    rows = [
        ("sound" if kind == "good" else "defective", kind != "good", category, kind, part)
        for category in ("bottle", "screw")
        for kind, part, images in (
            *(("good", "train", 20), ("good", "test", 10)),
            *(("crack", "test", 12), ("dent", "test", 8)),
        )
        for _ in range(images)
    ]
    columns = ("label", "defective", "category", "defect_type", "split")
    samples = pd.DataFrame(rows, columns=columns)
    return samples.assign(path=[f"{row:05d}.png" for row in samples.index])


def test_few_anomalies_join_the_published_training_images_of_each_category() -> None:
    samples = parts_of_products()
    draws = [split(samples, seed, anomalies=3, val=0.1) for seed in range(3)]
    for parts in draws:
        assert counts(parts, samples["category"], samples["label"]) == {
            **{(category, "sound", "train"): 18 for category in ("bottle", "screw")},
            **{(category, "sound", "val"): 2 for category in ("bottle", "screw")},
            **{(category, "sound", "test"): 10 for category in ("bottle", "screw")},
            **{(category, "defective", "train"): 3 for category in ("bottle", "screw")},
            **{(category, "defective", "test"): 17 for category in ("bottle", "screw")},
        }
    trained = [tuple(samples.index[(parts == "train") & samples["defective"]]) for parts in draws]
    assert len(set(trained)) == 3  # each seed draws others


@pytest.mark.parametrize("asked", [{"anomalies": 3}, {"hold_out_defect_type": "dent"}, {}])
def test_without_validation_a_test_that_is_asked_for_has_sound_images_too(asked: dict[str, Any]) -> None:
    samples = table(["sound"] * 50 + ["defective"] * 20, defect_type=[""] * 50 + ["crack", "dent"] * 10)
    samples = samples.assign(defective=samples["label"] == "defective")
    parts = split_samples(samples, np.arange(70), settings(**asked), 0, validates=False)
    of = counts(parts, samples["label"])
    assert "val" not in {*parts}
    assert of.get(("sound", "test"), 0) == (10 if asked else 0)  # their share
    shown = {"anomalies": 3, "hold_out_defect_type": 8}.get(next(iter(asked), ""), 20)  # of ten cracks two are tested
    assert of["defective", "train"] == shown
    published = samples.assign(split=["train"] * 40 + ["val"] * 5 + ["test"] * 5 + ["train"] * 20)
    kept = split_samples(published, np.arange(70), settings(**asked), 0, validates=False)
    assert counts(kept, samples["label"])["sound", "test"] == 5
    assert counts(kept, samples["label"])["sound", "train"] == 45


def test_few_anomalies_without_a_published_split_leave_sound_images_to_the_shares() -> None:
    samples = parts_of_products().drop(columns=["split", "category"]).assign(label=lambda table: table["defect_type"])
    found = counts(split(samples, anomalies=5, val=0.2, test=0.3), samples["label"])
    assert found == {
        **{("good", "train"): 30, ("good", "val"): 12, ("good", "test"): 18},
        **{("crack", "train"): 5, ("crack", "test"): 19, ("dent", "train"): 5, ("dent", "test"): 11},
    }


def test_what_is_tied_to_a_chosen_anomaly_is_not_tested() -> None:
    samples = parts_of_products()
    units = samples.index.to_numpy() // 2  # pairs; the last sound image of each test part is tied to no crack
    units[29] = units[30] = 1000  # a sound test image and a crack
    for seed in range(20):
        parts = split_samples(samples, units, settings(anomalies=4), seed)
        assert leaked_units(parts, units) == 0
        assert (parts[samples["defective"]] == "train").sum() == 8
        assert parts[29] == ("train" if parts[30] == "train" else "test")


def test_more_anomalies_than_there_are_is_a_sentence() -> None:
    with pytest.raises(UserError, match="anomalies=20 leaves none of 20 images of 'defective' to test"):
        split(parts_of_products(), anomalies=20)


def test_held_out_defect_type_is_tested_only_and_all_of_it() -> None:
    samples = parts_of_products()
    units = samples.index.to_numpy().copy()
    units[40] = units[45]  # a crack and a dent of one part
    parts = split_samples(samples, units, settings(published=False, hold_out_defect_type="dent"), 0)
    assert set(parts[samples["defect_type"] == "dent"]) == {"test"}
    assert parts[40] == "test"
    others = counts(parts[samples["defect_type"] != "dent"], samples["defect_type"][samples["defect_type"] != "dent"])
    assert 14 <= others[("crack", "train")] <= 16  # 0.65 of 23
    assert others[("good", "test")] == 12


def test_a_split_published_for_anomaly_detection_shows_no_defect_before_the_test() -> None:
    samples = parts_of_products()
    found = counts(split(samples, val=0.1), samples["label"])
    assert found == {("sound", "train"): 36, ("sound", "val"): 4, ("sound", "test"): 20, ("defective", "test"): 40}


def test_the_only_defect_type_may_be_held_out() -> None:
    samples = parts_of_products().assign(
        defect_type=lambda table: table["defective"].map({True: "dent", False: "good"})
    )
    found = counts(split(samples, published=False, hold_out_defect_type="dent"), samples["label"])
    assert {key: count for key, count in found.items() if key[0] == "defective"} == {("defective", "test"): 40}


def test_unknown_defect_type_is_a_sentence() -> None:
    with pytest.raises(UserError, match="hold_out_defect_type=dend: no image is of this type, did you mean 'dent'"):
        split(parts_of_products(), hold_out_defect_type="dend")
    with pytest.raises(UserError, match="there are no defect types"):
        split(parts_of_products().drop(columns="defect_type"), hold_out_defect_type="dent")
    with pytest.raises(ValidationError, match="leave one out"):
        settings(folds=5, anomalies=1)
