"""Likely wrong labels: confident learning (Northcutt et al. 2021, cleanlab) on what the probe says of unseen images."""

from typing import NamedTuple

import numpy as np
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores
from scipy.special import softmax
from sklearn.model_selection import StratifiedGroupKFold

from defectcls.errors import UserError
from defectcls.model.probe import fit_probe


class Doubt(NamedTuple):
    """Of every image: its place among all, the least credible label first; whether that is likely wrong; and why."""

    order: np.ndarray  # int64 (images,)
    wrong: np.ndarray  # bool (images,)
    probabilities: np.ndarray  # (images, classes) by a model that has not seen the image or what is tied to it


def doubt_labels(
    features: np.ndarray, targets: np.ndarray, units: np.ndarray, folds: int, c: float, seed: int
) -> Doubt:
    """Ask of every image what a probe on the others would call it.

    Args:
        features: frozen features (images, features).
        targets: class of each image, (images,).
        units: images of one unit stay in one fold, (images,).
        c: inverse strength of the probe's L2 penalty, as in scikit-learn.

    Raises:
        UserError: a class has too few independent images to stand in every fold.
    """
    classes = targets.max() + 1
    fewest = min(len(np.unique(units[targets == target])) for target in range(classes))
    if fewest < folds:
        raise UserError(f"audit.folds={folds}, but the smallest class has {fewest} independent images")
    probabilities = np.zeros((len(targets), classes))
    dealt = StratifiedGroupKFold(folds, shuffle=True, random_state=seed).split(features, targets, units)
    for train, test in dealt:
        if len(np.unique(targets[train])) < classes:
            raise UserError(f"audit.folds={folds}: all related images of a class fell into one fold; try another seed")
        seen = features[train], targets[train]
        probabilities[test] = softmax(fit_probe(seen, seen, [c], None).logits(features[test]), axis=1)
    order = get_label_quality_scores(targets, probabilities).argsort(kind="stable")
    wrong = find_label_issues(targets, probabilities, filter_by="prune_by_noise_rate", n_jobs=1)
    return Doubt(order, wrong, probabilities)
