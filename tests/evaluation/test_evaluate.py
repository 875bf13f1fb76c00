import numpy as np
import pytest

from defectcls.evaluation.evaluate import WORST, breakdowns, mask_scores
from defectcls.evaluation.intervals import proportion_interval
from tests.evaluation.test_metrics import TWO, two_class_table

# --- where it is weak -------------------------------------------------------------------------------------------------

PARTS = two_class_table(
    [1, 1, 0, 1, 1, 0, 0, 0, 0],
    [0.9, 0.2, 0.1, 0.9, 0.8, 0.7, 0.1, 0.1, 0.9],
    category=["nut", "nut", "nut", "cap", "cap", "cap", "cap", "bolt", "bolt"],
    defect_type=["dent"] * 9,
)


def test_the_worst_comes_first_and_rows_are_of_what_differs() -> None:
    found = breakdowns(PARTS, TWO)
    assert list(found) == ["category"]
    nut, cap, bolt = found["category"]
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


# --- heat maps -------------------------------------------------------------------------------------------------------


def test_hit_by_hand() -> None:
    heat = np.zeros((5, 2, 2), np.float32)
    heat[0] = [[1.0, 0.5], [0.25, 0.25]]
    heat[1] = [[0.5, 1.0], [0.5, 0.0]]
    heat[2] = [[1.0, 0.5], [0.5, 0.0]]
    masks = np.zeros((5, 2, 2), bool)
    masks[:4, 0, 0] = masks[0, 1, 1] = True
    hit, chance = mask_scores(heat, masks).values()
    assert hit == pytest.approx([1, 0, 1, 0, np.nan], nan_ok=True)  # the fourth map is cold, the fifth mask empty
    assert chance == pytest.approx([0.5, 0.25, 0.25, 0.25, np.nan], nan_ok=True)


def test_random_heat_hits_by_chance() -> None:
    rng = np.random.default_rng(0)
    masks = rng.random((200, 16, 16)) < rng.uniform(0.1, 0.9, (200, 1, 1))
    hit, chance = mask_scores(rng.random((200, 16, 16)).astype(np.float32), masks).values()
    assert hit.mean() == pytest.approx(chance.mean(), abs=0.1)
