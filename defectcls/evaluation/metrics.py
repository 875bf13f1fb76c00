"""The predictions table as plain numbers, ready for JSON.

A number that the data cannot state is None, never a made-up 0: recall where nothing is defective, precision where
nothing was predicted defective, AUROC where all images are of one kind. F1 = 2tp / (2tp + fp + fn) is 0 as soon as one
defect is missed and none is caught. A macro average is the mean over the classes for which the number is defined.
"""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from sklearn.metrics import average_precision_score, roc_auc_score

from defectcls.errors import UserError
from defectcls.evaluation.calibration import brier_score, expected_calibration_error
from defectcls.evaluation.predictions import PROBABILITY, REVIEW, folds_of


class Metric(NamedTuple):
    """How a number is called in a sentence, what it means, and how it is shown."""

    name: str
    meaning: str = ""
    percent: bool = True  # a share of images; False: shown as it is
    less_is_better: bool = False

    @property
    def explained(self) -> str:
        """The name and what it means, for a table that has the room."""
        return f"{self.name} ({self.meaning})" if self.meaning else self.name


# Of two classes and of many alike, in the order in which a page lists them; the only place where they are spelled out.
METRICS = {
    "recall": Metric("recall", "share of defects caught"),
    "escape_rate": Metric("escape rate", "defects let through", less_is_better=True),
    "overkill_rate": Metric("overkill rate", "sound images rejected", less_is_better=True),
    "precision": Metric("precision", "rejected images that are defective"),
    "f1": Metric("F1", "of defective"),
    "accuracy": Metric("accuracy", "right class"),
    "recall_macro": Metric("recall, mean over classes"),
    "precision_macro": Metric("precision, mean over classes"),
    "f1_macro": Metric("F1, mean over classes"),
    "auroc": Metric("AUROC", percent=False),
    "auroc_pooled": Metric("AUROC, folds pooled", percent=False),
    "average_precision": Metric("average precision", percent=False),
    "average_precision_pooled": Metric("average precision, folds pooled", percent=False),
    "review_rate": Metric("review rate", "images that a person looks at", less_is_better=True),
    "loss": Metric("loss", "nats", percent=False, less_is_better=True),
    "ece": Metric("expected calibration error", percent=False, less_is_better=True),
    "brier": Metric("Brier score", percent=False, less_is_better=True),
    "seconds": Metric("seconds", percent=False, less_is_better=True),
}
RANKINGS = ("auroc", "average_precision")  # what scores reach whatever the threshold
LEAST_PROBABILITY = np.finfo(np.float64).eps  # a probability of exactly 0 would make the loss infinite; as scikit-learn


def compute_metrics(predictions: pd.DataFrame, class_names: list[str], defective_classes: list[bool]) -> dict[str, Any]:
    """All numbers of one predictions table.

    Always: `n`, `loss` (mean negative log-likelihood of the true class, in nats), `ece` (see calibration.py; of the
    score where there are sound and defective classes, else of the likeliest class), `brier`, `accuracy`, `f1_macro`,
    `auroc`, `average_precision`, `confusion_matrix` (counts; rows = truth, columns = prediction, in the order of
    `class_names`).

    Sound against defective: also `precision`, `recall`, `f1`, `escape_rate` (share of the defective images let through,
    1 - recall) and `overkill_rate` (share of the sound images rejected), all of the defective class. Where a decision
    sends images to review, these count as caught but not as rejected, and `review_rate` is their share.

    Other classes: also `precision_macro`, `recall_macro`, `per_class` {name: n, precision, recall, f1}, and where there
    are both sound and defective classes `defect`: the numbers above, with all defective classes taken as one. `auroc`
    and `average_precision` are then macro averages of one class against the rest.

    Of a cross-validation both are the mean over its folds, as scores of different models do not rank each other's
    images; those of all folds together are `auroc_pooled` and `average_precision_pooled`.

    Raises:
        UserError: a label or a prediction is none of `class_names`.
    """
    matrix = confusion_matrix(predictions, class_names)
    probabilities = predictions[[PROBABILITY + name for name in class_names]].to_numpy()
    one_hot = predictions["label"].to_numpy()[:, None] == np.array(class_names)
    likelihood, truth = probabilities[one_hot].clip(LEAST_PROBABILITY, 1), one_hot.argmax(1)
    n, two_sides = len(predictions), 0 < sum(defective_classes) < len(defective_classes)
    if two_sides:
        ece = expected_calibration_error(predictions["score"].to_numpy(), predictions["defective"].to_numpy(bool))
    else:
        ece = expected_calibration_error(probabilities.max(1), probabilities.argmax(1) == truth)
    common = {
        "n": n,
        "loss": np.log(1 / likelihood).sum() / n if n else None,
        "ece": ece,
        "brier": brier_score(probabilities, truth),
        "accuracy": _ratio(matrix.trace(), n),
    }
    per_class = _rates(matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0))

    if defective_classes == [False, True]:
        numbers = common | _defect_metrics(predictions, class_names, defective_classes)
        numbers["f1_macro"] = _mean(per_class["f1"])
    else:
        folds = folds_of(predictions)
        ranking = [_ranking(one_hot[:, index], probabilities[:, index], folds) for index in range(len(class_names))]
        numbers = common | {f"{name}_macro": _mean(per_class[name]) for name in ("precision", "recall", "f1")}
        numbers |= {name: _mean([one[name] for one in ranking]) for name in ranking[0]}
        rows = pd.DataFrame({"n": matrix.sum(axis=1)} | per_class, index=class_names, dtype=object)
        numbers["per_class"] = rows.to_dict("index")
        if two_sides:
            numbers["defect"] = _defect_metrics(predictions, class_names, defective_classes)
    return _plain(numbers | {"confusion_matrix": matrix.tolist()})


