"""The probe: a regularised linear classifier on frozen features, solved as the convex problem it is."""

from contextlib import AbstractContextManager
from typing import NamedTuple

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from defectcls.errors import UserError


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


@torch.inference_mode()
def extract_features(
    backbone: nn.Module, loader: DataLoader, device: torch.device, autocast: AbstractContextManager
) -> tuple[np.ndarray, np.ndarray]:
    """Frozen features (images, features) float32 and targets (images,) int64 of every image of a loader."""
    backbone.eval()
    features, targets = [], []
    with autocast:
        for batch in tqdm(loader, "features", disable=None, leave=False, unit="batch"):
            features.append(backbone(batch["image"].to(device)).float().cpu().numpy())
            targets.append(batch["target"].numpy())
    return np.concatenate(features), np.concatenate(targets)


def fit_probe(
    train: tuple[np.ndarray, np.ndarray],
    val: tuple[np.ndarray, np.ndarray],
    candidates: list[float],
    class_weights: list[float] | None,
) -> LinearHead:
    """Multinomial logistic regression on standardised features, with the penalty of the lowest validation log-loss.

    Args:
        train, val: features (images, features) and targets (images,).
        candidates: values of C to try, inverse strengths of the L2 penalty, as in scikit-learn.
        class_weights: one factor a class; None weighs all images alike.
    """
    features, targets = train
    if not np.isfinite(features).all():
        raise UserError("the backbone's features are not finite: try trainer.precision=32, or other weights")
    mean, std = (
        features.mean(0),
        np.maximum(features.std(0), float(__import__("os").environ.get("FLOOR", "0")) * features.std(0).mean()),
    )
    weights = None if class_weights is None else dict(enumerate(class_weights))
    heads = []
    for c in candidates:
        model = LogisticRegression(C=c, class_weight=weights, max_iter=1000)
        model.fit((features - mean) / std, targets)
        weight, bias = model.coef_, model.intercept_
        if len(weight) == 1:  # two classes share one vector: its two halves give the same softmax
            weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
        heads.append(LinearHead(mean, std, weight, bias, c))
    return min(heads, key=lambda head: _log_loss(head.logits(val[0]), val[1]))


def _log_loss(logits: np.ndarray, targets: np.ndarray) -> float:
    probabilities = np.exp(logits - logits.max(1, keepdims=True))
    probabilities /= probabilities.sum(1, keepdims=True)
    return float(log_loss(targets, probabilities, labels=np.arange(logits.shape[1])))
