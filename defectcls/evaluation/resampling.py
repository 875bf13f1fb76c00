"""The numbers of a predictions table under weights, and the bootstrap over groups that deals the weights.

Weights are float64 (resamples, images): how often each image stands in each resample. With a weight of one for every
image the numbers are those of the table itself; NaN where a resample cannot state one.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from defectcls.evaluation.predictions import PROBABILITY, REVIEW, folds_of, groups_of, verdicts

CHUNK = 2_000_000  # weights held at once: 16 MB, and some ten times as much in the sums over them
RATES = ("precision", "recall", "f1")
ALL, DEFECT = -2, -1  # sides beside the classes 0, 1 …: all images, and defective against sound

Key = tuple[str, int]  # a number, and its side: the class that it is of against the rest, DEFECT or ALL
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
        hits, members = weights @ (self.hits & self.members), weights @ self.members
        return _ratio(2 * hits, members + hits) if self.f1 else _ratio(hits, members)


class Answers:
    """A predictions table as `shares` and `rankings` of its images, and so as numbers under weights.

    They are of defective against sound, and of `each_class` against the rest.
    """

    def __init__(self, predictions: pd.DataFrame, classes: dict[str, bool], each_class: bool = True) -> None:
        self.groups, self.folds = groups_of(predictions), folds_of(predictions)
        self.two_classes, self.classes = [*classes.values()] == [False, True], range(len(classes))
        label, prediction = predictions["label"].to_numpy(), predictions["prediction"].to_numpy()
        everything = np.ones(len(predictions), bool)
        self.shares: dict[Key, Share] = {("accuracy", ALL): Share(label == prediction, everything)}
        self.positive: dict[int, np.ndarray] = {}  # of each side that scores rank
        self.rankings: dict[int, Callable[[np.ndarray], Numbers]] = {}

        if 0 < sum(classes.values()) < len(classes):
            flagged, rejected = verdicts(predictions, classes)
            defective = predictions["defective"].to_numpy(bool)
            self._add(DEFECT, defective, flagged, predictions["score"].to_numpy())
            self.shares["escape_rate", DEFECT] = Share(~flagged, defective)
            self.shares["overkill_rate", DEFECT] = Share(rejected, ~defective)
            if "decision" in predictions and (reviewed := (predictions["decision"] == REVIEW).to_numpy(bool)).any():
                self.shares["review_rate", DEFECT] = Share(reviewed, everything)
        for side, name in enumerate(classes if each_class else ()):
            scores = None if self.two_classes else predictions[PROBABILITY + name].to_numpy()
            self._add(side, label == name, prediction == name, scores)

    def _add(self, side: int, truth: np.ndarray, answer: np.ndarray, scores: np.ndarray | None) -> None:
        shares = Share(truth, answer), Share(answer, truth), Share(answer & truth, answer | truth, f1=True)
        self.shares |= {(name, side): share for name, share in zip(RATES, shares, strict=True)}
        if scores is not None:
            self.positive[side], self.rankings[side] = truth, ranking(truth, scores, self.folds)

    def weighted(self, weights: np.ndarray) -> Numbers:
        """Each number in each resample, by its key."""
        found: Numbers = {key: share.weighted(weights) for key, share in self.shares.items()}
        for side, ranked in self.rankings.items():
            found |= {(name, side): values for name, values in ranked(weights).items()}
        return found

    def stated(self) -> dict[Key, float]:
        """The numbers of the table itself."""
        return {key: values[0] for key, values in self.weighted(np.ones((1, len(self.groups)))).items()}

    def units(self, side: int) -> int:
        """How many groups the rarer of the two kinds that are ranked has."""
        return min(len(np.unique(self.groups[kind])) for kind in (self.positive[side], ~self.positive[side]))

    def arranged(self, values: dict[Key, Any], average: Callable[[str], Any]) -> dict[str, Any]:
        """What there is of each number, as metrics.json has it; the average over classes by the number's name."""
        defect = {name: value for (name, side), value in values.items() if side == DEFECT}
        found = {"accuracy": values["accuracy", ALL]}
        if self.two_classes:
            return found | {"f1_macro": average("f1")} | defect
        found |= {f"{name}_macro" if name in RATES else name: average(name) for name, side in values if side == 0}
        return found | ({"defect": defect} if defect else {})


def ranking(positive: np.ndarray, scores: np.ndarray, folds: np.ndarray) -> Callable[[np.ndarray], Numbers]:
    """From weights to `auroc` and `average_precision`, the mean of each fold's own where it can be stated.

    Args:
        positive: bool (images,).
        scores: float (images,); where one is not finite nothing is ranked, and both numbers are NaN.
        folds: number of the model that judged each image, see `folds_of`, (images,).
    """
    if not np.isfinite(scores).all():
        positive = np.zeros_like(positive)
    within = [_ranking_of(np.flatnonzero(folds == fold), positive, scores) for fold in np.unique(folds)]

    def numbers(weights: np.ndarray) -> Numbers:
        found = np.array([one(weights) for one in within]).reshape(-1, 2, len(weights))
        values = _ratio(np.nansum(found, axis=0), (~np.isnan(found)).sum(axis=0))
        return {"auroc": values[0], "average_precision": values[1]}

    return numbers


def _ranking_of(members: np.ndarray, positive: np.ndarray, scores: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """(AUROC, average precision) of the images `members`; of equal scores each pair counts half, and one threshold."""
    order = members[np.argsort(-scores[members], kind="stable")]
    ordered, is_positive = scores[order], positive[order].astype(np.float64)
    last = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))  # of each run of equal scores

    def numbers(weights: np.ndarray) -> np.ndarray:
        falling = weights[:, order]
        above = np.cumsum(falling, axis=1)[:, last]
        falling *= is_positive
        hits = np.cumsum(falling, axis=1)[:, last]
        misses = above - hits
        positives, negatives = hits[:, -1], misses[:, -1]
        gained = np.diff(hits, prepend=0)
        lost_pairs = (gained * (misses - np.diff(misses, prepend=0) / 2)).sum(axis=1)
        summed_precision = (gained * _ratio(hits, above, 0.0)).sum(axis=1)
        average_precision = np.where(negatives > 0, _ratio(summed_precision, positives), np.nan)
        return np.array([1 - _ratio(lost_pairs, positives * negatives), average_precision])

    return numbers


def bootstrap(
    groups: np.ndarray, numbers: Callable[[np.ndarray], Numbers], resamples: int = 2000, seed: int = 0
) -> Numbers:
    """The numbers of `resamples` tables of as many groups as there are, drawn with replacement.

    Args:
        groups: number of the group of each image, from 0 without gaps, (images,); not empty.
        numbers: from weights to the numbers under them; is given a part of the resamples at a time.
    """
    generator = np.random.default_rng(seed)
    count, size = groups.max() + 1, max(1, CHUNK // len(groups))
    chunks = []
    for start in range(0, resamples, size):
        rows = min(size, resamples - start)
        drawn = generator.integers(count, size=(rows, count)) + count * np.arange(rows)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count).astype(np.float64)
        chunks.append(numbers(weights[:, groups]))
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def _ratio(numerator: np.ndarray, denominator: np.ndarray, undefined: float = np.nan) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.full(denominator.shape, undefined), where=denominator > 0)
