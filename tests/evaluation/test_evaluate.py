import numpy as np
import pandas as pd
import pytest

from defectcls.evaluation.decision import ABOVE_ALL, Decision
from defectcls.evaluation.evaluate import WORST, breakdowns, evaluate, majority_collapse, mask_scores, ranks
from defectcls.evaluation.intervals import proportion_interval
from defectcls.pages.caveats import caveats
from tests.evaluation.test_metrics import two_class_table
from tests.pages.test_report import THREE, TWO, metrics_of, predictions_from

ALL_SOUND = Decision("fpr<=0.001", accept_below=ABOVE_ALL, reject_from=ABOVE_ALL, evidence={"escapes": 9})


def scored(scores: list[float], defective: list[bool]) -> pd.DataFrame:
    """A predictions table of these scores, by the most probable class."""
    rows = predictions_from([[defective.count(False), 0], [defective.count(True), 0]], TWO)
    answer = np.where(np.array(scores) > 0.5, "defective", "sound")
    return rows.assign(score=scores, p_defective=scores, p_sound=1 - np.array(scores), prediction=answer)


# --- where it is weak -------------------------------------------------------------------------------------------------

PARTS = two_class_table(
    [1, 1, 0, 1, 1, 0, 0, 0, 0],
    [0.9, 0.2, 0.1, 0.9, 0.8, 0.7, 0.1, 0.1, 0.9],
    category=["nut", "nut", "nut", "cap", "cap", "cap", "cap", "bolt", "bolt"],
    group=["a", "a", "", "b", "b", "b", "", "", ""],
    defect_type=["dent"] * 9,
)


def test_the_worst_comes_first_and_rows_are_of_what_differs() -> None:
    found = breakdowns(PARTS, TWO)
    assert list(found) == ["category", "group"]
    assert [(row["group"], row["n"], row["recall"]) for row in found["group"]] == [("a", 2, 0.5), ("b", 3, 1.0)]
    nut, cap, bolt = breakdowns(PARTS.drop(columns="group"), TWO)["category"]
    low, high = proportion_interval(np.array([True, False]))
    expected = {"category": "nut", "n": 3, "n_defective": 2, "recall": 0.5, "overkill_rate": 0.0}
    assert nut == expected | {"recall_low": pytest.approx(low), "recall_high": pytest.approx(high)}
    assert [cap[key] for key in expected] == ["cap", 4, 2, 1.0, 0.5]
    assert [bolt[key] for key in (*expected, "recall_low")] == ["bolt", 2, 0, None, 0.5, None]


def test_images_under_review_are_caught_but_not_rejected() -> None:
    decision = np.where(PARTS["prediction"] == "defective", "review", "accept")
    rows = {row["category"]: row for row in breakdowns(PARTS.assign(decision=decision), TWO)["category"]}
    assert rows["cap"]["recall"] == 1
    assert [row["overkill_rate"] for row in rows.values()] == [0, 0, 0]


def test_the_worst_are_kept_of_many() -> None:
    missed = [0.9] * 60
    missed[7] = missed[8] = 0.1
    rows = two_class_table([1] * 60, missed, defect_type=[f"{number // 2:02}" for number in range(60)])
    found = breakdowns(rows, TWO)["defect_type"]
    assert [row["defect_type"] for row in found[:3]] == ["03", "04", "00"] and len(found) == WORST


# --- nearly every image called alike ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("matrix", "called"),
    [
        ([[42, 4], [13, 0]], 55),  # a published recipe on bottles
        ([[72, 0], [24, 0]], 96),
        ([[97, 3], [19, 1]], 116),  # 5 % caught, 3 % rejected
        ([[1000, 0], [5, 0]], 1005),  # up to 1 - 0.05^(1/5) = 45 % of such defects might be caught: less than half
        ([[1000, 0], [4, 0]], None),  # 1 - 0.05^(1/4) = 53 %: four defects are too few to say so
        ([[1000, 0], [1, 0]], None),
        ([[300, 0], [27, 10]], None),  # 97 % are called sound, and what is not is defective
        ([[300, 0], [1, 9]], None),
        ([[80, 20], [20, 0]], None),  # useless, but not alike: 83 %
        ([[60, 0], [0, 0]], None),
    ],
)
def test_collapse_onto_sound(matrix: list[list[int]], called: int | None) -> None:
    expected = None if called is None else {"into": "sound", "called": called, "of": sum(map(sum, matrix))}
    assert majority_collapse(predictions_from(matrix, TWO)) == expected
    turned = [row[::-1] for row in matrix[::-1]]
    assert majority_collapse(predictions_from(turned, TWO)) == (expected and expected | {"into": "defective"})


def test_images_of_one_photo_count_as_one() -> None:
    missed = predictions_from([[46, 0], [13, 0]], TWO)
    assert majority_collapse(missed.assign(unit=range(59))) is not None
    assert majority_collapse(missed.assign(unit=[*range(46), *[46] * 13])) is None


