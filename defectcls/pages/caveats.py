"""What a reader must know before trusting the verdict on a run, in plain words."""

from typing import Any

import numpy as np

from defectcls.evaluation.metrics import METRICS, defect_counts, defect_numbers
from defectcls.pages.wording import SPLITS, judged_split, not_promised, percent, plural, span

SMALL = 50  # fewer images than this on either side: one image more or less moves the rate by over 2 points
NEARLY_ALL = 0.9  # of the images called alike, and of the others called wrong
LEAST_OTHERS = 5  # images: of fewer nothing follows


def caveats(metrics: dict[str, Any]) -> list[str]:
    """In sentences, the gravest first."""
    split, sides, decision = judged_split(metrics), metrics["defective_classes"], metrics.get("decision")
    judged, found = metrics[split], seen_words(metrics.get("seen"))
    numbers = defect_numbers(judged)
    if elsewhere := metrics.get("elsewhere"):
        where = f"the model was trained on {elsewhere['trained_on']} and is judged on {elsewhere['judged_on']}"
        found += [f"Another dataset: {where}."]
    found += _collapse(numbers, metrics["class_names"])
    if judged["loss"] is None and judged["n"]:
        found += ["Some probabilities are not numbers: training has diverged. Lower the learning rate."]
    if split != "test":
        found += [f"No test set: the verdict is on {SPLITS[split]} images, which helped to make the model."]
    passed, rejected, missed, caught = defect_counts(judged["confusion_matrix"], sides)
    defective, sound = missed + caught, passed + rejected
    if any(sides) and not all(sides) and min(defective, sound) < SMALL:
        found += [f"The {SPLITS[split]} set is small: {plural(defective, 'defective image')} and {sound} sound."]
    found += not_promised(decision)
    for promise in decision["promises"] if decision else []:
        rate, target = promise["rate"], promise["target"]
        if promise["kept"] and (interval := numbers["intervals"].get(rate)) and interval[0] > target:
            found += [
                f"The promise of an {METRICS[rate].name} of at most {percent(target)} does not hold on this set, where "
                f"it is {span(rate, interval)}. These images differ from those of the validation set."
            ]
    if unreadable := metrics.get("unreadable"):
        found += [f"Left out as it could not be read: {plural(len(unreadable), 'image')}; see the end."]
    return found


def seen_words(seen: dict[str, Any] | None) -> list[str]:
    """How many of the photos the model has learned from or was chosen on, and whether they count, in a sentence."""
    if not seen or not seen["n"]:
        return []
    near = f" or, {seen['near']} of them, a near copy" if seen["near"] else ""
    kept = "these are part of the numbers: new photos will be judged worse"
    return [
        f"Seen before: {seen['n']} of {plural(seen['of'], 'photo')}, learned from or chosen on, the very file{near}; "
        f"{'these are left out, seen=keep measures them too' if seen['left_out'] else kept}."
    ]


def _collapse(numbers: dict[str, Any], class_names: list[str]) -> list[str]:
    """That nearly all images are called alike, and of the others nearly all wrong."""
    matrix = np.array(numbers["confusion_matrix"])
    n, into = matrix.sum(), int(matrix.sum(axis=0).argmax())
    called, right, alike = matrix[:, into].sum(), matrix.trace() - matrix[into, into], matrix[into].sum()
    wrong = n - alike - right
    if called < NEARLY_ALL * n or n - alike < LEAST_OTHERS or wrong < NEARLY_ALL * (n - alike):
        return []
    if "review_rate" in numbers:  # what goes to a person is called nothing
        return []
    interval, ranks = numbers["intervals"].get("auroc"), "do not surely rank better than chance"
    if interval and interval[0] > 0.5:
        ranks = "rank better than chance, and decision=f1 takes a threshold that uses them"
    return [
        f"Collapse onto one class: {called} of {plural(n, 'image')} are called “{class_names[into]}”, and {wrong} of "
        f"the {n - alike} others are wrong. To call every image so has an accuracy of {percent(alike / n)}. The scores "
        f"{ranks}."
    ]
