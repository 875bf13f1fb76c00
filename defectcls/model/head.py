"""A linear head on features: trained by gradients, or solved as a probe, and what a probe says of unseen images."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.linalg import eigh
from scipy.special import softmax
from torch import nn

from defectcls.data.splits import deal_folds
from defectcls.errors import UserError
from defectcls.evaluation.calibration import calibrated_loss
from defectcls.model.backbone import in_pieces

# Features that hardly move in training are not blown up to unit variance: the least divisor, of the mean deviation.
LEAST_DEVIATION = 0.3
FOLDS = 5  # that images are dealt to where each is to be judged by a member which has not seen it


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
    """Standardised features -> logits of each member, in float32 whatever the autocast: bf16 logits would tie."""

    def __init__(self, feature_count: int, classes: int, members: int = 1) -> None:
        super().__init__()
        self.linear = nn.Linear(feature_count, members * classes)
        self.mean, self.std = nn.Buffer(torch.zeros(feature_count)), nn.Buffer(torch.ones(feature_count))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(batch, feature_count) -> (batch, members x classes); in evaluation on a CPU the same bits in any batch."""
        with torch.autocast(features.device.type, enabled=False):
            standardised = (features.float() - self.mean) / self.std
            if self.training:
                return self.linear(standardised)
            return in_pieces(lambda piece: (self.linear(piece),), standardised)[0]

    def load(self, *solved: LinearHead) -> None:
        """Take over probes, one a member."""
        mean, std = solved[0].mean, solved[0].std
        slopes = [one.weight / one.std for one in solved]
        biases = [one.bias + slope @ (mean - one.mean) for one, slope in zip(solved, slopes, strict=True)]
        linear = {"linear.weight": np.concatenate(slopes) * std, "linear.bias": np.concatenate(biases)}
        learned = {"mean": mean, "std": std, **linear}
        self.load_state_dict({name: torch.from_numpy(values) for name, values in learned.items()})


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
    heads = _solve(*train, candidates, class_weights, views)
    return heads[_best([head.logits(val[0]) for head in heads], val[1])]


def fit_members(
    train: tuple[np.ndarray, np.ndarray],
    tested: np.ndarray,
    folds: np.ndarray,
    candidates: list[float],
    class_weights: list[float] | None,
    views: int = 0,
    count: int = FOLDS,
) -> tuple[list[LinearHead], np.ndarray]:
    """A probe for each fold that has seen all images but the fold's, and what it says of these.

    All have one penalty, the best for the images, each as judged by the member that has not seen it. With a penalty
    each they differed in scale, and where they did promises at 95 % confidence were broken in 18 % of simulated runs.

    Args:
        train, candidates, class_weights, views: see `fit_probe`.
        tested: features that a test sees, such as means over the ways to lay an image, (images, feature_count).
        folds: number of each image's fold, int (images,).
        count: of folds; the member of an empty one has seen all.

    Returns:
        The members, and logits float64 (images, classes): NaN of images without which a member would have none of
        their class, such as the only defect there is, which it has seen.
    """
    features, targets = train
    own = targets[: len(folds)]  # copies stand behind the images
    said = np.full((len(candidates), len(folds), len(np.unique(targets))), np.nan)
    solved = []
    for fold in range(count):
        out = (folds == fold) & np.isin(own, own[folds != fold])
        kept = np.tile(~out, 1 + views)
        heads = _solve(features[kept], targets[kept], candidates, class_weights, views)
        solved.append(heads)
        said[:, out] = [head.logits(tested[out]) for head in heads]
    judged = ~np.isnan(said[0]).any(1)
    best = _best(said[:, judged], own[judged])
    return [heads[best] for heads in solved], said[best]


def _best(candidates: Sequence[np.ndarray] | np.ndarray, targets: np.ndarray) -> int:
    """Which of several logits (images, classes) has the least calibrated loss, of equal ones the first."""
    losses = [calibrated_loss(softmax(logits.astype(np.float64), axis=1), targets) for logits in candidates]
    return losses.index(min(losses))


def _solve(
    features: np.ndarray, targets: np.ndarray, candidates: list[float], class_weights: list[float] | None, views: int
) -> list[LinearHead]:
    """A probe for each penalty, the strongest first."""
    from sklearn.linear_model import LogisticRegression  # a second that prediction does without
    from threadpoolctl import threadpool_limits

    if not np.isfinite(features).all():
        raise UserError("the backbone's features are not finite: try trainer.precision=32, or other weights")
    mean, std = features.mean(0), features.std(0)
    std = np.maximum(std, LEAST_DEVIATION * std.mean() or 1.0)  # 1: not one feature moves
    weights = None if class_weights is None else dict(enumerate(class_weights))
    inputs = (features - mean) / std
    heads, back = [], None
    with threadpool_limits(1):  # threads that hand small products to each other took 20 times as long
        if 2 * len(inputs) < inputs.shape[1]:  # the solution lies in the space of the images: there it is found sooner
            values, vectors = eigh(inputs @ inputs.T.astype(np.float64))
            lengths = np.sqrt(np.maximum(values, 1e-9 * values[-1] + np.finfo(float).tiny))
            inputs, back = vectors * lengths, inputs.T @ (vectors / lengths)
        for c in sorted(candidates):
            model = LogisticRegression(C=c / (1 + views), class_weight=weights, max_iter=1000).fit(inputs, targets)
            weight, bias = model.coef_ if back is None else model.coef_ @ back.T, model.intercept_
            if len(weight) == 1:  # two classes share one vector: its two halves give the same softmax
                weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
            heads.append(LinearHead(mean, std, weight, bias, c))
    return heads


def doubt_labels(
    features: np.ndarray, targets: np.ndarray, units: np.ndarray, folds: int, c: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Likely wrong labels: confident learning (Northcutt et al. 2021, cleanlab) on what probes say of unseen images.

    Args:
        features: frozen features (images, feature_count).
        targets: (images,).
        units: images of one unit stay in one fold, (images,).
        folds: how many.
        c: inverse strength of the probes' L2 penalty.

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
    dealt = deal_folds(pd.DataFrame({"label": targets}), units, folds, np.random.default_rng(seed))
    probabilities = softmax(fit_members((features, targets), features, dealt, [c], None, count=folds)[1], axis=1)
    issues = find_label_issues(targets, probabilities, return_indices_ranked_by="self_confidence", n_jobs=1)
    return issues, probabilities
