"""The predictions table as plain numbers, ready for JSON.

A number that the data cannot state is None, never a made-up 0: recall, precision and F1 where nothing is defective,
precision where nothing was predicted defective, AUROC where all images are of one kind. F1 = 2tp / (2tp + fp + fn) is 0
as soon as one defect is missed and none is caught. A macro average is the mean over the classes that have the number.

Every number is computed under weights, float64 (resamples, images): how often each image stands in each resample.
With a weight of one for every image it is that of the table itself.
"""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from defectcls.evaluation.predictions import PROBABILITY, folds_of, groups_of, verdicts


class Metric(NamedTuple):
    """How a number is called in a sentence, what it means, and how it is shown."""

    name: str
    meaning: str = ""
    percent: bool = True  # a share of images; False: shown as it is
    less_is_better: bool = False


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
RATES = ("precision", "recall", "f1")
RANKINGS = ("auroc", "average_precision")  # what scores reach whatever the threshold
# Sides beside the classes 0, 1 …: all images, defective against sound, and the mean over the classes.
ALL, DEFECT, MACRO = -3, -2, -1

Key = tuple[str, int]  # a number, and its side: the class that it is of against the rest, or one of the three above
Numbers = dict[Any, np.ndarray]  # value of each resample, (resamples,)


class Share(NamedTuple):
    """Of the images `members` those that are `hits`; bool, (images,) each. F1 is a function of such a share."""

    hits: np.ndarray
    members: np.ndarray
    f1: bool = False

    def stated(self, share: Any) -> Any:
        """The number that the share of hits stands for: F1 = 2tp / (2tp + fp + fn), from tp / (tp + fp + fn)."""
        return 2 * share / (1 + share) if self.f1 else share

    def weighted(self, weights: np.ndarray) -> np.ndarray:
        """The number in each resample, (resamples,)."""
        return self.stated(_ratio(weights @ (self.hits & self.members), weights @ self.members))


class Answers:
    """A predictions table as `shares` and `scores` of its images, and so as numbers under weights.

    They are of defective against sound, and of each class against the rest.
    """

    def __init__(self, predictions: pd.DataFrame, classes: dict[str, bool]) -> None:
        self.groups, self.folds = groups_of(predictions), folds_of(predictions)
        self.two_classes, self.classes = [*classes.values()] == [False, True], range(len(classes))
        label, prediction = predictions["label"].to_numpy(), predictions["prediction"].to_numpy()
        everything = np.ones(len(predictions), bool)
        self.shares: dict[Key, Share] = {("accuracy", ALL): Share(label == prediction, everything)}
        self.truths: dict[int, np.ndarray] = {}  # which images are of a side
        self.units: dict[int, int] = {}  # how many groups the rarer of the two kinds has, or the rarest of the classes
        self.scores: dict[int, np.ndarray] = {}  # what ranks them

        if 0 < sum(classes.values()) < len(classes):
            flagged, rejected = verdicts(predictions, classes)
            defective = predictions["defective"].to_numpy(bool)
            self._add(DEFECT, defective, flagged & defective.any())  # precision and F1 are of defects
            self.scores[DEFECT] = predictions["score"].to_numpy()
            self.shares["escape_rate", DEFECT] = Share(~flagged, defective)
            self.shares["overkill_rate", DEFECT] = Share(rejected, ~defective)
            if (rejected != flagged).any():
                self.shares["review_rate", DEFECT] = Share(flagged & ~rejected, everything)
        for side, name in enumerate(classes):
            self._add(side, label == name, prediction == name)
            if not self.two_classes:
                self.scores[side] = predictions[PROBABILITY + name].to_numpy()
        self.units[MACRO] = min(filter(None, map(self.units.get, self.classes)), default=0)

    def _add(self, side: int, truth: np.ndarray, answer: np.ndarray) -> None:
        self.shares["precision", side] = Share(truth, answer)
        self.shares["recall", side] = Share(answer, truth)
        self.shares["f1", side] = Share(answer & truth, answer | truth, f1=True)
        self.truths[side] = truth
        self.units[side] = min(len(np.unique(self.groups[kind])) for kind in (truth, ~truth))

    def weighted(self, weights: np.ndarray) -> Numbers:
        """Each number in each resample, by its key."""
        found: Numbers = {key: share.weighted(weights) for key, share in self.shares.items()}
        for side, scores in self.scores.items():
            ranked = ranking(self.truths[side], scores, self.folds, weights)
            found |= {(name, side): values for name, values in ranked.items()}
        for name in [name for name, side in found if side == 0]:
            found[name, MACRO] = _mean_of_defined(np.array([found[name, one] for one in self.classes]))
        return found

    def stated(self) -> dict[Key, float]:
        """The numbers of the table itself."""
        return {key: values[0] for key, values in self.weighted(np.ones((1, len(self.groups)))).items()}

    def arranged(self, values: dict[Key, Any]) -> dict[str, Any]:
        """What there is of each number, as metrics.json has it."""
        defect, macro = ({name: one for (name, of), one in values.items() if of == side} for side in (DEFECT, MACRO))
        found = {"accuracy": values["accuracy", ALL]}
        if self.two_classes:
            return found | {"f1_macro": macro["f1"]} | defect
        found |= {f"{name}_macro" if name in RATES else name: value for name, value in macro.items()}
        return found | ({"defect": defect} if defect else {})