def defect_numbers(part: dict[str, Any]) -> dict[str, Any]:
    """The numbers and `intervals` of a part of metrics.json, those of defective against sound in place of averages.

    What recall, AUROC … are called without a further word, of two classes and of many.
    """
    intervals = part.get("intervals", {})
    return part | part.get("defect", {}) | {"intervals": intervals | intervals.get("defect", {})}


def confusion_matrix(predictions: pd.DataFrame, class_names: list[str]) -> np.ndarray:
    """Counts (classes, classes): rows = truth, columns = prediction."""
    names = pd.Index(class_names)
    truth, prediction = (
        names.get_indexer(pd.Index(predictions["label"])),
        names.get_indexer(pd.Index(predictions["prediction"])),
    )
    unknown = set(predictions["label"][truth < 0]) | set(predictions["prediction"][prediction < 0])
    if unknown:
        raise UserError(f"the predictions hold {sorted(unknown)}, which are none of the classes {class_names}")
    size = len(class_names)
    return np.bincount(truth * size + prediction, minlength=size * size).reshape(size, size)


def verdicts(
    predictions: pd.DataFrame, class_names: list[str], defective_classes: list[bool]
) -> tuple[np.ndarray, np.ndarray]:
    """(flagged, rejected), bool (images,): not let through, and rejected without a look by a person.

    They differ only where the decision sends some images to review, in the column `decision`.
    """
    rejecting = [name for name, defective in zip(class_names, defective_classes, strict=True) if defective]
    flagged = predictions["prediction"].isin(rejecting).to_numpy(bool)
    if "decision" not in predictions:
        return flagged, flagged
    return flagged, flagged & (predictions["decision"] != REVIEW).to_numpy(bool)


def defect_counts(matrix: np.ndarray | list, defective_classes: list[bool]) -> tuple[int, int, int, int]:
    """(sound passed, sound rejected, defects missed, defects caught) of a confusion matrix of any classes."""
    defective = np.array(defective_classes, bool)
    sides = (~defective, defective)
    passed, rejected, missed, caught = (int(np.asarray(matrix)[np.ix_(t, p)].sum()) for t in sides for p in sides)
    return passed, rejected, missed, caught


def _defect_metrics(predictions: pd.DataFrame, class_names: list[str], defective_classes: list[bool]) -> dict[str, Any]:
    flagged, rejected = verdicts(predictions, class_names, defective_classes)
    defective = predictions["defective"].to_numpy(bool)
    caught, defects, sound = (flagged & defective).sum(), defective.sum(), (~defective).sum()
    numbers = _rates(caught, defects, flagged.sum())
    numbers |= {
        "escape_rate": _ratio(defects - caught, defects),
        "overkill_rate": _ratio((rejected & ~defective).sum(), sound),
    }
    if "decision" in predictions and (predictions["decision"] == REVIEW).any():
        numbers["review_rate"] = (predictions["decision"] == REVIEW).mean()
    return numbers | _ranking(defective, predictions["score"].to_numpy(), folds_of(predictions))


def _rates(hits: Any, truths: Any, predicted: Any) -> dict[str, Any]:
    """Precision, recall and F1 of counts: numbers, or one number a class."""
    return {
        "precision": _ratio(hits, predicted),
        "recall": _ratio(hits, truths),
        "f1": _ratio(2 * hits, truths + predicted),
    }


def _ranking(positive: np.ndarray, scores: np.ndarray, folds: np.ndarray) -> dict[str, float]:
    found, known = {}, np.isfinite(scores).all()
    numbers = {"auroc": roc_auc_score, "average_precision": average_precision_score}
    parts = [folds == fold for fold in np.unique(folds)]
    for name, number in numbers.items():
        values = [number(positive[one], scores[one]) for one in parts if known and len(set(positive[one])) == 2]
        found[name] = _mean(values)
        if len(parts) > 1:
            found[f"{name}_pooled"] = number(positive, scores) if values else np.nan
    return found


def _ratio(numerator: Any, denominator: Any) -> Any:
    return np.where(denominator, numerator / np.maximum(denominator, 1), np.nan)[()]


def _mean(values: Any) -> float:
    defined = np.asarray(values)[~np.isnan(values)]
    return defined.mean() if len(defined) else np.nan


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """A table's rows for JSON."""
    return [_plain(row) for row in table.to_dict("records")]


def _plain(value: Any) -> Any:
    """NumPy numbers as Python's, NaN as None, all the way down."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and np.isnan(value) else value
