"""From what a network or another tool says of some images to decided predictions and what metrics.json says of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from defectcls.errors import UserError
from defectcls.evaluation.decision import Decision, choose_decision, decide
from defectcls.evaluation.intervals import metric_intervals, proportion_interval
from defectcls.evaluation.metrics import compute_metrics, defect_numbers, records
from defectcls.evaluation.predictions import classes_of_table, groups_of, verdicts
from defectcls.settings import DecisionSettings
from defectcls.tables import refuse

BREAKDOWNS = ("category", "defect_type", "mask_size")
WORST = 20  # values of each breakdown, at most


def evaluate(
    uncalibrated: pd.DataFrame, decision: Decision | None, classes: dict[str, bool]
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The decided table, and its metrics with `intervals` and `breakdowns`.

    Args:
        uncalibrated: a predictions table.
        decision: None takes the table's own predictions as they are.
    """
    predictions = uncalibrated if decision is None else decide(uncalibrated, decision, classes)
    metrics = compute_metrics(predictions, classes)
    metrics["intervals"] = metric_intervals(predictions, classes)
    metrics["breakdowns"] = breakdowns(predictions, classes)
    return predictions, metrics


def evaluate_table(
    predictions: pd.DataFrame, name: str, settings: DecisionSettings | None, wanted: Sequence[str]
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The rows of the `wanted` parts of any predictions table, and of metrics.json what they say: parts, `decision` …

    Without a column `split` all rows are test. Decided anew on the validation rows where there are `settings`;
    thresholds are in the table's own scores, which nothing calibrates.

    Args:
        name: what messages call the table.

    Raises:
        UserError: a score that is no probability, no row to decide on, or none of the wanted parts.
    """
    wrong = predictions["path"][~predictions["score"].between(0, 1)]
    refuse(wrong, f"{name} has scores that are not from 0 (sound) to 1 (defective)")
    classes, decision = classes_of_table(predictions), None
    split = predictions["split"] if "split" in predictions else pd.Series("test", predictions.index)
    if settings is not None:
        in_own_scores = settings.model_copy(update={"calibrate": False})
        decision = choose_decision(in_own_scores, predictions[split == "val"], classes)
    found = {part: evaluate(predictions[split == part], decision, classes) for part in wanted if (split == part).any()}
    if not found:
        raise UserError(f"{name} has no row with split {' or '.join(wanted)}")
    metrics: dict[str, Any] = {part: numbers for part, (_, numbers) in found.items()}
    metrics |= {"class_names": [*classes], "defective_classes": [*classes.values()]}
    metrics["decision"] = decision and decision.plain()
    return pd.concat([rows for rows, _ in found.values()]).sort_index(), metrics


def evaluate_folds(runs: list[tuple[int, int, dict[str, Any], pd.DataFrame]]) -> tuple[dict[str, Any], pd.DataFrame]:
    """metrics.json and the out-of-fold predictions of all folds of a cross-validation.

    Of each fold its repeat, number, metrics.json and test predictions are given. An image keeps its `unit` from repeat
    to repeat, so that these narrow no interval by counting it again.
    """
    tables, folds = [], []
    for repeat, fold, metrics, rows in runs:
        of_fold = {"repeat": repeat, "fold": fold}
        tables.append(rows.assign(**of_fold))
        numbers = {key: one for key, one in defect_numbers(metrics["test"]).items() if isinstance(one, int | float)}
        folds.append(of_fold | numbers)
    kept = ("dataset", "model", "class_names", "defective_classes", "unreadable", "depth")
    same = {key: runs[0][2][key] for key in kept}
    pooled = pd.concat(tables, ignore_index=True)
    classes = dict(zip(same["class_names"], same["defective_classes"], strict=True))
    predictions, test = evaluate(pooled, None, classes)
    return same | {"test": test, "folds": folds}, predictions


def breakdowns(predictions: pd.DataFrame, classes: dict[str, bool]) -> dict[str, list[dict[str, Any]]]:
    """Where a model is weak: of each of BREAKDOWNS with two values or more the values of the worst recall, worst first.

    `n`, `n_defective`, `recall` (share caught) with the 95 % interval from `recall_low` to `recall_high`, and
    `overkill_rate`; None where a value has no defective (or no sound) image.
    """
    flagged, rejected = verdicts(predictions, classes)
    groups, found = groups_of(predictions), {}
    marks = predictions.assign(flagged=flagged, rejected=rejected, unit=groups)
    for column in pd.Index(BREAKDOWNS).intersection(predictions.columns):
        rows = []
        for value, of_value in marks.groupby(column):
            defects, sound = of_value[of_value["defective"]], of_value[~of_value["defective"]]
            low, high = proportion_interval(defects["flagged"].to_numpy(), defects["unit"].to_numpy())
            rates = {"recall": defects["flagged"].mean(), "overkill_rate": sound["rejected"].mean()}
            row = {column: value, "n": len(of_value), "n_defective": len(defects)}
            rows.append(row | rates | {"recall_low": low, "recall_high": high})
        if len(rows) > 1:
            worst = pd.DataFrame(rows).sort_values(["recall", "overkill_rate"], ascending=[True, False], kind="stable")
            found[column] = records(worst.head(WORST))
    return found


def mask_scores(heat: np.ndarray, masks: np.ndarray) -> dict[str, np.ndarray]:
    """How well heat maps (n, height, width) find what masks, bool of the same shape, mark: (n,), NaN without a mark.

    hit: whether the hottest pixel lies in the mask; the pointing game of Zhang et al. 2018, "Top-down Neural Attention
    by Excitation Backprop", with a tolerance of 0. A map without heat hits nothing.
    chance: the share of the photo that the mask covers.
    """
    heat, masks = (maps.reshape(len(maps), -1) for maps in (heat, masks))
    hit = masks[np.arange(len(masks)), heat.argmax(axis=1)] & (heat.max(axis=1) > 0)
    marked = masks.any(axis=1)
    return {"hit": np.where(marked, hit, np.nan), "chance": np.where(marked, masks.mean(axis=1), np.nan)}
