"""What chance leaves open: an interval for each number of a predictions table.

*Shares of images* (accuracy, recall, precision …; F1 is a function of one) have the mid-p interval of the binomial
distribution: near 0 and 1 it covers the truth at least 92 times in 100, where Wilson's falls to 80. With all of n right
it starts at 0.05^(1/n), the rule of three. Images of one group (photo, part, video) err together, and count as the
fewer independent images that would leave as much to chance: the effective sample size of Korn and Graubard (Survey
Methodology 24, 1998), compared with others by Franco et al. (Journal of Survey Statistics and Methodology 7, 2019).

*AUROC and average precision* take their variance from a bootstrap over groups, on the logit scale, and as many degrees
of freedom as the rarer class has groups. That is blind to a kind of defect of which the test set happens to hold none:
the interval therefore reaches down to where the number would be if as many defects as the rule of three cannot exclude
were ranked by chance.

*Macro averages* join the intervals of their classes (MOVER: Zou and Donner, Statistics in Medicine 27, 2008), with the
correlations that the bootstrap shows. *The loss* has a bootstrap-t interval on the log scale, as it is skewed.

In simulations intervals of 95 % cover the truth in 93 to 97 % of 1,000 images, balanced or 1:20, grouped or not. The
fewer images or groups the rarer class has, the more often they cover it, up to always, and they have to: a count of ten
has eleven values, and no set of eleven intervals has the right coverage everywhere. The exception are precision, F1
and its macro average where two or three groups hold all defects, several each: 90 %.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.special import betainc, expit, logit
from scipy.stats import norm
from scipy.stats import t as student

from defectcls.evaluation.metrics import LEAST_PROBABILITY
from defectcls.evaluation.predictions import PROBABILITY, folds_of, groups_of
from defectcls.evaluation.resampling import (
    F1,
    Numbers,
    Share,
    bootstrap,
    defect_shares,
    mean_with_error,
    ranking,
)

Interval = tuple[float, float]
Key = tuple[str, int]  # number, and the class that it is of, or DEFECT
NOTHING: Interval = (np.nan, np.nan)
ROUNDING = 1e-7  # smaller standard errors and counts are none
LABELS = ("label", "prediction")
RANKINGS = ("auroc", "average_precision")
DEFECT = -1  # stands for defective against sound, where 0, 1 … stand for one class against the rest


def difference(one: Sequence[float], other: Sequence[float]) -> tuple[float, float, float]:
    """`one` less `other`, each (value, low, high) of images of its own, with its limits (MOVER)."""
    value = one[0] - other[0]
    low = value - math.hypot(one[0] - one[1], other[2] - other[0])
    return value, low, value + math.hypot(one[2] - one[0], other[0] - other[1])


def proportion_interval(hits: np.ndarray, groups: np.ndarray | None = None, level: float = 0.95) -> Interval:
    """Interval of the share of `hits`, bool (images,), that covers the truth with the probability `level` or more.

    Args:
        groups: number or name of the group of each image, (images,); None where the images are independent.

    Returns:
        (low, high), never a single point; NaN where there is no image.
    """
    if not len(hits):
        return NOTHING
    size = len(hits) if groups is None else _effective_size(hits, groups, level)
    share = hits.mean()
    return _lower_limit(share, size, level), 1 - _lower_limit(1 - share, size, level)


def metric_intervals(
    predictions: pd.DataFrame,
    class_names: list[str],
    defective_classes: list[bool],
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """[low, high] of the numbers of `compute_metrics` under the same keys, or None where one is undefined.

    Not of counts, of single classes and of the calibration; nothing where there is no image. The images of one `group`
    are tied. Two classes and 10,000 images take a second on one core.
    """
    if predictions.empty:
        return {}
    groups, classes = groups_of(predictions), range(len(class_names))
    binary, two_sides = defective_classes == [False, True], 0 < sum(defective_classes) < len(class_names)
    truth, answer = ([(predictions[column] == name).to_numpy() for name in class_names] for column in LABELS)
    probabilities = [predictions[PROBABILITY + name].to_numpy() for name in class_names]

    shares: dict[Key, Share] = {("f1", one): F1(answer[one], truth[one]) for one in classes}
    rankings: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    if two_sides:
        rankings[DEFECT] = predictions["defective"].to_numpy(bool), predictions["score"].to_numpy()
    if not binary:
        shares |= {("precision", one): Share(truth[one], answer[one]) for one in classes}
        shares |= {("recall", one): Share(answer[one], truth[one]) for one in classes}
        rankings |= {one: (truth[one], probabilities[one]) for one in classes}
    losses = -np.log(np.select(truth, probabilities).clip(LEAST_PROBABILITY, 1))
    numbers = _all_numbers(shares, rankings, folds_of(predictions), mean_with_error(losses, groups))
    point = {key: value[0] for key, value in numbers(np.ones((1, len(groups)))).items()}
    drawn = bootstrap(groups, numbers, resamples, seed)

    intervals = {key: _share_interval(share, groups, level) for key, share in shares.items()}
    for side, (positive, _) in rankings.items():
        units = min(len(np.unique(groups[part])) for part in (positive, ~positive))
        for name, chance in (("auroc", 0.5), ("average_precision", positive.mean())):
            key = name, side
            intervals[key] = _ranking_interval(point[key], drawn[key], chance, units, level)

    def macro(name: str) -> Interval:
        keys = [(name, one) for one in classes]
        values, limits = [point[key] for key in keys], [intervals[key] for key in keys]
        return _macro_interval(values, limits, [drawn[key] for key in keys])

    found: dict[str, Any] = {
        "accuracy": proportion_interval((predictions["label"] == predictions["prediction"]).to_numpy(), groups, level),
        "loss": _mean_interval(point, drawn, groups.max() + 1, level),
        **{f"{name}_macro": macro(name) for name in dict.fromkeys(name for name, _ in shares)},
    }
    defect: dict[str, Any] = {}
    if two_sides:
        given = defect_shares(predictions, class_names, defective_classes)
        defect = {name: _share_interval(share, groups, level) for name, share in given.items()}
        defect |= {name: intervals[name, DEFECT] for name in RANKINGS}
    if binary:
        return _plain(found | defect)
    return _plain(found | {name: macro(name) for name in RANKINGS} | ({"defect": defect} if two_sides else {}))


def _all_numbers(
    shares: dict[Key, Share],
    rankings: dict[int, tuple[np.ndarray, np.ndarray]],
    folds: np.ndarray,
    loss: Callable[[np.ndarray], Numbers],
) -> Callable[[np.ndarray], Numbers]:
    ranked = {side: ranking(*one, folds) for side, one in rankings.items()}

    def numbers(weights: np.ndarray) -> Numbers:
        found = {key: share.weighted(weights) for key, share in shares.items()}
        for side, rank in ranked.items():
            found |= {(name, side): values for name, values in rank(weights).items()}
        return found | loss(weights)

    return numbers


def _effective_size(hits: np.ndarray, groups: np.ndarray, level: float) -> float:
    """Of how many independent images the share of hits would be as uncertain as it is of these groups.

    Where all are right, or all but one, nothing shows how much the images of a group err together: the effect of the
    groups then starts from the worst, that they always do, with the weight of half a miss.
    """
    n = len(hits)
    _, member, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    count = len(sizes)
    if count == 1:
        return 1
    share, rarer = hits.mean(), min(hits.sum(), n - hits.sum())
    effect = (sizes**2).sum() / n
    if rarer:
        variance = (np.bincount(member, hits - share) ** 2).sum() / n**2 * count / (count - 1)
        shown = max(1, variance / (share * (1 - share) / (n - 1)))
        effect = (effect + 2 * rarer * shown) / (1 + 2 * rarer)
    return n / effect * (_quantile(n - 1, level) / _quantile(count - 1, level)) ** 2


def _lower_limit(share: float, size: float, level: float) -> float:
    """Of the mid-p interval of a share of `size` images; the number of hits need not be whole."""
    hits, misses = share * size, (1 - share) * size
    if hits < ROUNDING:
        return 0.0

    def above_level(low: float) -> float:
        as_many = betainc(hits, misses + 1, low)
        more = betainc(hits + 1, misses, low) if misses > ROUNDING else 0.0
        return (as_many + more) / 2 - (1 - level) / 2

    return brentq(above_level, 0, 1)


def _share_interval(share: Share, groups: np.ndarray, level: float) -> Interval:
    low, high = proportion_interval(share.hits[share.members], groups[share.members], level)
    return share.stated(low), share.stated(high)


def _ranking_interval(value: float, drawn: np.ndarray, chance: float, units: int, level: float) -> Interval:
    """Of AUROC or average precision, given the number without skill, and of how many groups the rarer class is."""
    if np.isnan(value):
        return NOTHING
    if units < 2:
        return 0.0, 1.0
    low = high = value
    if 0 < value < 1:
        error = np.nanstd(drawn) * np.sqrt(units / (units - 1))
        reach = _quantile(units - 1, level) * error / (value * (1 - value))
        low, high = expit(logit(value) - reach), expit(logit(value) + reach)
    unseen = 1 - (1 - level) ** (1 / units)
    with_unseen = value + unseen * (chance - value)
    return min(low, with_unseen), max(high, with_unseen)


def _macro_interval(values: list[float], intervals: list[Interval], drawn: list[np.ndarray]) -> Interval:
    defined = np.flatnonzero(~np.isnan(values))
    if not len(defined):
        return NOTHING
    centre, limits = np.array(values)[defined], np.array(intervals)[defined]
    correlation = pd.DataFrame(np.array(drawn)[defined].T).corr().fillna(0).to_numpy(copy=True)
    np.fill_diagonal(correlation, 1)
    down, up = (np.sqrt(reach @ correlation @ reach) for reach in (centre - limits[:, 0], limits[:, 1] - centre))
    mean = centre.mean()
    return max(0.0, mean - down / len(defined)), min(1.0, mean + up / len(defined))


def _mean_interval(point: dict[Any, float], drawn: Numbers, count: int, level: float) -> Interval:
    """Of the mean of positive numbers, skewed as losses are, in `count` groups."""
    mean, error = point["mean"], point["error"]
    if count < 2 or not error > ROUNDING * mean:
        return NOTHING
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = np.log(drawn["mean"] / mean) / (drawn["error"] / drawn["mean"])
    # Tails as much farther out as Student's are for so few groups (Hesterberg 2015, The American Statistician 69).
    tail = norm.sf(np.sqrt(count / (count - 1)) * _quantile(count - 1, level))
    tails = np.quantile(distance[np.isfinite(distance)], [1 - tail, tail])
    with np.errstate(over="ignore"):
        low, high = mean * np.exp(-tails * error / mean)
    return low, high


def _quantile(degrees_of_freedom: int, level: float) -> float:
    return student.ppf((1 + level) / 2, degrees_of_freedom)


def _plain(found: Any) -> Any:
    """Intervals as lists, and None for those with an end that is no number."""
    if isinstance(found, dict):
        return {key: _plain(value) for key, value in found.items()}
    return [float(end) for end in found] if np.isfinite(found).all() else None
