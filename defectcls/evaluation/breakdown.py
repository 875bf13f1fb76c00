"""Where a model is weak: recall and overkill by category, defect type, size of the defect and group of images."""

from typing import Any

import numpy as np
import pandas as pd

from defectcls.evaluation.intervals import proportion_interval
from defectcls.evaluation.metrics import records
from defectcls.evaluation.predictions import groups_of, verdicts

COLUMNS = ("category", "defect_type", "mask_size", "group")
LIMIT = 20  # rows of each, the worst

Row = dict[str, Any]


def breakdowns(
    predictions: pd.DataFrame, class_names: list[str], defective_classes: list[bool]
) -> dict[str, list[Row]]:
    """`breakdown` by each of COLUMNS that the table has with two values or more, as plain values (None for NaN)."""
    found = {}
    for column in COLUMNS:
        rows = predictions
        if column == "group" and column in rows:
            rows = rows[(rows["group"] != "") & rows["group"].duplicated(keep=False)]
        if column in rows and rows[column].nunique() > 1:
            found[column] = records(breakdown(rows, column, class_names, defective_classes, LIMIT))
    return found


def breakdown(
    predictions: pd.DataFrame,
    column: str,
    class_names: list[str],
    defective_classes: list[bool],
    limit: int | None = None,
) -> pd.DataFrame:
    """One row a value of `column`, worst recall first: at most `limit` rows.

    `n`, `n_defective`, `recall` (share caught) with the 95 % interval from `recall_low` to `recall_high`, and
    `overkill_rate`; NaN where a value has no defective (or no sound) image.
    """
    flagged, rejected = verdicts(predictions, class_names, defective_classes)
    defective = predictions["defective"].to_numpy(bool)
    rows = pd.DataFrame(
        {
            column: predictions[column].to_numpy(),
            "n_defective": defective,
            "recall": np.where(defective, flagged, np.nan),
            "overkill_rate": np.where(defective, np.nan, rejected),
        }
    ).groupby(column, sort=True)
    table = rows.agg({"n_defective": "sum", "recall": "mean", "overkill_rate": "mean"})
    table.insert(0, "n", rows.size())
    order = {"recall": True, "overkill_rate": False}
    table = table.reset_index().sort_values([*order], ascending=[*order.values()], kind="stable", ignore_index=True)
    table = table.head(limit) if limit else table

    groups = groups_of(predictions)
    intervals = []
    for value in table[column]:
        members = np.flatnonzero((predictions[column] == value).to_numpy() & defective)
        intervals.append(proportion_interval(flagged[members], None if column == "group" else groups[members]))
    table[["recall_low", "recall_high"]] = np.array(intervals).reshape(-1, 2)
    return table
