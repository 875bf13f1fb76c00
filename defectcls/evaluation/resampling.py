"""The numbers of a predictions table under weights, and the bootstrap over groups that deals the weights.

Weights are float64 (resamples, images): how often each image stands in each resample. With a weight of one for every
image the numbers are those of `compute_metrics`; NaN where a resample cannot state one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from defectcls.evaluation.metrics import verdicts
from defectcls.evaluation.predictions import REVIEW

CHUNK = 2_000_000  # weights held at once: 16 MB, and some ten times as much in the sums over them

Numbers = dict[Any, np.ndarray]  # name -> value of each resample, (resamples,)


@dataclass(frozen=True)
class Share:
    """Which images are counted, and which of them are hits; bool, (images,)."""

    hits: np.ndarray
    members: np.ndarray

    def weighted(self, weights: np.ndarray) -> np.ndarray:
        """The number in each resample, (resamples,)."""
        return self.stated(_ratio(weights @ (self.hits & self.members), weights @ self.members))

    def stated(self, share: Any) -> Any:
        """The number that the share of hits stands for: here the share itself."""
        return share


class F1(Share):
    """Of the images that are of a class or called so, those that are both; F1 is a function of this share alone."""

    def __init__(self, answer: np.ndarray, truth: np.ndarray) -> None:
        super().__init__(answer & truth, answer | truth)

    def stated(self, share: Any) -> Any:
        """2tp / (2tp + fp + fn) from tp / (tp + fp + fn)."""
        return 2 * share / (1 + share)


def defect_shares(predictions: pd.DataFrame, class_names: list[str], defective_classes: list[bool]) -> dict[str, Share]:
    """The numbers of sound against defective that are shares of images, or a function of one."""
    flagged, rejected = verdicts(predictions, class_names, defective_classes)
    defective = predictions["defective"].to_numpy(bool)
    shares = {
        "precision": Share(defective, flagged),
        "recall": Share(flagged, defective),
        "f1": F1(flagged, defective),
        "escape_rate": Share(~flagged, defective),
        "overkill_rate": Share(rejected, ~defective),
    }
    if "decision" in predictions and (reviewed := (predictions["decision"] == REVIEW).to_numpy()).any():
        shares["review_rate"] = Share(reviewed, np.ones(len(reviewed), bool))
    return shares


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
        found = [one(weights) for one in within]
        values = {name: np.array([one[name] for one in found]) for name in found[0]}
        return {name: _ratio(np.nansum(of, axis=0), (~np.isnan(of)).sum(axis=0)) for name, of in values.items()}

    return numbers


def _ranking_of(members: np.ndarray, positive: np.ndarray, scores: np.ndarray) -> Callable[[np.ndarray], Numbers]:
    """Of the images `members`; of equal scores each pair counts half, and one threshold."""
    order = members[np.argsort(-scores[members], kind="stable")]
    ordered, is_positive = scores[order], positive[order].astype(np.float64)
    last = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))  # of each run of equal scores

    def numbers(weights: np.ndarray) -> Numbers:
        falling = weights[:, order]
        above = np.cumsum(falling, axis=1)[:, last]
        falling *= is_positive
        hits = np.cumsum(falling, axis=1)[:, last]
        misses = above - hits
        positives, negatives = hits[:, -1], misses[:, -1]
        gained = np.diff(hits, prepend=0)
        lost_pairs = (gained * (misses - np.diff(misses, prepend=0) / 2)).sum(axis=1)
        summed_precision = (gained * _ratio(hits, above, 0.0)).sum(axis=1)
        return {
            "auroc": 1 - _ratio(lost_pairs, positives * negatives),
            "average_precision": np.where(negatives > 0, _ratio(summed_precision, positives), np.nan),
        }

    return numbers


def mean_with_error(values: np.ndarray, groups: np.ndarray) -> Callable[[np.ndarray], Numbers]:
    """From weights to `mean` and `error`, the standard error that the differences between groups give it."""
    first = np.unique(groups, return_index=True)[1]
    total, size = np.bincount(groups, values), np.bincount(groups).astype(np.float64)
    sums = np.stack([total, size, total**2, total * size, size**2], axis=1)
    correction = len(first) / max(1, len(first) - 1)

    def numbers(weights: np.ndarray) -> Numbers:
        total, size, total_squared, product, size_squared = (weights[:, first] @ sums).T
        mean = total / size
        squares = total_squared - 2 * mean * product + mean**2 * size_squared
        return {"mean": mean, "error": np.sqrt(np.maximum(squares, 0) * correction) / size}

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
