"""From what a network says of some images to decided predictions and their numbers."""

from typing import Any

import pandas as pd

from defectcls.data.samples import DEFECTIVE, SOUND
from defectcls.evaluation.breakdown import breakdowns
from defectcls.evaluation.decision import Decision, decide
from defectcls.evaluation.intervals import metric_intervals
from defectcls.evaluation.metrics import compute_metrics
from defectcls.evaluation.predictions import ACCEPT, REJECT, REVIEW

CALIBRATED = ("loss", "ece", "brier")  # what temperature scaling changes


def judge(
    uncalibrated: pd.DataFrame, decision: Decision | None, class_names: list[str], defective_classes: list[bool]
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The decided table, and its metrics with `intervals`, `handling`, `breakdowns`, and what was `uncalibrated`.

    Args:
        uncalibrated: a predictions table.
        decision: None takes the table's own predictions as they are.
    """
    classes = class_names, defective_classes
    predictions = uncalibrated if decision is None else decide(uncalibrated, decision, *classes)
    metrics = compute_metrics(predictions, *classes)
    metrics["intervals"] = metric_intervals(predictions, *classes)
    if "decision" in predictions:
        metrics["handling"] = handling(predictions)
    metrics["breakdowns"] = breakdowns(predictions, *classes)
    if decision is not None and decision.temperature != 1:
        before = compute_metrics(uncalibrated, *classes)
        metrics["uncalibrated"] = {name: before[name] for name in CALIBRATED}
    return predictions, metrics


def handling(predictions: pd.DataFrame) -> dict[str, dict[str, int]]:
    """How many sound and defective images are accepted, reviewed and rejected."""
    kind = predictions["defective"].map({False: SOUND, True: DEFECTIVE})
    counts = pd.crosstab(kind, predictions["decision"]).reindex(
        index=[SOUND, DEFECTIVE], columns=[ACCEPT, REVIEW, REJECT], fill_value=0
    )
    return {str(name): {str(verdict): int(count) for verdict, count in row.items()} for name, row in counts.iterrows()}
