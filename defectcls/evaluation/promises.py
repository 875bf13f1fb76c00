"""Thresholds that keep a promise: a bound on a rate of misjudged images that holds for new images of the same kind.

It holds at the stated confidence although the threshold was chosen on the images that prove it: it is the highest
threshold whose upper confidence bound stays below the target, and a bound that falls with the threshold may be used so
(risk-controlling prediction sets, Bates et al. 2021). The bound is that of Clopper and Pearson (1934). Images of one
group are not independent: there it is the share of groups of which any image is misjudged, which is never below the
mean over groups of the share of their images that are.
"""

import math
from bisect import bisect_right
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import beta

ABOVE_ALL = float(np.nextafter(1, 2))  # a threshold that no score reaches


@dataclass(frozen=True)
class Promise:
    """An upper bound on a rate of misjudged images, and what it rests on."""

    rate: str  # escape_rate | overkill_rate
    target: float
    confidence: float
    bound: float  # what the validation images prove, at that confidence
    kept: bool  # bound <= target
    independent: int  # validation images of this kind, or their groups
    needed: int  # how many it takes to promise the target when not one is misjudged
    grouped: bool


def promise(
    rate: str, scores: np.ndarray, defective: np.ndarray, groups: np.ndarray, target: float, confidence: float
) -> tuple[float, Promise]:
    """The boldest threshold whose bound keeps the target.

    Where none does, the most cautious one that costs no more of the other kind than misjudging nothing here costs.

    Args:
        rate: escape_rate, of the defective images below the threshold, or overkill_rate, of the sound ones from it on.
        scores, defective, groups: of the validation images, (images,) each.
    """
    escapes = rate == "escape_rate"
    mine = defective if escapes else ~defective
    hardest = hardest_of_groups(scores[mine], groups[mine], escapes)
    independent = len(hardest)
    needed, grouped = images_needed(target, confidence), bool(independent < mine.sum())

    def bound(misjudged: int) -> float:
        return upper_bound(misjudged, independent, confidence)

    allowed = max(0, bisect_right(range(independent + 1), target, key=bound) - 1)
    proven = bound(allowed)
    found = Promise(rate, target, confidence, proven, proven <= target, independent, needed, grouped)
    if allowed == independent:
        return ABOVE_ALL if escapes else 0.0, found
    # Between the first that is judged right and the next score of all on the cautious side.
    levels = np.unique(scores)
    right = int(np.searchsorted(levels, hardest[allowed]))
    levels = np.concatenate([[0.0], levels, [ABOVE_ALL]])
    low, high = levels[right : right + 2] if escapes else levels[right + 1 : right + 3]
    if found.kept or right == (0 if escapes else len(levels) - 3):  # no score says how far to go
        return float(between(low, high)), found
    return float(np.nextafter(low, 1) if escapes else high), found


def hardest_of_groups(scores: np.ndarray, groups: np.ndarray, escapes: bool) -> np.ndarray:
    """Of each group of one kind the score that is misjudged first, and of these that first which is, (groups,).

    Args:
        escapes: low scores are misjudged first, and not high ones.
    """
    of_groups = pd.Series(scores).groupby(groups)
    return np.sort(of_groups.min()) if escapes else np.sort(of_groups.max())[::-1]


def upper_bound(misjudged: int, count: int, confidence: float) -> float:
    """Upper confidence bound of a rate, from the number misjudged of `count` independent images or groups."""
    return float(beta.ppf(confidence, misjudged + 1, count - misjudged)) if misjudged < count else 1.0


def images_needed(rate: float, confidence: float) -> int:
    """How many independent images, not one misjudged, prove that a rate is not exceeded."""
    return math.ceil(round(math.log(1 - confidence) / math.log1p(-rate), 9))


def between(low: np.ndarray | float, high: np.ndarray | float) -> np.ndarray:
    """A threshold above `low` and not above `high`, halfway where floats allow."""
    middle = (np.asarray(low) + high) / 2
    return np.where(middle > low, middle, high)
