from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit
from sklearn import metrics as sk

from defectcls.errors import UserError
from defectcls.evaluation.comparison import common_images, compare_predictions
from tests.evaluation.test_metrics import THREE, table, two_class_table

ALL = ["recall", "overkill_rate", "precision", "f1", "accuracy", "auroc", "average_precision"]


def run_of(positive: np.ndarray, noise: np.ndarray, skill: float = 2, **columns) -> pd.DataFrame:
    scores = expit(skill * (positive - 0.5) + noise)
    paths = [f"photos/{number}.png" for number in range(len(positive))]
    return two_class_table(positive.astype(int).tolist(), scores, path=paths, **columns)


def runs(
    seed: int, n: int = 300, skills: tuple[float, ...] = (2, 2), likeness: float = 0.7, share: float = 0.3
) -> dict:
    """Tables of runs that are likewise mistaken on the same images."""
    generator = np.random.default_rng(seed)
    positive, common = generator.random(n) < share, generator.normal(size=n)
    return {
        f"run {number}": run_of(
            positive, np.sqrt(likeness) * common + np.sqrt(1 - likeness) * generator.normal(size=n), skill
        )
        for number, skill in enumerate(skills)
    }


def by_metric(comparison: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {one["metric"]: one for one in comparison["differences"]}


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_differences_are_those_of_scikit_learn():
    tables = runs(0, skills=(3, 1))
    found = by_metric(compare_predictions(tables, ALL, resamples=100))
    functions = {
        "recall": lambda t: sk.recall_score(t["label"], t["prediction"], pos_label="defective"),
        "overkill_rate": lambda t: (t["prediction"] == "defective")[~t["defective"]].mean(),
        "precision": lambda t: sk.precision_score(t["label"], t["prediction"], pos_label="defective"),
        "f1": lambda t: sk.f1_score(t["label"], t["prediction"], pos_label="defective"),
        "accuracy": lambda t: sk.accuracy_score(t["label"], t["prediction"]),
        "auroc": lambda t: sk.roc_auc_score(t["defective"], t["score"]),
        "average_precision": lambda t: sk.average_precision_score(t["defective"], t["score"]),
    }
    assert list(found) == list(functions)
    for metric, function in functions.items():
        expected = function(tables["run 0"]) - function(tables["run 1"])
        assert found[metric]["difference"] == pytest.approx(expected, abs=1e-12), metric


def test_of_folds_the_mean_within_is_compared():
    """The second run's folds rank as the first's do, but their scores are shifted against each other."""
    (first,) = runs(0, skills=(2,)).values()
    fold = np.arange(len(first)) % 3
    shifted = expit(np.log(first["score"] / (1 - first["score"])) + 4 * fold).rename("score")
    second = first.assign(score=shifted, p_sound=1 - shifted, p_defective=shifted)
    assert sk.roc_auc_score(first["defective"], shifted) < sk.roc_auc_score(first["defective"], first["score"]) - 0.05
    tables = {"one": first.assign(fold=fold), "other": second.assign(fold=fold)}
    found = compare_predictions(tables, ["auroc"], resamples=200)
    one, other = found["values"]
    within = [sk.roc_auc_score(rows["defective"], rows["score"]) for _, rows in tables["one"].groupby("fold")]
    assert one["value"] == other["value"] == pytest.approx(np.mean(within))
    assert found["differences"][0]["difference"] == pytest.approx(0, abs=1e-12)


def test_interval_of_a_paired_share_worked_by_hand():
    """Of 40 defects A alone catches 8 and B alone 2; with one more on each side 9 and 3 of 42 (Bonett and Price)."""
    caught = np.array([[1, 0]] * 8 + [[0, 1]] * 2 + [[1, 1]] * 20 + [[0, 0]] * 10)
    paths = [str(number) for number in range(40)]
    tables = {run: two_class_table([1] * 40, caught[:, index], path=paths) for index, run in enumerate("AB")}
    tables = {run: pd.concat([one, two_class_table([0], [0.1], path=["sound"])]) for run, one in tables.items()}
    (found,) = compare_predictions(tables, ["recall"], resamples=20_000)["differences"]
    centre, error = 6 / 42, np.sqrt((12 / 42 - (6 / 42) ** 2) / 42)
    assert found["difference"] == pytest.approx(6 / 40)
    # Student's quantile for 39 degrees of freedom is 2.0227
    assert (found["low"], found["high"]) == pytest.approx((centre - 2.0227 * error, centre + 2.0227 * error), abs=0.002)
    assert found["better"] == ""


@pytest.mark.slow
def test_auroc_difference_is_as_wide_as_that_of_delong():
    tables = runs(3, n=2000, skills=(2.2, 2))
    placements = []
    for one in tables.values():
        defective, scores = one["defective"].to_numpy(), one["score"].to_numpy()
        placements.append((scores[defective][:, None] > scores[~defective]).astype(float))
    above = placements[0] - placements[1]
    variance = sum(above.mean(axis=axis).var(ddof=1) / above.shape[1 - axis] for axis in (0, 1))
    (found,) = compare_predictions(tables, ["auroc"], resamples=10_000)["differences"]
    reach = 1.96 * np.sqrt(variance)
    assert (found["low"], found["high"]) == pytest.approx((above.mean() - reach, above.mean() + reach), rel=0.03)


def test_pairing_is_what_shows_a_small_difference():
    comparison = compare_predictions(runs(1, n=2000, skills=(2.3, 2), likeness=0.95), ["auroc"])
    (found,) = comparison["differences"]
    assert found["better"] == "run 0"
    alone = [one["high"] - one["low"] for one in comparison["values"]]
    assert found["high"] - found["low"] < 0.5 * np.hypot(*alone)


def test_of_two_errors_the_rarer_is_better():
    (run,) = runs(2, skills=(1.5,)).values()
    found = by_metric(compare_predictions({"run": run, "none": run.assign(prediction="defective")}, ALL))
    assert [found[metric]["better"] for metric in ("recall", "overkill_rate", "auroc")] == ["none", "run", ""]


def test_groups_that_repeat_an_image_count_once():
    tables = runs(4, n=100, skills=(3, 1))
    repeated = {
        run: pd.concat([one.assign(path=one["path"] + str(copy), group=one["path"]) for copy in range(5)])
        for run, one in tables.items()
    }
    once, tied = (by_metric(compare_predictions(given, ALL)) for given in (tables, repeated))
    for metric, one in once.items():
        width = one["high"] - one["low"]
        assert (tied[metric]["low"], tied[metric]["high"]) == pytest.approx(
            (one["low"], one["high"]), abs=0.1 * width
        ), metric


def test_intervals_widen_with_the_number_of_pairs():
    tables = runs(5, skills=(2, 2.2, 1.8))
    two = by_metric(compare_predictions(dict(list(tables.items())[:2]), ["accuracy"]))["accuracy"]
    three = compare_predictions(tables, ["accuracy"])
    assert [(one["run"], one["other"]) for one in three["differences"]] == [
        ("run 0", "run 1"),
        ("run 0", "run 2"),
        ("run 1", "run 2"),
    ]
    first = three["differences"][0]
    # normal quantiles of 1 - 0.05 / 6 and 1 - 0.05 / 2
    assert (first["high"] - first["low"]) / (two["high"] - two["low"]) == pytest.approx(2.394 / 1.960, rel=0.04)
    assert three["adjusted_level"] == pytest.approx(1 - 0.05 / 3)


def test_all_defective_classes_count_as_one():
    truth, answer = [0, 0, 1, 2, 1, 0], [0, 1, 2, 0, 1, 0]
    probabilities = np.full((3, 3), 0.1) + 0.7 * np.eye(3)
    paths = list("abcdef")
    tables = {
        "right": table(truth, probabilities[truth], THREE, path=paths),
        "wrong": table(truth, probabilities[answer], THREE, path=paths),
    }
    found = by_metric(compare_predictions(tables, ["recall", "overkill_rate", "accuracy"], resamples=100))
    # crack taken for hole is caught, hole taken for good is not, good taken for crack is overkill
    assert [one["difference"] for one in found.values()] == pytest.approx([1 / 3, -1 / 3, 3 / 6])


def test_of_sound_classes_alone_the_accuracy_is_compared():
    truth, probabilities = [0, 1] * 5, np.full((2, 2), 0.1) + 0.8 * np.eye(2)
    paths, classes = list("abcdefghij"), {"matt": False, "glossy": False}
    tables = {
        name: table(truth, probabilities[answer], classes, path=paths)
        for name, answer in {"right": truth, "wrong": [0] * 10}.items()
    }
    (found,) = compare_predictions(tables, ALL, resamples=100)["differences"]
    assert (found["metric"], found["difference"]) == ("accuracy", 0.5)


def test_a_number_that_one_run_cannot_state_is_left_out():
    tables = runs(6, n=60)
    nothing = tables["run 1"].assign(prediction="sound", score=0.1, p_defective=0.1, p_sound=0.9)
    comparison = compare_predictions({"a": tables["run 0"], "b": nothing}, ALL, resamples=100)
    assert set(by_metric(comparison)) == set(ALL) - {"precision"}
    nothing_to_state = {"run": "b", "metric": "precision", "value": None, "low": None, "high": None}
    assert nothing_to_state in comparison["values"]


# --- which images -----------------------------------------------------------------------------------------------------


def test_only_common_images_count_whatever_their_order():
    tables = runs(8, n=80, skills=(3, 1))
    expected = compare_predictions({run: one[20:60] for run, one in tables.items()}, ["recall", "auroc"])
    shuffled = {"run 0": tables["run 0"][:60], "run 1": tables["run 1"][20:].sample(frac=1, random_state=0)}
    found = compare_predictions(shuffled, ["recall", "auroc"])
    assert found["differences"] == expected["differences"]
    assert (found["images"], found["left_out"]) == (40, {"run 0": 20, "run 1": 20})
    assert (expected["images"], expected["left_out"]) == (40, {"run 0": 0, "run 1": 0})


@pytest.mark.parametrize(
    "change, text",
    [
        (lambda table: table.assign(path="x" + table["path"]), "no image stands in all of a, b"),
        (lambda table: table.assign(label=table["label"].where(table.index != 3, "none")), "b and a share have other"),
        (lambda table: table.rename(columns={"p_defective": "p_hole"}), "b and a share have other classes"),
    ],
    ids=["images", "truth", "classes"],
)
def test_tables_that_cannot_be_compared(change, text):
    one, other = runs(9, n=20).values()
    with pytest.raises(UserError, match=text):
        common_images({"a": one, "b": change(other)})


def test_three_tables_that_only_meet_in_pairs():
    one, other = runs(1, n=30).values()
    with pytest.raises(UserError, match="^no image stands in all of a, b, c: compare runs on the same test images$"):
        common_images({"a": one, "b": other[:15], "c": other[15:]})


# --- how often it is right --------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("n, share", [(60, 0.5), (600, 0.05)])
def test_runs_that_are_equally_good_are_rarely_told_apart(n, share):
    """In 500 comparisons of equals, at 95 %, each number is called different at most 7 times in 100."""
    claims = dict.fromkeys(ALL, 0)
    for seed in range(500):
        for one in compare_predictions(runs(seed, n, share=share), ALL, resamples=400)["differences"]:
            claims[one["metric"]] += one["better"] != ""
    assert max(claims.values()) <= 35, claims


@pytest.mark.slow
def test_one_of_four_equals_is_rarely_called_better_than_another():
    claims = 0
    for seed in range(500):
        comparison = compare_predictions(runs(seed, 150, skills=(2, 2, 2, 2)), ["auroc"], resamples=200)
        claims += any(one["better"] for one in comparison["differences"])
    assert claims <= 35
