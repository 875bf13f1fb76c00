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
    """The boldest threshold whose bound keeps the target; where none does, one that misjudges none of these images.

    Args:
        rate: escape_rate, of the defective images below the threshold, or overkill_rate, of the sound ones from it on.
        scores, defective, groups: of the validation images, (images,) each.
    """
    escapes = rate == "escape_rate"
    mine = defective if escapes else ~defective
    of_groups = pd.Series(scores[mine]).groupby(groups[mine])  # each is misjudged with the first of its images
    hardest = np.sort(of_groups.min()) if escapes else np.sort(of_groups.max())[::-1]
    independent = len(hardest)
    bounds = [upper_bound(misjudged, independent, confidence) for misjudged in range(independent + 1)]
    allowed = max(0, bisect_right(bounds, target) - 1)
    bound, needed, grouped = bounds[allowed], images_needed(target, confidence), bool(independent < mine.sum())
    found = Promise(rate, target, confidence, bound, bound <= target, independent, needed, grouped)
    if allowed == independent:
        return ABOVE_ALL if escapes else 0.0, found
    # Between the first that is judged right and the next score of all on the cautious side.
    low = high = hardest[allowed]
    if escapes:
        low = scores[scores < high].max(initial=0.0)
    else:
        high = scores[scores > low].min(initial=ABOVE_ALL)
    return float(between(low, high)), found


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