def test_what_a_person_looks_at_is_not_called_anything() -> None:
    rows = predictions_from([[46, 0], [13, 0]], TWO).assign(decision=["accept"] * 46 + ["review"] * 13)
    assert majority_collapse(rows) is None


def test_collapse_of_many_classes() -> None:
    assert majority_collapse(predictions_from([[80, 0, 0], [10, 0, 0], [10, 0, 0]], THREE)) is not None
    assert majority_collapse(predictions_from([[80, 0, 0], [1, 9, 0], [2, 0, 0]], THREE)) is None
    metrics = metrics_of(THREE) | {
        "test": evaluate(predictions_from([[80, 0, 0], [9, 1, 0], [10, 0, 0]], THREE), None, THREE)[1]
    }
    assert caveats(metrics)[0].startswith(
        "Majority-class collapse: 99 of 100 images are called “good”, and of the 20 others 1 was given the right "
        "class. The accuracy of 81.0 % tells nothing: calling every image “good” gives 80.0 %."
    )


def test_collapse_in_words() -> None:
    _, test = evaluate(predictions_from([[42, 4], [13, 0]], TWO), None, TWO)
    assert test["collapse"] == {"into": "sound", "called": 55, "of": 59}
    assert not ranks(test)
    (low, high), metrics = test["intervals"]["auroc"], metrics_of(TWO) | {"test": test}
    assert caveats(metrics)[0] == (
        "Majority-class collapse: 55 of 59 images are called “sound”, and of the 13 others none was given the right "
        "class. The accuracy of 71.2 % tells nothing: calling every image “sound” gives 78.0 %. Nor do the scores "
        f"surely rank better than chance: AUROC 0.457 (95 % interval {low:.3f} to {high:.3f})."
    )
    baseline = metrics_of(TWO, baseline=[[30, 30], [30, 30]])
    assert "Train from pretrained weights" in caveats(metrics | baseline)[0]
    _, test = evaluate(predictions_from([[1, 49], [0, 10]], TWO), None, TWO)
    assert caveats(metrics_of(TWO) | {"test": test})[0].startswith(
        "Collapse onto one class: 59 of 60 images are called “defective”, and of the 50 others 1 was given"
    )


def test_scores_that_rank_are_told_from_a_model_that_knows_nothing() -> None:
    """All defects below 0.5, and above all sound images: the network knows them, the decision does not."""
    rows = scored([0.1] * 60 + [0.4] * 20, [False] * 60 + [True] * 20)
    _, by_class = evaluate(rows, None, TWO)
    assert by_class["collapse"]["called"] == 80
    (words,) = [text for text in caveats(metrics_of(TWO) | {"test": by_class}) if "collapse" in text]
    assert words.endswith("decision=f1 takes a threshold that uses them.") and "AUROC 1.000" in words
    assert (
        "the threshold is for other images"
        in caveats(
            metrics_of(TWO) | {"test": by_class, "elsewhere": {"trained_on": "a", "judged_on": "b", "test": {}}}
        )[1]
    )

    _, by_promise = evaluate(rows, ALL_SOUND, TWO)
    assert by_promise["confusion_matrix"] == [[60, 0], [20, 0]]
    assert "collapse" not in by_promise
    _, knows_nothing = evaluate(scored([0.1] * 80, [False] * 60 + [True] * 20), ALL_SOUND, TWO)
    assert knows_nothing["collapse"]["called"] == 80


def test_one_defect_that_escapes_is_too_few_to_judge_the_model() -> None:
    _, test = evaluate(predictions_from([[60, 0], [1, 0]], TWO), None, TWO)
    assert "collapse" not in test


def test_hit_and_energy_by_hand() -> None:
    heat = np.zeros((5, 2, 2), np.float32)
    heat[0] = [[1.0, 0.5], [0.25, 0.25]]
    heat[1] = [[0.5, 1.0], [0.5, 0.0]]
    heat[2] = [[1.0, 1.0], [1.0, 0.0]]  # three are equally hot, one of them in the mask
    masks = np.zeros((5, 2, 2), bool)
    masks[:4, 0, 0] = masks[0, 1, 1] = True
    hit, energy, chance = mask_scores(heat, masks).values()
    assert hit == pytest.approx([1, 0, 1 / 3, 0, np.nan], nan_ok=True)  # the fourth map is cold, the fifth mask empty
    assert energy == pytest.approx([1.25 / 2, 0.5 / 2, 1 / 3, 0, np.nan], nan_ok=True)
    assert chance == pytest.approx([0.5, 0.25, 0.25, 0.25, np.nan], nan_ok=True)


def test_energy_of_random_heat_is_chance() -> None:
    rng = np.random.default_rng(0)
    masks = rng.random((200, 16, 16)) < rng.uniform(0.1, 0.9, (200, 1, 1))
    hit, energy, chance = mask_scores(rng.random((200, 16, 16)).astype(np.float32), masks).values()
    assert energy.mean() == pytest.approx(chance.mean(), abs=0.01)
    assert hit.mean() == pytest.approx(chance.mean(), abs=0.1)
