"""A linear head on features: trained by gradients, or solved as a probe, and what a probe says of unseen images."""

import warnings
from typing import NamedTuple

import numpy as np
import torch
from scipy.special import softmax
from torch import nn

from defectcls.errors import UserError
from defectcls.evaluation.calibration import calibrated_loss
from defectcls.model.backbone import in_pieces

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


class Head(nn.Module):
    """Standardised features -> logits, in float32 whatever the autocast: bf16 logits would tie."""

    def __init__(self, feature_count: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(feature_count, classes)
        self.mean, self.std = nn.Buffer(torch.zeros(feature_count)), nn.Buffer(torch.ones(feature_count))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(batch, feature_count) -> (batch, classes); in evaluation on a CPU the same bits in any batch."""
        with torch.autocast(features.device.type, enabled=False):
            standardised = (features.float() - self.mean) / self.std
            if self.training:
                return self.linear(standardised)
            return in_pieces(lambda piece: (self.linear(piece),), standardised)[0]

    def load(self, solved: LinearHead) -> None:
        """Take over a probe."""
        own = (self.mean, self.std, self.linear.weight.data, self.linear.bias.data)
        for values, learned in zip(own, solved[:4], strict=True):
            values.copy_(torch.from_numpy(learned))


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
    from sklearn.linear_model import LogisticRegression  # a second that prediction does without
    from threadpoolctl import threadpool_limits

    features, targets = train
    if not np.isfinite(features).all():
        raise UserError("the backbone's features are not finite: try trainer.precision=32, or other weights")
    mean, std = features.mean(0), features.std(0)
    std = np.maximum(std, LEAST_DEVIATION * std.mean() or 1.0)  # 1: not one feature moves
    weights = None if class_weights is None else dict(enumerate(class_weights))
    standardised, heads = (features - mean) / std, []
    for c in sorted(candidates):
        model = LogisticRegression(C=c / (1 + views), class_weight=weights, max_iter=1000)
        with threadpool_limits(1):  # threads that hand small products to each other took 20 times as long
            model.fit(standardised, targets)
        weight, bias = model.coef_, model.intercept_
        if len(weight) == 1:  # two classes share one vector: its two halves give the same softmax
            weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
        heads.append(LinearHead(mean, std, weight, bias, c))
    return min(heads, key=lambda head: calibrated_loss(softmax(head.logits(val[0]).astype(np.float64), axis=1), val[1]))


def out_of_fold(
    train: tuple[np.ndarray, np.ndarray],
    tested: np.ndarray,
    units: np.ndarray,
    folds: int,
    c: float,
    class_weights: list[float] | None,
    views: int,
    seed: int,
) -> np.ndarray:
    """Logits of each training image by a probe that has not seen its unit, (images, classes).

    NaN of images without which a probe would have none of their class, such as the only defect there is.

    Args:
        train, class_weights, views: see `fit_probe`.
        tested: features that a test sees, such as means over the ways to lay an image, (images, feature_count).
        units: images of one unit stay in one fold, (images,).
        c: inverse strength of the probe's L2 penalty.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    features, targets = train
    count, classes = len(units), np.unique(targets)
    own = targets[:count]  # copies stand behind the images
    logits = np.full((count, len(classes)), np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a class has fewer images than there are folds
        dealt = list(StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(units, own, units))
    for _, rows in dealt:
        out = np.isin(np.arange(count), rows)
        out &= np.isin(own, own[~out])
        if out.any():
            kept = np.tile(~out, 1 + views)
            seen = features[kept], targets[kept]
            logits[out] = fit_probe(seen, seen, [c], class_weights, views).logits(tested[out])
    return logits


def doubt_labels(
    features: np.ndarray, targets: np.ndarray, units: np.ndarray, folds: int, c: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Likely wrong labels: confident learning (Northcutt et al. 2021, cleanlab) on what probes say of unseen images.

    Args:
        features: frozen features (images, feature_count).
        targets, units, folds, c: see `out_of_fold`.

    Returns:
        Rows of the images whose label is likely wrong, the least credible first, int64 (doubted,); and probabilities of
        all images (images, classes) by a model that has not seen the image or what is tied to it.

    Raises:
        UserError: a class has too few independent images to stand in every fold.
    """
    from cleanlab.filter import find_label_issues

    classes = np.unique(targets)
    if len(classes) < 2:
        raise UserError("a classifier needs two classes, but all images are of one")
    fewest = min(len(np.unique(units[targets == target])) for target in classes)
    if fewest < folds:
        raise UserError(f"audit.folds={folds}, but the smallest class has {fewest} independent images")
    probabilities = softmax(out_of_fold((features, targets), features, units, folds, c, None, 0, seed), axis=1)
    issues = find_label_issues(targets, probabilities, return_indices_ranked_by="self_confidence", n_jobs=1)
    return issues, probabilities
