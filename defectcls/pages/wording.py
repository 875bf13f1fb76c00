"""What the numbers of a run mean, and what to know before trusting them, in plain words."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from defectcls.evaluation.metrics import METRICS, defect_counts, defect_numbers

SPLITS = {"train": "train", "val": "validation", "test": "test"}
SMALL = 50  # fewer images than this on either side: one image more or less moves the rate by over 2 points
NEARLY_ALL = 0.9  # of the images called alike, and of the others called wrong
LEAST = 5  # images: of fewer nothing follows
BREAKS = 0.25  # that a disturbance costs: three of ten images


def judged_split(metrics: dict[str, Any]) -> str:
    """The split that the verdict is on: test, or else validation, or else train."""
    return next(split for split in ("test", "val", "train") if split in metrics)


def part_name(metrics: dict[str, Any], split: str) -> str:
    """`test`, or `out of fold` of what is judged so."""
    return "out of fold" if split in metrics.get("out_of_fold", {}) else SPLITS[split]


def verdict(metrics: dict[str, Any]) -> list[str]:
    """What the model did on the judged split, in sentences."""
    split, said = judged_split(metrics), []
    matrix, numbers = metrics[split]["confusion_matrix"], defect_numbers(metrics[split])

    def rate(metric: str) -> str:
        interval = numbers["intervals"].get(metric)
        return shown(metric, numbers[metric]) + (f" (95 % interval {span(metric, interval)})" if interval else "")

    if "escape_rate" in numbers:
        defects, caught, sound = defect_counts(matrix, metrics["defective_classes"])
        if defects:
            of = f"{caught} of {plural(defects, 'defective image')}"
            said += [f"Caught: {of}, recall {percent(numbers['recall'])}, escape rate {rate('escape_rate')}."]
        if sound:
            count = round(numbers["overkill_rate"] * sound)  # fewer than flagged, where a person looks at some
            said += [f"Rejected: {count} of {plural(sound, 'sound image')}, overkill {rate('overkill_rate')}."]
        if "review_rate" in numbers:
            said += [f"A person has to look at {percent(numbers['review_rate'])} of the images."]
    if len(matrix) > 2 or not said:
        right = np.trace(matrix)
        said += [f"Right class: {right} of {plural(numbers['n'], 'image')}, accuracy {rate('accuracy')}."]
    if folded := metrics.get("out_of_fold"):
        each, (part, members) = "Each" if split in folded else "Out of fold each", next(iter(folded.items()))
        said += [
            f"{each} photo was judged by one of {members} models that had not seen it or its like; the model that is "
            f"kept is their mean and has learned from all {metrics[part]['n']:,}. "
            "What decides was chosen on the same scores."
        ]
    return said


def caveats(metrics: dict[str, Any]) -> list[str]:
    """In sentences, the gravest first."""
    split, found = judged_split(metrics), []
    judged, numbers = metrics[split], defect_numbers(metrics[split])
    if (seen := metrics.get("seen")) and seen["n"]:
        near = f" or, {seen['near']} of them, a near copy" if seen["near"] else ""
        counted = "these are part of the numbers: new photos will be judged worse"
        if seen["left_out"]:
            counted = "these are left out, seen=keep measures them too"
        of = f"{seen['n']} of {plural(seen['of'], 'photo')}"
        found += [f"Seen before: {of}, learned from or chosen on, the very file{near}; {counted}."]
    if elsewhere := metrics.get("elsewhere"):
        where = f"the model was trained on {elsewhere['trained_on']} and is judged on {elsewhere['judged_on']}"
        found += [f"Another dataset: {where}."]
    if laid := metrics.get("verdicts"):
        people = f"Labels of people on {plural(laid['laid_over'], 'photo')}, {laid['changed']} unlike the dataset's"
        found += [f"{people}; {plural(laid['missing'], 'photo')} of theirs are not here."]
        if names := laid["conflicts"]:
            found += [f"People disagree on {', '.join(names[:9])} ({len(names)} in all): the dataset's label stands."]
    ranks = numbers["intervals"].get("auroc")
    if ranks and ranks[0] <= 0.5:
        interval = f"95 % interval {ranks[0]:.3f} to {ranks[1]:.3f}"
        found += [f"Not surely better than chance: AUROC {numbers['auroc']:.3f}, {interval}."]
    if "review_rate" not in numbers:  # what goes to a person is called nothing
        found += _collapse(numbers, metrics["class_names"])
    if judged["loss"] is None and judged["n"]:
        found += ["Some probabilities are not numbers: training has diverged. Lower the learning rate."]
    if split != "test":
        found += [f"No test set: the verdict is on {SPLITS[split]} images, which helped to make the model."]
    if "escape_rate" in numbers:
        defective, _, sound = defect_counts(judged["confusion_matrix"], metrics["defective_classes"])
        if min(defective, sound) < SMALL:
            found += [f"Few images: {plural(defective, 'defective image')} and {sound} sound."]
    counts = zip(metrics["class_names"], map(sum, judged["confusion_matrix"]), strict=True)
    if few := [f"“{name}” ({count})" for name, count in counts if 0 < count < LEAST]:
        found += [f"Fewer than {LEAST} images of a class, whose numbers say nothing: {', '.join(few)}."]
    found += not_promised(metrics.get("decision"))
    for promise in (metrics.get("decision") or {}).get("promises", []):
        rate, target = promise["rate"], promise["target"]
        if promise["kept"] and (interval := numbers["intervals"].get(rate)) and interval[0] > target:
            found += [
                f"The promise of an {METRICS[rate].name} of at most {percent(target)} does not hold on this set, where "
                f"it is {span(rate, interval)}. These images differ from those that it was chosen on."
            ]
    found += _under_disturbance(metrics.get("robustness", []), metrics.get("robustness_images"))
    if (auto := metrics.get("auto")) and len(auto["tried"]) > 1:
        honest = defect_numbers(auto["nested"])
        said = [
            f"{METRICS[one].name} {shown(one, honest[one])} ({span(one, honest['intervals'].get(one))})"
            for one in ("escape_rate", "overkill_rate", "auroc")
            if one in honest  # of defects of several types without a sound image there are none
        ]
        how = f"Chosen among {len(auto['tried'])} by the photos that judge it"
        found += [f"{how}. Chosen on four folds and judged on the fifth, it has {', '.join(said)}."]
    if unreadable := metrics.get("unreadable"):
        found += [f"Left out as it could not be read: {plural(len(unreadable), 'image')}; see the end."]
    return found


def _under_disturbance(rows: list[dict[str, Any]], images: int | None) -> list[str]:
    """What costs the most recall, and what the most overkill, where either is more than `BREAKS`; row 0 is without."""
    said = []
    for rate, moves, sign in (("recall", "falls", -1), ("overkill_rate", "rises", 1)):
        known = [row for row in rows if row[rate] is not None]
        worst = max(known, key=lambda row: sign * row[rate], default=None)
        if worst and sign * (worst[rate] - known[0][rate]) > BREAKS:
            under = f"{percent(known[0][rate])} to {percent(worst[rate])} ({worst['corruption']} {worst['setting']})"
            said += [f"{METRICS[rate].name} {moves} from {under}"]
    return [f"When the camera is worse, {' and '.join(said)}, of {images} images that were tried."] * bool(said)


def _collapse(numbers: dict[str, Any], class_names: list[str]) -> list[str]:
    """That nearly all images are called alike, and of the others nearly all wrong."""
    matrix = np.array(numbers["confusion_matrix"])
    n, into = matrix.sum(), int(matrix.sum(axis=0).argmax())
    called, alike = matrix[:, into].sum(), matrix[into].sum()
    wrong = n - alike - (matrix.trace() - matrix[into, into])
    if called < NEARLY_ALL * n or n - alike < LEAST or wrong < NEARLY_ALL * (n - alike):
        return []
    said = (
        f"Collapse onto one class: {called} of {plural(n, 'image')} are called “{class_names[into]}”, and {wrong} of "
        f"the {n - alike} others are wrong. To call every image so has an accuracy of {percent(alike / n)}."
    )
    if (interval := numbers["intervals"].get("auroc")) and interval[0] > 0.5:
        said += " The scores rank better than chance, and decision=f1 takes a threshold that uses them."
    return [said]


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
    if assumed and policy == "balanced":
        assumed += ", so that equal weight to both kinds rejects from about that share on"
    return [
        f"{rule} (policy {policy}{assumed}). On the images that it was chosen on this lets "
        f"{evidence['escapes']} of {plural(evidence['defective'], 'defective image')} through and rejects "
        f"{evidence['false_rejects']} of {plural(evidence['sound'], 'sound image')}.",
        *(_promise(promise) for promise in decision["promises"] if promise["kept"]),
    ]


def not_promised(decision: dict[str, Any] | None) -> list[str]:
    """What a decision was to promise and cannot, in sentences."""
    return [_promise(promise) for promise in (decision or {}).get("promises", []) if not promise["kept"]]


def _promise(promise: dict[str, Any]) -> str:
    rate, kind = METRICS[promise["rate"]].name, "defective" if promise["rate"] == "escape_rate" else "sound"
    images = f"{promise['independent']} {'groups of ' if promise['grouped'] else ''}{kind} images"
    bound, target, confidence = (percent(promise[key]) for key in ("bound", "target", "confidence"))
    if promise["kept"]:
        least = f"is at most {target} (one-sided Clopper-Pearson bound {bound} from {images})"
        return f"Promise: with {confidence} confidence the {rate} on images like these {least}."
    return (
        f"No promise: an {rate} of at most {target} at {confidence} confidence takes {promise['needed']} independent "
        f"{kind} images, not one of them misjudged. There are {images}, which prove at most {bound}, one-sided."
    )


def unlike_words(window: dict[str, Any] | None) -> str:
    """A `defectcls.evaluation.drift.Window` in a sentence; None of a model that says nothing of that."""
    if window is None:
        return "Whether photos look like those that it was measured on this model does not tell."
    low, high, chance = (percent(window[key]) for key in ("low", "high", "chance"))
    mostly = f" (most often {window['cause']})" if window["cause"] else ""
    said = f"{window['beyond']:,} of {plural(window['photos'], 'photo')} ({low} to {high}) are more unlike"
    said += f" what it knows than 99 % of those it was measured on{mostly}"
    if not window["since"]:
        return f"{said}; chance alone brings so many in {chance} of cases." if window["beyond"] else f"{said}."
    return f"From {window['since']} on photos do not look like those that the promise was made for: {said}."


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
