"""The probe: a regularised linear classifier on frozen features, solved as the convex problem it is."""

from typing import NamedTuple

import numpy as np
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression

from defectcls.errors import UserError
from defectcls.evaluation.calibration import calibrated_loss

# Features that hardly move in training are not blown up to unit variance: the least divisor, of the mean deviation.
LEAST_DEVIATION = 0.3


class LinearHead(NamedTuple):
    """logits = ((features - mean) / std) @ weight.T + bias."""

    mean: np.ndarray  # (features,)
    std: np.ndarray  # (features,)
    weight: np.ndarray  # (classes, features)
    bias: np.ndarray  # (classes,)
    c: float  # inverse strength of the L2 penalty

    def logits(self, features: np.ndarray) -> np.ndarray:
        """(images, features) -> (images, classes)."""
        return (features - self.mean) / self.std @ self.weight.T + self.bias


def fit_probe(
    train: tuple[np.ndarray, np.ndarray],
    val: tuple[np.ndarray, np.ndarray],
    candidates: list[float],
    class_weights: list[float] | None,
    views: int = 0,
) -> LinearHead:
    """Multinomial logistic regression on standardised features, with the penalty that makes the best checkpoint.

    That is the one of the lowest `calibrated_loss` on validation, of equal ones the strongest.

    Args:
        train, val: features (images, features) and targets (images,).
        candidates: values of C to try, inverse strengths of the L2 penalty, as in scikit-learn.
        class_weights: one factor a class; None weighs all images alike.
        views: how many copies of every image `train` holds besides it; they share the weight of one image.
    """
    features, targets = train
    if not np.isfinite(features).all():
        raise UserError("the backbone's features are not finite: try trainer.precision=32, or other weights")
    mean, std = features.mean(0), features.std(0)
    std = np.maximum(std, LEAST_DEVIATION * std.mean() or 1.0)  # 1: not one feature moves
    weights = None if class_weights is None else dict(enumerate(class_weights))
    heads = []
    for c in sorted(candidates):
        model = LogisticRegression(C=c / (1 + views), class_weight=weights, max_iter=1000)
        model.fit((features - mean) / std, targets)
        weight, bias = model.coef_, model.intercept_
        if len(weight) == 1:  # two classes share one vector: its two halves give the same softmax
            weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
        heads.append(LinearHead(mean, std, weight, bias, c))
    return min(heads, key=lambda head: calibrated_loss(softmax(head.logits(val[0]).astype(np.float64), axis=1), val[1]))
