"""Thresholds that keep a promise: a bound on a rate of misjudged images that holds for new images of the same kind.

It holds at the stated confidence although the threshold was chosen on the images that prove it: it is the highest
threshold whose upper confidence bound stays below the target, and a bound that falls with the threshold may be used so
(risk-controlling prediction sets, Bates et al. 2021). The bound is that of Clopper and Pearson (1934) where images are
independent. Images of one group are not: there the risk is the mean over groups of the share of their images that are
misjudged, bounded after Hoeffding and Bentkus as in Bates et al.
"""

import math
from bisect import bisect_right
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import rel_entr
from scipy.stats import beta, binom

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
    hardest, misjudged, independent = misjudged_first(scores[mine], groups[mine], escapes)
    grouped = independent < len(hardest)

    def bound(risk: float) -> float:
        return upper_bound(risk, independent, confidence, grouped)

    allowed = bisect_right(misjudged, target, key=bound)
    proven = bound(misjudged[allowed - 1] if allowed else 0)
    needed = images_needed(target, confidence)
    found = Promise(rate, target, confidence, proven, proven <= target, independent, needed, grouped)
    if allowed == len(hardest):
        return ABOVE_ALL if escapes else 0.0, found
    # Between the first that is judged right and the next score of all on the cautious side.
    levels = np.unique(scores)
    right = int(np.searchsorted(levels, hardest[allowed]))
    levels = np.concatenate([[0.0], levels, [ABOVE_ALL]])
    low, high = levels[right : right + 2] if escapes else levels[right + 1 : right + 3]
    if found.kept or right == (0 if escapes else len(levels) - 3):  # no score says how far to go
        return float(between(low, high)), found
    return float(np.nextafter(low, 1) if escapes else high), found


def misjudged_first(scores: np.ndarray, groups: np.ndarray, escapes: bool) -> tuple[np.ndarray, list[float], int]:
    """The scores of one kind, the first to be misjudged first; how many then are, in groups; and the number of groups.

    Args:
        escapes: low scores are misjudged first, and not high ones.
    """
    _, group, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    order = np.argsort(scores if escapes else -scores, kind="stable")
    return scores[order], np.cumsum(1 / sizes[group][order]).tolist(), len(sizes)


def upper_bound(misjudged: float, count: int, confidence: float, grouped: bool) -> float:
    """Upper confidence bound of a risk, from the (mean) number misjudged of `count` independent images or groups."""
    if not count or misjudged >= count:
        return 1.0
    if not grouped:
        return float(beta.ppf(confidence, misjudged + 1, count - misjudged))
    mean, limit = misjudged / count, math.log(1 - confidence)

    def excess(risk: float) -> float:  # log of the p-value of this risk, above that of the confidence
        low = min(mean, risk)
        hoeffding = -count * (rel_entr(low, risk) + rel_entr(1 - low, 1 - risk))
        bentkus = 1 + binom.logcdf(math.ceil(misjudged - 1e-9), count, risk)
        return min(hoeffding, bentkus) - limit

    return float(brentq(excess, max(mean, 1e-12), 1 - 1e-12)) if excess(1 - 1e-12) < 0 else 1.0


def images_needed(rate: float, confidence: float) -> int:
    """How many independent images, not one misjudged, prove that a rate is not exceeded."""
    return math.ceil(round(math.log(1 - confidence) / math.log1p(-rate), 9))


def between(low: np.ndarray | float, high: np.ndarray | float) -> np.ndarray:
    """A threshold above `low` and not above `high`, halfway where floats allow."""
    middle = (np.asarray(low) + high) / 2
    return np.where(middle > low, middle, high)
