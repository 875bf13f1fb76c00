"""From what a network says of some images to decided predictions and their numbers."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from defectcls.errors import UserError
from defectcls.evaluation.breakdown import breakdowns
from defectcls.evaluation.collapse import majority_collapse, ranks
from defectcls.evaluation.decision import Decision, choose_decision, decide
from defectcls.evaluation.intervals import metric_intervals
from defectcls.evaluation.metrics import compute_metrics, defect_numbers
from defectcls.evaluation.predictions import ACCEPT, REJECT, REVIEW, classes_of_table
from defectcls.settings import DecisionSettings
from defectcls.tables import DEFECTIVE, SOUND

CALIBRATED = ("loss", "ece", "brier")  # what calibration changes


def judge(
    uncalibrated: pd.DataFrame, decision: Decision | None, class_names: list[str], defective_classes: list[bool]
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The decided table, and its metrics with `intervals`, `handling`, `breakdowns`, `collapse` and `uncalibrated`.

    It is no collapse that a promise or a price has put the threshold beyond scores that rank.

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
    promised = decision is not None and decision.policy not in ("argmax", "balanced")
    if (found := majority_collapse(predictions)) and not (promised and ranks(metrics)):
        metrics["collapse"] = found
    if decision is not None and (decision.scale != 1 or any(decision.shift)):
        before = compute_metrics(uncalibrated, *classes)
        metrics["uncalibrated"] = {name: before[name] for name in CALIBRATED}
    return predictions, metrics


def judge_table(
    predictions: pd.DataFrame, name: str, settings: DecisionSettings | None, wanted: Sequence[str]
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The rows of the `wanted` parts of any predictions table, and of metrics.json what they say: parts, `decision` …

    Without a column `split` all rows are test. Decided anew on the validation rows where there are `settings`;
    thresholds are in the table's own scores, which nothing calibrates.

    Args:
        name: what messages call the table.

    Raises:
        UserError: a score that is no probability, no row of the split val to decide on, or none of the wanted parts.
    """
    wrong = predictions[~predictions["score"].between(0, 1)]
    if len(wrong):
        row = wrong.iloc[0]
        raise UserError(
            f"{name}: the score of {row['path']} is {row['score']:g}, and of {len(wrong)} rows no probability: "
            "it must be from 0 (sound) to 1 (defective)"
        )
    classes = classes_of_table(predictions)
    split = predictions["split"] if "split" in predictions else pd.Series("test", predictions.index)
    decision = None
    if settings is not None:
        validation = predictions[split == "val"]
        if validation.empty:
            raise UserError(f"a decision is chosen on validation images, and {name} has no row with split val")
        decision = choose_decision(settings.model_copy(update={"calibrate": False}), validation, *classes)
    judged = {part: judge(predictions[split == part], decision, *classes) for part in wanted if (split == part).any()}
    if not judged:
        raise UserError(f"{name} has no row with split {' or '.join(wanted)}")
    metrics: dict[str, Any] = {part: numbers for part, (_, numbers) in judged.items()}
    metrics |= {"class_names": classes[0], "defective_classes": classes[1], "decision": decision and decision.plain()}
    return pd.concat([rows for rows, _ in judged.values()]).sort_index(), metrics


def judge_folds(
    runs: list[tuple[int, int, dict[str, Any], pd.DataFrame]],
) -> tuple[dict[str, Any], pd.DataFrame]:
    """metrics.json and the out-of-fold predictions of all folds of a cross-validation.

    An image keeps its `unit` from repeat to repeat, so that these narrow no interval by counting it again.

    Args:
        runs: repeat, fold, metrics.json and test predictions of every fold.
    """
    predictions = pd.concat(
        [rows.assign(repeat=repeat, fold=fold) for repeat, fold, _, rows in runs], ignore_index=True
    )
    kept = ("dataset", "model", "class_names", "defective_classes", "unreadable", "depth")
    same = {key: runs[0][2][key] for key in kept}
    predictions, numbers = judge(predictions, None, same["class_names"], same["defective_classes"])
    folds: list[dict[str, Any]] = []
    for repeat, fold, metrics, _ in runs:
        found = defect_numbers(metrics["test"]).items()
        folds += [
            {"repeat": repeat, "fold": fold} | {name: value for name, value in found if isinstance(value, int | float)}
        ]
    return same | {"test": numbers, "folds": folds}, predictions


def handling(predictions: pd.DataFrame) -> dict[str, dict[str, int]]:
    """How many sound and defective images are accepted, reviewed and rejected."""
    kind = predictions["defective"].map({False: SOUND, True: DEFECTIVE})
    counts = pd.crosstab(kind, predictions["decision"]).reindex(
        index=[SOUND, DEFECTIVE], columns=[ACCEPT, REVIEW, REJECT], fill_value=0
    )
    return {str(name): {str(verdict): int(count) for verdict, count in row.items()} for name, row in counts.iterrows()}
