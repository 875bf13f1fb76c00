"""Majority-class collapse: a model that calls nearly every image alike, whatever the images show."""

from typing import Any

import numpy as np
import pandas as pd

from defectcls.evaluation.intervals import proportion_interval
from defectcls.evaluation.metrics import defect_numbers
from defectcls.evaluation.predictions import REVIEW, groups_of

CHANCE = 0.5  # AUROC of scores that tell nothing
NEARLY_ALL = 0.9  # of the images called alike: of any two classes, a model that tells them apart calls more otherwise


def majority_collapse(predictions: pd.DataFrame) -> dict[str, Any] | None:
    """The class that the images collapse `into`, with how many are `called` so `of` all; None where they do not.

    It takes three things. One class gets nearly all predictions, as it also does from a good model where defects are
    rare. The mean recall over the classes is not above chance, 1 / classes. And it surely lies nearer to chance than to
    1, which it does not where the other classes have an image or two. Both are told by its 95 % interval, joined from
    those of the classes (MOVER, see intervals.py). An image that goes to a person is not called anything.
    """
    if "decision" in predictions:
        predictions = predictions[predictions["decision"] != REVIEW]
    if predictions["label"].nunique() < 2:
        return None
    counts = predictions["prediction"].value_counts()
    if counts.iloc[0] < NEARLY_ALL * len(predictions):
        return None
    groups, truth = groups_of(predictions), predictions["label"].to_numpy()
    right = (predictions["label"] == predictions["prediction"]).to_numpy()
    recalls, limits = [], []
    for name in np.unique(truth):
        members = truth == name
        recalls.append(right[members].mean())
        limits.append(proportion_interval(right[members], groups[members]))
    recall, chance = np.array(recalls), 1 / len(recalls)
    low, high = np.array(limits).T
    least, most = recall.mean() + chance * np.linalg.norm([recall - low, high - recall], axis=1) * [-1, 1]
    if least > chance or most >= (chance + 1) / 2:
        return None
    return {"into": str(counts.index[0]), "called": int(counts.iloc[0]), "of": len(predictions)}


def ranks(numbers: dict[str, Any]) -> bool:
    """Whether scores surely rank better than chance, as the interval of their AUROC says: then a threshold would help.

    Args:
        numbers: of one part, as metrics.json has them.
    """
    interval = defect_numbers(numbers)["intervals"].get("auroc")
    return interval is not None and interval[0] > CHANCE
