"""The escape rate as it is now: people look at some of what was accepted, each photo drawn with a known chance.

A photo weighs the inverse of its chance. Shares have a mid-p interval of weighted counts: that of Fay and Feuer
(Statistics in Medicine 16, 1997) with the middle of Fay and Kim (Biometrical Journal 59, 2017), of betas instead of
gammas. Of equal chances it is the mid-p interval of the binomial distribution; where none is found it ends at
1 - 0.05^(1/n), and each photo counts as the rarest drawn would.
"""

from collections.abc import Iterable

import numpy as np
from scipy.optimize import brentq
from scipy.special import betainc

from defectcls.evaluation.intervals import NOTHING, Interval

NEAR = 10  # times as often as any other a photo is drawn whose score is at the threshold


def chances(score: np.ndarray, accept_below: float | None, share: float) -> np.ndarray:
    """The chance of each accepted photo to be audited, float64 (photos,): `share`, and more near the threshold.

    Args:
        score: calibrated probability of being defective, 0 to 1 (photos,).
        accept_below: the threshold; None, where there is none, draws uniformly.
        share: 0 to 1.
    """
    score = np.asarray(score, np.float64)
    near = np.clip(score / accept_below, 0, 1) if accept_below else np.zeros_like(score)
    return np.minimum(1, share * (1 + (NEAR - 1) * near))


def places(photos: Iterable[str]) -> np.ndarray:
    """Where each digest lies between 0 and 1, float64 (photos,): its first 8 hexadecimal digits, as good as random."""
    return np.array([int(photo[:8], 16) for photo in photos], np.float64) / 2**32


def drawn(photos: Iterable[str], chances: np.ndarray) -> np.ndarray:
    """Which photos are audited, bool (photos,): by the digest alone, so that every process draws the same ones."""
    return places(photos) < chances


def share_interval(
    hits: np.ndarray, heaviest: float, misses: int, weight: float = 1.0, level: float = 0.95
) -> tuple[float, Interval]:
    """Share of hits among all, and its interval; NaN where there is neither a hit nor a miss.

    Args:
        hits: the weight of each hit, 1 / chance, (hits,).
        heaviest: the largest weight that a hit could have had which was not drawn.
        misses: how many there are.
        weight: of each of them, in the mean.
    """
    count, squares, others = float(hits.sum()), float((hits**2).sum()), misses * weight
    if not count + others:
        return np.nan, NOTHING

    def below(odds: float, count: float, squares: float, more: int) -> float:
        """The probability that the odds of a hit are lower, given the weighted hits, and the misses and `more`."""
        size = squares / count  # the weight of one hit
        return float(betainc(count / size, misses + more, odds / (odds + size / weight)))

    def between(logit: float) -> float:
        odds = np.exp(logit)
        low = below(odds, count, squares, 1) if count else 1.0
        high = below(odds, count + heaviest, squares + heaviest**2, 0) if misses else 0.0
        return (low + high) / 2

    def limit(probability: float) -> float:
        return float(1 / (1 + np.exp(-brentq(lambda logit: between(logit) - probability, -60, 60))))

    low = limit((1 - level) / 2) if count else 0.0
    return count / (count + others), (low, limit((1 + level) / 2) if misses else 1.0)
