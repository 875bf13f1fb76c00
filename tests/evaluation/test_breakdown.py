import math

import numpy as np
import pandas as pd
import pytest

from defectcls.evaluation.breakdown import breakdown, breakdowns
from defectcls.evaluation.intervals import proportion_interval
from defectcls.evaluation.predictions import predictions_table

TWO = (["sound", "defective"], [False, True])


def table(truth: list[int], scores: list[float], **columns: list) -> pd.DataFrame:
    samples = pd.DataFrame({"label": np.array(TWO[0])[truth], "defective": np.array(truth, bool), **columns})
    return predictions_table(samples, np.column_stack([1 - np.array(scores), scores]), *TWO)


PARTS = table(
    [1, 1, 0, 1, 1, 0, 0, 0, 0],
    [0.9, 0.2, 0.1, 0.9, 0.8, 0.7, 0.1, 0.1, 0.9],
    category=["nut", "nut", "nut", "cap", "cap", "cap", "cap", "bolt", "bolt"],
    group=["a", "a", "", "b", "b", "b", "", "", ""],
    defect_type=["dent"] * 9,
)


def test_the_worst_comes_first() -> None:
    rows = breakdown(PARTS.drop(columns="group"), "category", *TWO)
    assert rows.columns.tolist() == [
        *("category", "n", "n_defective", "recall", "overkill_rate", "recall_low", "recall_high")
    ]
    assert rows.iloc[:2, :5].to_numpy().tolist() == [["nut", 3, 2, 0.5, 0.0], ["cap", 4, 2, 1.0, 0.5]]
    assert rows.iloc[2, [0, 1, 2, 4]].tolist() == ["bolt", 2, 0, 0.5]
    assert math.isnan(rows.iloc[2]["recall"])
    half = proportion_interval(np.array([True, False]), None)
    assert rows.iloc[0][["recall_low", "recall_high"]].tolist() == pytest.approx(list(half))


def test_images_under_review_are_caught_but_not_rejected() -> None:
    decision = np.where(PARTS["prediction"] == "defective", "review", "accept")
    rows = breakdown(PARTS.assign(decision=decision), "category", *TWO).set_index("category")
    assert rows["recall"]["cap"] == 1
    assert rows["overkill_rate"].tolist() == [0, 0, 0]


def test_a_limit_keeps_the_worst() -> None:
    assert breakdown(PARTS, "category", *TWO, limit=1)["category"].tolist() == ["nut"]


def test_breakdowns_are_plain_and_of_what_differs() -> None:
    found = breakdowns(PARTS, *TWO)
    assert list(found) == ["category", "group"]
    assert found["category"][2]["recall"] is None
    assert [(row["group"], row["n"], row["recall"]) for row in found["group"]] == [("a", 2, 0.5), ("b", 3, 1.0)]
