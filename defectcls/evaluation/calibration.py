"""Platt's calibration: of the images with a score of 0.1 one in ten is defective."""

from collections.abc import Sequence

import numpy as np

LEAST_SCALE = 1 / 20  # as 0 would tell nothing


def fit_calibration(probabilities: np.ndarray, truth: np.ndarray) -> tuple[float, tuple[float, ...]]:
    """Scale and one shift a class with which softmax(scale · log p + shift) is right as often as it says.

    They are the likeliest against Platt's targets (1999, "Probabilistic Outputs for Support Vector Machines"): of N
    images of a class not all are taken to be of it, but (N + 1) in (N + classes). So they are finite, by one rule, also
    where no image is judged wrong. 1 and 0 where nothing can be known: of images of a single class, or a probability
    that is no number.

    Args:
        probabilities: uncalibrated, (images, classes).
        truth: class of each image, int (images,).
    """
    counts = np.bincount(truth, minlength=probabilities.shape[1])
    if (counts > 0).sum() < 2 or not np.isfinite(probabilities).all():
        return 1.0, (0.0,) * len(counts)
    weights = np.full(len(truth), 1 / len(truth))
    scale, shift = _fit(_log(probabilities), _targets(counts)[truth], weights, LEAST_SCALE)
    return scale, tuple(shift.tolist())


def calibrated_loss(probabilities: np.ndarray, truth: np.ndarray) -> float:
    """The least loss, in nats, that any scale and shifts reach against Platt's targets, every class weighing alike.

    By it weights and penalties are chosen, as scale and shifts are chosen anyway when training is over. Not below the
    entropy of the targets, so that no epoch is better for being sure of what is all right. Of images of a single class
    the loss as it is.
    """
    losses = calibrated_losses(probabilities, truth)
    return float(np.mean([losses[truth == one].mean() for one in np.unique(truth)])) if len(truth) else np.nan


def calibrated_losses(probabilities: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """What each image adds to `calibrated_loss`, (images,)."""
    from scipy.special import log_softmax

    counts = np.bincount(truth, minlength=probabilities.shape[1])
    if not np.isfinite(probabilities).all():
        return np.full(len(truth), np.nan)
    logits, targets = _log(probabilities), np.eye(len(counts))[truth]
    if (counts > 0).sum() > 1:
        targets = _targets(counts)[truth]
        scale, shift = _fit(logits, targets, 1 / counts[truth] / (counts > 0).sum(), 0.0)
        logits = log_softmax(scale * logits + shift, axis=1)
    return -(targets * logits).sum(1)


def calibrate(probabilities: np.ndarray, scale: float, shift: Sequence[float] | np.ndarray) -> np.ndarray:
    """softmax(scale · log p + shift), (images, classes); () shifts nothing."""
    if scale == 1 and not any(shift):
        return probabilities
    from scipy.special import softmax

    return softmax(scale * _log(probabilities) + (np.array(shift) if len(shift) else 0.0), axis=-1)


def _targets(counts: np.ndarray) -> np.ndarray:
    """Platt's, of an image of each class, (classes, classes)."""
    return (1 + np.diag(counts)) / (counts + len(counts))[:, None]


def _fit(logits: np.ndarray, targets: np.ndarray, weights: np.ndarray, least: float) -> tuple[float, np.ndarray]:
    """Scale, not below `least`, and shifts (classes,), the first 0, of the least cross-entropy; a convex problem.

    Of logits and targets (images, classes) under weights (images,) that sum to 1.
    """
    from scipy.optimize import minimize  # half of the time that a file takes to its first decision, which needs none
    from scipy.special import log_softmax

    mean = logits.mean(0)
    unit = float((logits - mean).std()) or 1.0
    inputs = (logits - mean) / unit  # so that scale and shifts are of one size, and do not depend on each other

    def loss(found: np.ndarray) -> tuple[float, np.ndarray]:
        log_p = log_softmax(found[0] * inputs + np.append(0.0, found[1:]), axis=1)
        error = (np.exp(log_p) - targets) * weights[:, None]
        return -weights @ (targets * log_p).sum(1), np.append((error * inputs).sum(), error.sum(0)[1:])

    bounds = [(least * unit, None)] + [(None, None)] * (logits.shape[1] - 1)
    start = np.append(max(1.0, least * unit), np.zeros(logits.shape[1] - 1))
    found = minimize(loss, start, jac=True, bounds=bounds, options={"ftol": 1e-15, "gtol": 1e-10, "maxiter": 1000})
    scale = float(found.x[0] / unit)
    shift = np.append(0.0, found.x[1:]) - scale * mean
    return scale, shift - shift[0]


def _log(probabilities: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(probabilities, np.finfo(np.float64).tiny))
