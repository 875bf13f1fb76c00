"""From what a network or another tool says of some images to decided predictions and what metrics.json says of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from defectcls.errors import UserError
from defectcls.evaluation.decision import Decision, choose_decision, decide
from defectcls.evaluation.intervals import average, metric_intervals, proportion_interval
from defectcls.evaluation.metrics import compute_metrics, defect_numbers, records
from defectcls.evaluation.predictions import ACCEPT, REJECT, REVIEW, classes_of_table, groups_of, verdicts
from defectcls.settings import DecisionSettings
from defectcls.tables import DEFECTIVE, SOUND

CALIBRATED = ("loss", "ece", "brier")  # what calibration changes
BREAKDOWNS = ("category", "defect_type", "mask_size", "group")
WORST = 20  # values of each breakdown, at most
CHANCE = 0.5  # AUROC of scores that tell nothing
NEARLY_ALL = 0.9  # of the images called alike: of any two classes, a model that tells them apart calls more otherwise


def evaluate(
    uncalibrated: pd.DataFrame, decision: Decision | None, classes: dict[str, bool]
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The decided table, and its metrics with `intervals`, `handling`, `breakdowns`, `collapse` and `uncalibrated`.

    It is no collapse that a promise or a price has put the threshold beyond scores that rank.

    Args:
        uncalibrated: a predictions table.
        decision: None takes the table's own predictions as they are.
    """
    predictions = uncalibrated if decision is None else decide(uncalibrated, decision, classes)
    metrics = compute_metrics(predictions, classes)
    metrics["intervals"] = metric_intervals(predictions, classes)
    if "decision" in predictions:  # how many sound and defective images are accepted, reviewed and rejected
        kind = predictions["defective"].map({False: SOUND, True: DEFECTIVE})
        handling = pd.crosstab(kind, predictions["decision"])
        handling = handling.reindex(index=[SOUND, DEFECTIVE], columns=[ACCEPT, REVIEW, REJECT], fill_value=0)
        metrics["handling"] = handling.to_dict("index")
    metrics["breakdowns"] = breakdowns(predictions, classes)
    promised = decision is not None and decision.policy not in ("argmax", "balanced")
    if (found := majority_collapse(predictions)) and not (promised and ranks(metrics)):
        metrics["collapse"] = found
    if decision is not None and (decision.scale != 1 or any(decision.shift)):
        before = compute_metrics(uncalibrated, classes)
        metrics["uncalibrated"] = {name: before[name] for name in CALIBRATED}
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
        UserError: a score that is no probability, no row of the split val to decide on, or none of the wanted parts.
    """
    wrong = predictions[~predictions["score"].between(0, 1)]
    if len(wrong):
        row = wrong.iloc[0]
        raise UserError(
            f"{name}: the score of {row['path']} is {row['score']:g}, and of {len(wrong)} rows no probability: "
            "it must be from 0 (sound) to 1 (defective)"
        )
    classes, decision = classes_of_table(predictions), None
    split = predictions["split"] if "split" in predictions else pd.Series("test", predictions.index)
    if settings is not None:
        validation = predictions[split == "val"]
        if validation.empty:
            raise UserError(f"a decision is chosen on validation images, and {name} has no row with split val")
        decision = choose_decision(settings.model_copy(update={"calibrate": False}), validation, classes)
    found = {part: evaluate(predictions[split == part], decision, classes) for part in wanted if (split == part).any()}
    if not found:
        raise UserError(f"{name} has no row with split {' or '.join(wanted)}")
    metrics: dict[str, Any] = {part: numbers for part, (_, numbers) in found.items()}
    metrics |= {
        "class_names": [*classes],
        "defective_classes": [*classes.values()],
        "decision": decision and decision.plain(),
    }
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
    defective, groups = predictions["defective"].to_numpy(bool), groups_of(predictions)
    rates = {
        "n_defective": defective,
        "recall": np.where(defective, flagged, np.nan),
        "overkill_rate": np.where(defective, np.nan, rejected),
    }
    found = {}
    for column in (column for column in BREAKDOWNS if column in predictions):
        value = predictions[column]
        if column == "group":  # those of several images
            value = value.where((value != "") & value.duplicated(keep=False))
        if value.nunique() < 2:
            continue
        of_value = pd.DataFrame(rates, predictions.index).groupby(value)
        table = of_value.agg({"n_defective": "sum", "recall": "mean", "overkill_rate": "mean"})
        table.insert(0, "n", of_value.size())
        table = table.sort_values(["recall", "overkill_rate"], ascending=[True, False], kind="stable").head(WORST)
        for one in table.index:
            of_one = (value == one).to_numpy() & defective
            limits = proportion_interval(flagged[of_one], None if column == "group" else groups[of_one])
            table.loc[one, ["recall_low", "recall_high"]] = limits
        found[column] = records(table.reset_index())
    return found


def majority_collapse(predictions: pd.DataFrame) -> dict[str, Any] | None:
    """The class that the images collapse `into`, with how many are `called` so `of` all; None where they do not.

    It takes three things. One class gets nearly all predictions, as it also does from a good model where defects are
    rare. The mean recall over the classes is not above chance, 1 / classes. And it surely lies nearer to chance than to
    1, which it does not where the other classes have an image or two. Both are told by its 95 % interval, joined from
    those of the classes. An image that goes to a person is not called anything.
    """
    if "decision" in predictions:
        predictions = predictions[predictions["decision"] != REVIEW]
    right, groups = (predictions["label"] == predictions["prediction"]).to_numpy(), groups_of(predictions)
    classes = [(predictions["label"] == name).to_numpy() for name in predictions["label"].unique()]
    called = predictions["prediction"].value_counts()
    if len(classes) < 2 or called.iloc[0] < NEARLY_ALL * len(predictions):
        return None
    limits = [proportion_interval(right[one], groups[one]) for one in classes]
    low, high = average([right[one].mean() for one in classes], limits)
    chance = 1 / len(classes)
    if low > chance or high >= (chance + 1) / 2:
        return None
    return {"into": str(called.index[0]), "called": int(called.iloc[0]), "of": len(predictions)}


def ranks(numbers: dict[str, Any]) -> bool:
    """Whether scores surely rank better than chance, by the interval of the AUROC of one part of metrics.json.

    Then a threshold would help.
    """
    interval = defect_numbers(numbers)["intervals"].get("auroc")
    return interval is not None and interval[0] > CHANCE


def mask_scores(heat: np.ndarray, masks: np.ndarray) -> dict[str, np.ndarray]:
    """How well heat maps (n, height, width) find what masks, bool of the same shape, mark: float64 (n,) in 0..1 each.

    hit: whether the hottest pixel lies in the mask, as a share where several are equally hot; the pointing game of
    Zhang et al. 2018, "Top-down Neural Attention by Excitation Backprop", with a tolerance of 0.
    energy: share of the heat that lies in the mask; Wang et al. 2020, "Score-CAM".
    chance: what heat spread evenly would score.
    Hit and energy are 0 for a map without heat, and all are NaN where the mask is empty.
    """
    hottest = (heat == heat.max(axis=(1, 2), keepdims=True)) & (heat > 0)
    found = {}
    for name, weight in (("hit", hottest), ("energy", heat), ("chance", np.ones(heat.shape))):
        inside = np.sum(weight, axis=(1, 2), where=masks, dtype=np.float64)
        total = np.sum(weight, axis=(1, 2), dtype=np.float64)
        share = np.divide(inside, total, out=np.zeros(len(masks)), where=total > 0)
        found[name] = np.where(masks.any(axis=(1, 2)), share, np.nan)
    return found