def ranking(positive: np.ndarray, scores: np.ndarray, folds: np.ndarray, weights: np.ndarray) -> Numbers:
    """`auroc` and `average_precision`, the mean of each fold's own where it can be stated, (resamples,) each.

    Of equal scores each pair counts half, and all have one threshold.

    Args:
        positive: bool (images,).
        scores: float (images,); where one is not finite nothing is ranked, and both numbers are NaN.
        folds: number of the model that judged each image, see `folds_of`, (images,).
    """
    if not np.isfinite(scores).all():
        positive, scores = np.zeros_like(positive), np.zeros_like(scores)
    of_folds = np.empty((2, folds.max(initial=0) + 1, len(weights)))
    for fold, found in enumerate(of_folds.swapaxes(0, 1)):
        members = np.flatnonzero(folds == fold)
        order = members[np.argsort(-scores[members], kind="stable")]
        last = np.flatnonzero(np.diff(scores[order], append=np.inf))  # of each run of equal scores
        falling = weights[:, order]
        above = np.cumsum(falling, axis=1)[:, last]
        falling *= positive[order]
        hits = np.cumsum(falling, axis=1)[:, last]
        misses = above - hits
        positives, negatives = hits[:, -1:].sum(axis=1), misses[:, -1:].sum(axis=1)
        gained = np.diff(hits, prepend=0)
        lost_pairs = (gained * (misses - np.diff(misses, prepend=0) / 2)).sum(axis=1)
        summed_precision = (gained * _ratio(hits, above, 0.0)).sum(axis=1)
        found[0] = 1 - _ratio(lost_pairs, positives * negatives)
        found[1] = np.where(negatives > 0, _ratio(summed_precision, positives), np.nan)
    return dict(zip(RANKINGS, map(_mean_of_defined, of_folds), strict=True))


def compute_metrics(predictions: pd.DataFrame, classes: dict[str, bool]) -> dict[str, Any]:
    """All numbers of one predictions table.

    Always: `n`, `loss` (mean negative log-likelihood of the true class, in nats), `accuracy`, `f1_macro`, `auroc`,
    `average_precision`, `confusion_matrix` (counts; rows = truth, columns = prediction, in the order of `classes`).

    Sound against defective: also `precision`, `recall`, `f1`, `escape_rate` and `overkill_rate`, see METRICS. Where a
    decision sends images to review, these count as caught but not as rejected, and `review_rate` is their share.

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
        counted = enumerate(matrix.sum(1))
        of_class = ({"n": n} | {rate: values[rate, one] if n else None for rate in RATES} for one, n in counted)
        numbers["per_class"] = dict(zip(classes, of_class, strict=True))
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


def _ratio(numerator: np.ndarray, denominator: np.ndarray, undefined: float = np.nan) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.full(denominator.shape, undefined), where=denominator > 0)


def _mean_of_defined(values: np.ndarray) -> np.ndarray:
    """Over the first axis; NaN where all are."""
    return _ratio(np.nansum(values, axis=0), (~np.isnan(values)).sum(axis=0))
