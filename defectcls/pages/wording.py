"""What the numbers of a run mean, in plain words; what to know before trusting them is in caveats.py."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from defectcls.evaluation.metrics import METRICS, defect_counts, defect_numbers

SPLITS = {"train": "train", "val": "validation", "test": "test"}


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
        passed, rejected, missed, caught = defect_counts(matrix, sides)
        if defects := caught + missed:
            of = f"{caught} of {plural(defects, 'defective image')} in the {SPLITS[split]} set"
            said += [f"Caught: {of}, recall {percent(numbers['recall'])}, escape rate {rate('escape_rate')}."]
        if sound := passed + rejected:
            count = round(numbers["overkill_rate"] * sound)  # fewer than flagged, where a person looks at some
            said += [f"Rejected: {count} of {plural(sound, 'sound image')}, overkill {rate('overkill_rate')}."]
        if "review_rate" in numbers:
            said += [f"A person has to look at {percent(numbers['review_rate'])} of the images."]
    if len(matrix) > 2 or not said:
        right = sum(row[index] for index, row in enumerate(matrix))
        said += [f"Right class: {right} of {plural(numbers['n'], 'image')}, accuracy {rate('accuracy')}."]
    return said


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
