"""Whether a probability of 0.9 is right nine times in ten: temperature scaling, and what measures it."""

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

HOTTEST = 20.0  # temperatures are sought from 1/20 to 20
BINS = 15  # as in Guo et al. 2017


def fit_temperature(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """The temperature of the least log-loss (Guo et al. 2017, "On Calibration of Modern Neural Networks").

    1 where it cannot be known: where no image is judged wrong, ever sharper probabilities would only look better.

    Args:
        probabilities: uncalibrated, (images, classes).
        truth: class of each image, int (images,).
    """
    if not len(truth) or not np.isfinite(probabilities).all() or (probabilities.argmax(1) == truth).all():
        return 1.0
    logits = _log(probabilities)
    rows = np.arange(len(truth))

    def loss(log_temperature: float) -> float:
        return -log_softmax(logits / np.exp(log_temperature), axis=1)[rows, truth].mean()

    limit = np.log(HOTTEST)
    return float(np.exp(minimize_scalar(loss, bounds=(-limit, limit), method="bounded", options={"xatol": 1e-6}).x))


def calibrate(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """softmax(logits / temperature), (images, classes); their logarithm serves as logits. 1 / temperature undoes it."""
    return probabilities if temperature == 1 else softmax(_log(probabilities) / temperature, axis=1)


def expected_calibration_error(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """Mean distance between the probability of the likeliest class and how often it is right, in 15 equal bins."""
    if not len(truth) or not np.isfinite(probabilities).all():
        return np.nan
    confidence, right = probabilities.max(1), probabilities.argmax(1) == truth
    bins = np.ceil(confidence * BINS).astype(int)  # a bin holds its upper edge
    gaps = np.bincount(bins, right) - np.bincount(bins, confidence)
    return float(np.abs(gaps).sum() / len(truth))


def brier_score(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """Mean squared distance between probabilities and truth; of two classes that of one, of more the sum over all."""
    distance = ((probabilities - np.eye(probabilities.shape[1])[truth]) ** 2).sum(1)
    return float(distance.mean() / (2 if probabilities.shape[1] == 2 else 1)) if len(truth) else np.nan


def _log(probabilities: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(probabilities, np.finfo(np.float64).tiny))
