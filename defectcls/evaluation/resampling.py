"""The numbers of a predictions table under weights, and the bootstrap over groups that deals the weights.

Weights are float64 (resamples, images): how often each image stands in each resample. With a weight of one for every
image the numbers are those of the table itself; NaN where a resample cannot state one.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from defectcls.evaluation.predictions import PROBABILITY, folds_of, groups_of, verdicts

CHUNK = 2_000_000  # weights held at once: 16 MB, and some ten times as much in the sums over them
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
            self._add(DEFECT, defective, flagged)
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
        shares = Share(truth, answer), Share(answer, truth), Share(answer & truth, answer | truth, f1=True)
        self.shares |= {(name, side): share for name, share in zip(RATES, shares, strict=True)}
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


def _mean_of_defined(values: np.ndarray) -> np.ndarray:
    """Over the first axis; NaN where all are."""
    return _ratio(np.nansum(values, axis=0), (~np.isnan(values)).sum(axis=0))
