"""What the numbers of a run mean, and what to know before trusting them, in plain words."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from defectcls.evaluation.metrics import METRICS, defect_counts, defect_numbers

SPLITS = {"train": "train", "val": "validation", "test": "test"}
SMALL = 50  # fewer images than this on either side: one image more or less moves the rate by over 2 points
NEARLY_ALL = 0.9  # of the images called alike, and of the others called wrong
LEAST_OTHERS = 5  # images: of fewer nothing follows


def judged_split(metrics: dict[str, Any]) -> str:
    """The split that the verdict is on: test, or else validation, or else train."""
    return next(split for split in ("test", "val", "train") if split in metrics)


def verdict(metrics: dict[str, Any]) -> list[str]:
    """What the model did on the judged split, in sentences."""
    split, sides, said = judged_split(metrics), metrics["defective_classes"], []
    matrix, numbers = metrics[split]["confusion_matrix"], defect_numbers(metrics[split])

    def rate(metric: str) -> str:
        interval = numbers["intervals"].get(metric)
        return shown(metric, numbers[metric]) + (f" (95 % interval {span(metric, interval)})" if interval else "")

    if any(sides) and not all(sides):
        defects, caught, sound = defect_counts(matrix, sides)
        if defects:
            of = f"{caught} of {plural(defects, 'defective image')} in the {SPLITS[split]} set"
            said += [f"Caught: {of}, recall {percent(numbers['recall'])}, escape rate {rate('escape_rate')}."]
        if sound:
            count = round(numbers["overkill_rate"] * sound)  # fewer than flagged, where a person looks at some
            said += [f"Rejected: {count} of {plural(sound, 'sound image')}, overkill {rate('overkill_rate')}."]
        if "review_rate" in numbers:
            said += [f"A person has to look at {percent(numbers['review_rate'])} of the images."]
    if len(matrix) > 2 or not said:
        right = sum(row[index] for index, row in enumerate(matrix))
        said += [f"Right class: {right} of {plural(numbers['n'], 'image')}, accuracy {rate('accuracy')}."]
    return said


def caveats(metrics: dict[str, Any]) -> list[str]:
    """In sentences, the gravest first."""
    split, sides, decision = judged_split(metrics), metrics["defective_classes"], metrics.get("decision")
    judged, found = metrics[split], seen_words(metrics.get("seen"))
    numbers = defect_numbers(judged)
    if elsewhere := metrics.get("elsewhere"):
        where = f"the model was trained on {elsewhere['trained_on']} and is judged on {elsewhere['judged_on']}"
        found += [f"Another dataset: {where}."]
    if "review_rate" not in numbers:  # what goes to a person is called nothing
        found += _collapse(numbers, metrics["class_names"])
    if judged["loss"] is None and judged["n"]:
        found += ["Some probabilities are not numbers: training has diverged. Lower the learning rate."]
    if split != "test":
        found += [f"No test set: the verdict is on {SPLITS[split]} images, which helped to make the model."]
    defective, _, sound = defect_counts(judged["confusion_matrix"], sides)
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
    interval, ranks = numbers["intervals"].get("auroc"), "do not surely rank better than chance"
    if interval and interval[0] > 0.5:
        ranks = "rank better than chance, and decision=f1 takes a threshold that uses them"
    return [
        f"Collapse onto one class: {called} of {plural(n, 'image')} are called “{class_names[into]}”, and {wrong} of "
        f"the {n - alike} others are wrong. To call every image so has an accuracy of {percent(alike / n)}. The scores "
        f"{ranks}."
    ]


def decision_words(decision: dict[str, Any] | None) -> list[str]:
    """How the model decides and what it can promise, in sentences."""
    if decision is None:
        return ["The predictions are taken as they are; where a table has none, the most probable class counts."]
    policy, share, evidence = (decision[key] for key in ("policy", "prevalence", "evidence"))
    low, high = decision["accept_below"], decision["reject_from"]
    if low is None:
        alike = ", were all classes equally common," if decision["prior"] else ""
        return [f"An image is rejected when its most probable class{alike} is a defective one (policy {policy})."]
    rule = f"An image is rejected from a score of {number(high, 4)} on"
    if low != high:
        rule += f", accepted below {number(low, 4)}, and goes to a person between"
    assumed = f"; scores assume that {percent(share)} of the parts are defective" if share is not None else ""
    return [
        f"{rule} (policy {policy}{assumed}). On the validation set this lets {evidence['escapes']} of "
        f"{plural(evidence['defective'], 'defective image')} through and rejects {evidence['false_rejects']} of "
        f"{plural(evidence['sound'], 'sound image')}.",
        *(_promise(promise) for promise in decision["promises"] if promise["kept"]),
    ]


def not_promised(decision: dict[str, Any] | None) -> list[str]:
    """What a decision was to promise and cannot, in sentences."""
    return [_promise(promise) for promise in (decision or {}).get("promises", []) if not promise["kept"]]


def _promise(promise: dict[str, Any]) -> str:
    rate, kind = METRICS[promise["rate"]].name, "defective" if promise["rate"] == "escape_rate" else "sound"
    images = f"{promise['independent']} {'groups of ' if promise['grouped'] else ''}{kind} validation images"
    bound, target, confidence = (percent(promise[key]) for key in ("bound", "target", "confidence"))
    if promise["kept"]:
        least = f"is at most {target} (Clopper-Pearson bound {bound} from {images})"
        return f"Promise: with {confidence} confidence the {rate} on images like these {least}."
    return (
        f"No promise: an {rate} of at most {target} at {confidence} confidence takes {promise['needed']} independent "
        f"{kind} validation images, not one of them misjudged. There are {images}, which prove at most {bound}."
    )


def number(value: float | None, digits: int = 3, limit: float = 1) -> str:
    """The number with `digits` decimals, more where it would round to 0 or to `limit` without being it."""
    if value is None or pd.isna(value):
        return "–"
    while digits < 9 and 1e-9 < value < limit - 1e-9 and float(f"{value:.{digits}f}") in (0, limit):
        digits += 1
    return f"{value:.{digits}f}"


def percent(value: float | None) -> str:
    """`94.7 %`, with as many digits as it takes not to call 99.97 % all or 0.03 % none; `–` where undefined."""
    return "–" if value is None or pd.isna(value) else f"{number(100 * value, 1, 100)} %"


def shown(metric: str, value: float | None) -> str:
    """A number of METRICS as that table says that it is shown."""
    return percent(value) if METRICS[metric].percent else number(value, 0 if metric == "seconds" else 3)


def span(metric: str, interval: Sequence[float | None] | None) -> str:
    """`83.1 to 98.5 %`, or `0.831 to 0.985` where the number is no share; `–` where undefined."""
    low, high = interval or (None, None)
    if low is None or high is None or pd.isna(low) or pd.isna(high):
        return "–"
    return f"{100 * low:.1f} to {100 * high:.1f} %" if METRICS[metric].percent else f"{low:.3f} to {high:.3f}"


def difference(metric: str, value: float, low: float, high: float) -> str:
    """With signs and its interval, shares in percentage points: `+3.1 points [-1.2 to +7.4]`."""
    if METRICS[metric].percent:
        return f"{100 * value:+.1f} points [{100 * low:+.1f} to {100 * high:+.1f}]"
    return f"{value:+.3f} [{low:+.3f} to {high:+.3f}]"


def plural(count: int, noun: str) -> str:
    """`1 image`, `2,000 images`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
