"""The predictions table as plain numbers, ready for JSON.

A number that the data cannot state is None, never a made-up 0: recall where nothing is defective, precision where
nothing was predicted defective, AUROC where all images are of one kind. F1 = 2tp / (2tp + fp + fn) is 0 as soon as one
defect is missed and none is caught. A macro average is the mean over the classes for which the number is defined.
"""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from defectcls.evaluation.predictions import PROBABILITY
from defectcls.evaluation.resampling import RATES, Answers


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
    "average_precision": Metric("average precision", percent=False),
    "review_rate": Metric("review rate", "images that a person looks at", less_is_better=True),
    "loss": Metric("loss", "nats", percent=False, less_is_better=True),
    "seconds": Metric("seconds", percent=False, less_is_better=True),
}
LEAST_PROBABILITY = np.finfo(np.float64).eps  # a probability of exactly 0 would make the loss infinite; as scikit-learn


def compute_metrics(predictions: pd.DataFrame, classes: dict[str, bool]) -> dict[str, Any]:
    """All numbers of one predictions table.

    Always: `n`, `loss` (mean negative log-likelihood of the true class, in nats), `accuracy`, `f1_macro`, `auroc`,
    `average_precision`, `confusion_matrix` (counts; rows = truth, columns = prediction, in the order of `classes`).

    Sound against defective: also `precision`, `recall`, `f1`, `escape_rate` (share of the defective images let through,
    1 - recall) and `overkill_rate` (share of the sound images rejected), all of the defective class. Where a decision
    sends images to review, these count as caught but not as rejected, and `review_rate` is their share.

    Other classes: also `precision_macro`, `recall_macro`, `per_class` {name: n, precision, recall, f1}, and where there
    are both sound and defective classes `defect`: the numbers above, with all defective classes taken as one. `auroc`
    and `average_precision` are then macro averages of one class against the rest.

    Of a cross-validation both are the mean over its folds, as scores of different models do not rank each other's
    images.
    """
    names, n, size = pd.Index([*classes]), len(predictions), len(classes)
    truth, prediction = (names.get_indexer(pd.Index(predictions[column])) for column in ("label", "prediction"))
    matrix = np.bincount(truth * size + prediction, minlength=size * size).reshape(size, size)
    answers = Answers(predictions, classes)
    values = answers.stated()
    probabilities = predictions[[PROBABILITY + name for name in classes]].to_numpy()
    likelihood = probabilities[np.arange(n), truth].clip(LEAST_PROBABILITY, 1)
    loss = np.log(1 / likelihood).sum() / n if n else None
    numbers = {"n": n, "loss": loss, **answers.arranged(values)}
    if not answers.two_classes:
        numbers["per_class"] = {
            name: {"n": matrix[one].sum()} | {rate: values[rate, one] for rate in RATES}
            for one, name in enumerate(classes)
        }
    return plain(numbers | {"confusion_matrix": matrix.tolist()})


def defect_numbers(part: dict[str, Any]) -> dict[str, Any]:
    """The numbers and `intervals` of a part of metrics.json, those of defective against sound in place of averages.

    What recall, AUROC … are called without a further word, of two classes and of many.
    """
    intervals = part.get("intervals", {})
    return part | part.get("defect", {}) | {"intervals": intervals | intervals.get("defect", {})}


def defect_counts(matrix: np.ndarray | list, defective_classes: list[bool]) -> tuple[int, int, int]:
    """(defective images, caught of them, sound images) of a confusion matrix of any classes."""
    side = np.array(defective_classes, bool)
    defective, sound = np.array(matrix)[side], np.array(matrix)[~side]
    return int(defective.sum()), int(defective[:, side].sum()), int(sound.sum())


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """A table's rows for JSON."""
    return [plain(row) for row in table.to_dict("records")]


def plain(value: Any) -> Any:
    """NumPy numbers as Python's, NaN as None, all the way down; an interval as a list, None where an end is unknown."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return [float(end) for end in value] if np.isfinite(value).all() else None
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and np.isnan(value) else value
