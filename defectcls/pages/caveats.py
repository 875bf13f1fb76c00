"""What a reader must know before trusting the verdict on a run, in plain words."""

from typing import Any

import numpy as np

from defectcls.evaluation.metrics import METRICS, defect_counts, defect_numbers
from defectcls.pages import wording
from defectcls.pages.wording import SPLITS, percent, plural, span, were

Metrics = dict[str, Any]  # the content of metrics.json, or of one of its parts

SMALL = 50  # fewer images than this on either side: one image more or less moves the rate by over 2 points
NEARLY_ALL = 0.9  # of the images called alike: of any two classes, a model that tells them apart calls more otherwise
OVER_CHANCE = 0.05  # the mean recall of the classes that a model has surely learned exceeds chance by more
LEAST_OTHERS = 5  # images: of fewer nothing follows


def caveats(metrics: Metrics) -> list[str]:
    """In sentences, the gravest first."""
    split = wording.judged_split(metrics)
    judged, found = metrics[split], seen_words(metrics.get("seen"))
    if elsewhere := metrics.get("elsewhere"):
        where = f"the model was trained on {elsewhere['trained_on']} and is judged on {elsewhere['judged_on']}"
        found += [f"Another dataset: {where}."]
    found += _collapse(judged, metrics["class_names"])
    if judged["loss"] is None and judged["n"]:
        found += ["Some probabilities are not numbers: training has diverged. Lower the learning rate."]
    if split != "test":
        found += [f"No test set: the verdict is on {SPLITS[split]} images, which helped to make the model."]
    found += _few_images(metrics, judged)
    found += wording.not_promised(metrics.get("decision"))
    found += _broken_promises(metrics, judged)
    if unreadable := len(metrics.get("unreadable", [])):
        found += [f"{plural(unreadable, 'image')} could not be read and {were(unreadable)} left out; see the end."]
    return found


def seen_words(seen: dict[str, Any] | None) -> list[str]:
    """How many of the photos the model has learned from or was chosen on, and whether they count, in a sentence."""
    if not seen or not seen["n"]:
        return []
    near = f" or, {seen['near']} of them, a near copy" if seen["near"] else ""
    kept = "these are part of the numbers: new photos will be judged worse"
    return [
        f"Seen before: {seen['n']} of {plural(seen['of'], 'photo')} {were(seen['n'])} learned from or chosen on, the "
        f"very file{near}; {'these are left out, seen=keep measures them too' if seen['left_out'] else kept}."
    ]


def _collapse(judged: Metrics, class_names: list[str]) -> list[str]:
    """That nearly all images are called alike, and no class is told from the others better than by chance."""
    matrix, numbers = np.array(judged["confusion_matrix"]), defect_numbers(judged)
    sizes, called, right = matrix.sum(axis=1), matrix.sum(axis=0), matrix.diagonal()
    into = int(called.argmax())
    others, shown = sizes.sum() - sizes[into], sizes > 0
    if called[into] < NEARLY_ALL * sizes.sum() or others < LEAST_OTHERS or "review_rate" in numbers:
        return []
    if (right[shown] / sizes[shown]).mean() > 1 / shown.sum() + OVER_CHANCE:
        return []
    caught, interval = right.sum() - right[into], numbers.get("intervals", {}).get("auroc")
    ranks = "do not surely rank better than chance"
    if interval and interval[0] > 0.5:
        ranks = "rank better than chance, and decision=f1 takes a threshold that uses them"
    return [
        f"Collapse onto one class: {called[into]} of {plural(sizes.sum(), 'image')} are called “{class_names[into]}”, "
        f"and of the {others} others {caught or 'none'} {were(caught or 1)} given the right class. To call every image "
        f"so has an accuracy of {percent(sizes[into] / sizes.sum())}. The scores {ranks}."
    ]


def _few_images(metrics: Metrics, judged: Metrics) -> list[str]:
    """That there are few defective or sound images to judge on, or none."""
    sides, split = metrics["defective_classes"], SPLITS[wording.judged_split(metrics)]
    passed, rejected, missed, caught = defect_counts(judged["confusion_matrix"], sides)
    defective, sound = missed + caught, passed + rejected
    if not any(sides) or all(sides) or min(defective, sound) >= SMALL:
        return []
    return [f"The {split} set is small: it has {plural(defective, 'defective image')} and {sound} sound."]


def _broken_promises(metrics: Metrics, judged: Metrics) -> list[str]:
    found, intervals = [], defect_numbers(judged)["intervals"]
    for promise in (metrics.get("decision") or {}).get("promises", []):
        rate, interval = promise["rate"], intervals.get(promise["rate"])
        if promise["kept"] and interval and interval[0] > promise["target"]:
            found += [
                f"The promise of an {METRICS[rate].name} of at most {percent(promise['target'])} does not hold on this "
                f"set, where it is {span(rate, interval)}. These images differ from those of the validation set."
            ]
    return found
