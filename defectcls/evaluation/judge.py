"""From what a network says of some images to decided predictions and their numbers."""

from typing import Any

import pandas as pd

from defectcls.evaluation.breakdown import breakdowns
from defectcls.evaluation.decision import Decision, decide
from defectcls.evaluation.intervals import metric_intervals
from defectcls.evaluation.metrics import compute_metrics

CALIBRATED = ("loss", "ece", "brier")  # what temperature scaling changes


def judge(
    uncalibrated: pd.DataFrame, decision: Decision | None, class_names: list[str], defective_classes: list[bool]
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The decided table, and its metrics with `intervals`, `breakdowns` and, of what scaling changed, `uncalibrated`.

    Args:
        uncalibrated: a predictions table.
        decision: None takes the table's own predictions as they are.
    """
    classes = class_names, defective_classes
    predictions = uncalibrated if decision is None else decide(uncalibrated, decision, *classes)
    metrics = compute_metrics(predictions, *classes)
    metrics["intervals"] = metric_intervals(predictions, *classes)
    metrics["breakdowns"] = breakdowns(predictions, *classes)
    if decision is not None and decision.temperature != 1:
        before = compute_metrics(uncalibrated, *classes)
        metrics["uncalibrated"] = {name: before[name] for name in CALIBRATED}
    return predictions, metrics
