"""What the numbers of a run mean, in plain words."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from defectcls.evaluation.comparison import compare_parts
from defectcls.evaluation.evaluate import CHANCE, ranks
from defectcls.evaluation.metrics import defect_counts, defect_numbers
from defectcls.tables import DEFECTIVE

SMALL = 50  # fewer images than this on either side: one image more or less moves the rate by over 2 points
USING_SCORES = "decision=f1 takes a threshold that uses them"
FEW = 20  # validation images of either kind
FRAIL = 0.1  # of recall or overkill lost under a light disturbance
SHORT = {"auroc": "AUROC", "recall": "recall", "overkill_rate": "overkill"}
SPLITS = {"baseline": "before training", "train": "train", "val": "validation", "test": "test"}
NAMES = {  # how the numbers are called and in which order they stand, two classes and many alike
    "recall": "recall (share of defects caught)",
    "escape_rate": "escape rate (defects let through)",
    "overkill_rate": "overkill rate (sound images rejected)",
    "precision": "precision (rejected images that are defective)",
    "f1": "F1 of defective",
    "accuracy": "accuracy (right class)",
    "recall_macro": "recall, mean over classes",
    "precision_macro": "precision, mean over classes",
    "f1_macro": "F1, mean over classes",
    "auroc": "AUROC",
    "auroc_pooled": "AUROC, folds pooled",
    "average_precision": "average precision",
    "average_precision_pooled": "average precision, folds pooled",
    "review_rate": "to review",
    "loss": "loss (nats)",
}


def judged_split(metrics: dict[str, Any]) -> str:
    """The split that the verdict is on: test, or else validation, or else train."""
    return next(split for split in ("test", "val", "train") if split in metrics)


def verdict(metrics: dict[str, Any]) -> str:
    """What the model did on the judged split, in plain words."""
    split, judged = judged_split(metrics), metrics[judged_split(metrics)]
    sentences = []
    if any(metrics["defective_classes"]) and not all(metrics["defective_classes"]):
        numbers = defect_numbers(judged)
        intervals = numbers["intervals"]
        passed, rejected, missed, caught = defect_counts(judged["confusion_matrix"], metrics["defective_classes"])
        if defects := caught + missed:
            escape = percent(numbers["escape_rate"]) + _interval(intervals.get("escape_rate"))
            sentences += [
                f"Of {_count(defects, 'defective image')} in the {SPLITS[split]} set {caught} {_were(caught)} caught: "
                f"recall {percent(numbers['recall'])}, escape rate {escape}."
            ]
        if sound := passed + rejected:
            count = round(numbers["overkill_rate"] * sound)  # fewer than flagged, where a person looks at some
            overkill = percent(numbers["overkill_rate"]) + _interval(intervals.get("overkill_rate"))
            sentences += [f"Of {_count(sound, 'sound image')} {count} {_were(count)} rejected: overkill {overkill}."]
        if "review_rate" in numbers:
            sentences += [f"A person has to look at {percent(numbers['review_rate'])} of the images."]
    if len(metrics["class_names"]) > 2 or not sentences:
        right = sum(row[index] for index, row in enumerate(judged["confusion_matrix"]))
        share = percent(judged["accuracy"]) + _interval(judged.get("intervals", {}).get("accuracy"))
        sentences += [
            f"Of all {_count(judged['n'], 'image')} {right} {_were(right)} given the right class: accuracy {share}."
        ]
    return " ".join(sentences)


def decision_words(decision: dict[str, Any] | None, trained: bool = True) -> list[str]:
    """How the model decides and what it can promise, in sentences.

    Args:
        decision: None where predictions are taken as they are.
        trained: the validation images made the model, too.
    """
    if decision is None:
        return ["The predictions are taken as they are; where a table has none, the most probable class counts."]
    policy = decision["policy"]
    if decision["accept_below"] is None:
        alike = ", were all classes equally common," if decision["prior"] else ""
        words = [f"An image is rejected when its most probable class{alike} is a defective one (policy {policy})."]
        if policy == "balanced" and not decision["prior"]:
            words += ["Validation images of one kind do not tell how errors of both weigh."]
    else:
        evidence = decision["evidence"]
        low, high = number(decision["accept_below"], 4), number(decision["reject_from"], 4)
        rule = f"An image is rejected from a score of {high} on"
        if low != high:
            rule = f"An image is accepted below a score of {low}, rejected from {high} on, and goes to a person between"
        share = decision["prevalence"]
        if policy == "balanced" and share is not None and decision["reject_from"] < share * (1 - 1e-9):
            rule += f": at {number(share, 4)} both error rates would weigh alike, and the network is more cautious"
        elif policy == "balanced":
            rule += ": at this threshold both error rates weigh alike"
        scaled = "" if share is None else f"; scores assume that {percent(share)} of the parts are defective"
        if not all(promise["kept"] for promise in decision["promises"]):
            scaled += "; the rate cannot be promised"
            if evidence["defective"] and evidence["sound"]:
                scaled += ", this is the most cautious threshold that costs nothing on validation"
        words = [
            f"{rule} (policy {policy}{scaled}). On the validation set this lets {evidence['escapes']} of "
            f"{_count(evidence['defective'], 'defective image')} through and rejects {evidence['false_rejects']} of "
            f"{_count(evidence['sound'], 'sound image')}."
        ]
    words += [_promise(promise) for promise in decision["promises"] if promise["kept"]]
    if policy.startswith("review") and decision["accept_below"] == decision["reject_from"]:
        words += ["One threshold keeps both rates on the validation set: nothing goes to a person."]
    if trained and any(promise["kept"] for promise in decision["promises"]):
        words += ["That holds for validation images of no other use; these chose the weights too. Test images decide."]
    return words


def not_promised(decision: dict[str, Any] | None) -> list[str]:
    """What a decision was to promise and cannot, in sentences."""
    return [_promise(promise) for promise in (decision or {}).get("promises", []) if not promise["kept"]]


def _promise(promise: dict[str, Any]) -> str:
    rate, kind = ("escape rate", "defective") if promise["rate"] == "escape_rate" else ("overkill rate", "sound")
    images = f"{promise['independent']} {'groups of ' if promise['grouped'] else ''}{kind} validation images"
    bound, target, confidence = (percent(promise[key]) for key in ("bound", "target", "confidence"))
    if promise["kept"]:
        method = "Hoeffding-Bentkus bound, averaged over groups" if promise["grouped"] else "Clopper-Pearson bound"
        return (
            f"Promise: with {confidence} confidence the {rate} on images like these is at most {target} "
            f"({method} {bound} from {images})."
        )
    return (
        f"No promise: an {rate} of at most {target} at {confidence} confidence takes {promise['needed']} independent "
        f"{kind} validation images, not one of them misjudged. There are {images}, which prove an {rate} of at most "
        f"{bound}."
    )


def caveats(metrics: dict[str, Any]) -> list[str]:
    """What a reader must know before trusting the verdict, in plain words, the gravest first."""
    split, judged = judged_split(metrics), metrics[judged_split(metrics)]
    names, defective_classes, matrix = metrics["class_names"], metrics["defective_classes"], judged["confusion_matrix"]
    passed, rejected, missed, caught = defect_counts(matrix, defective_classes)
    found = seen_words(metrics.get("seen")) + _another_dataset(metrics, judged) + _called_alike(metrics, judged)

    if judged["loss"] is None and judged["n"]:
        found += ["Some probabilities are not numbers: training has diverged. Lower the learning rate."]
    baseline, numbers = defect_numbers(metrics.get("baseline", {})), defect_numbers(judged)
    for key in ("auroc", "f1_macro"):
        before, after = baseline.get(key), numbers[key]
        if before is not None and after is not None and after <= before < 1:
            label = NAMES[key]
            found += [
                f"No improvement over the network before training: {label} {number(after)}, before {number(before)}."
            ]
            break
    ranked = defect_numbers(metrics["val"])["auroc"] if "val" in metrics else None
    if ranked is not None and ranked <= CHANCE:
        found += [f"On validation the scores rank no better than chance (AUROC {number(ranked)}): no threshold helps."]
    evidence = (metrics.get("decision") or {}).get("evidence")
    if evidence and not metrics["decision"]["promises"] and min(evidence["defective"], evidence["sound"]) < FEW:
        rests = (
            f"{_count(evidence['defective'], 'defective image')} and {evidence['sound']} sound of the validation set"
        )
        found += [f"The threshold rests on {rests}: others would have moved it."]
    if split != "test":
        found += [
            f"No test set: the verdict is on {SPLITS[split]} images, which helped to make the model. Expect worse."
        ]
    if any(defective_classes) and not all(defective_classes):
        for kind, count, rate in (("defective", missed + caught, "escape"), ("sound", passed + rejected, "overkill")):
            if not count:
                unknown = "how many defects get through" if kind == "defective" else "how many sound parts are rejected"
                found += [f"The {SPLITS[split]} set has no {kind} image: {unknown} is not known, nor the AUROC."]
            elif count < SMALL:
                few = _count(count, f"{kind} image")
                found += [
                    f"The {SPLITS[split]} set is small: with {few}, a single one moves the {rate} rate by "
                    f"{number(100 / count, 1)} percentage points."
                ]
    rows, columns = [sum(row) for row in matrix], [sum(column) for column in zip(*matrix, strict=True)]
    unused = [f"“{name}” ({of})" for name, of, to in zip(names, rows, columns, strict=True) if of and not to]
    if unused and len(names) > 2:
        found += [f"No image is called {', '.join(unused)}; in brackets how many are."]
    found += _never_shown(metrics, judged)
    unseen = [name for name, row in zip(names, matrix, strict=True) if not any(row)]
    if unseen and len(names) > 2:
        found += [f"The {SPLITS[split]} set has no image of {', '.join(f'“{name}”' for name in unseen)}."]
    found += _broken_promises(metrics, judged)
    found += _frailties(metrics.get("robustness", []), metrics.get("robustness_images", 0))
    if unreadable := metrics.get("unreadable"):
        found += [
            f"{_count(len(unreadable), 'image')} could not be read and {_were(len(unreadable))} left out; see the end."
        ]
    for stage in metrics.get("stages", []):
        if stage["rolled_back"]:
            found += [f"Stage “{stage['name']}” did not beat the stages before it on validation and was rolled back."]
    return found


def seen_words(seen: dict[str, Any] | None) -> list[str]:
    """How many of the photos the model has learned from or was chosen on, and whether they count, in a sentence."""
    if not seen or not seen["n"]:
        return []
    near = f" or, {seen['near']} of them, a near copy" if seen["near"] else ""
    kept = "these are part of the numbers: new photos will be judged worse"
    return [
        f"Seen before: {seen['n']} of {_count(seen['of'], 'photo')} {_were(seen['n'])} learned from or chosen on, the "
        f"very file{near}; {'these are left out, seen=keep measures them too' if seen['left_out'] else kept}."
    ]


def _another_dataset(metrics: dict[str, Any], judged: dict[str, Any]) -> list[str]:
    """That the images are of another dataset than the model was trained on, and what it loses there."""
    if not (elsewhere := metrics.get("elsewhere")):
        return []
    found = compare_parts(elsewhere["test"], judged)
    shown = [(one, number if one.name == "auroc" else percent) for one in found if one.here is not None]
    here = ", ".join(f"{SHORT[one.name]} {show(one.here)}" for one, show in shown)
    own = "; its numbers on its own test images are not known"
    if elsewhere["test"]:
        own = f"; on its own test images {', '.join(show(one.own) for one, show in shown)}"
    sizes = [sum(row) for row in judged["confusion_matrix"]]
    most, useless = max(sizes), ""
    if judged["accuracy"] * sum(sizes) < most < sum(sizes):
        useless = (
            f" Calling every image “{metrics['class_names'][sizes.index(most)]}” would be right more often "
            f"({percent(most / sum(sizes))}) than this model ({percent(judged['accuracy'])})."
        )
    return [
        f"Another dataset: the model was trained on {elsewhere['trained_on']} and is judged on "
        f"{elsewhere['judged_on']}. Here {here}{own}.{useless}"
    ]


def _never_shown(metrics: dict[str, Any], judged: dict[str, Any]) -> list[str]:
    """What became of the defect type that training was not shown."""
    split = metrics.get("config", {}).get("dataset", {}).get("split", {})
    held_out = split.get("hold_out_defect_type")
    rows = judged.get("breakdowns", {}).get("defect_type", [])
    return [
        f"Training was not shown “{held_out}”: of {_count(row['n'], 'such image')} {round(row['recall'] * row['n'])} "
        f"{_were(round(row['recall'] * row['n']))} caught, recall {percent(row['recall'])}"
        f"{_interval([row['recall_low'], row['recall_high']])}; the rates above are of all types together."
        for row in rows
        if row["defect_type"] == held_out
    ]


def _called_alike(metrics: dict[str, Any], judged: dict[str, Any]) -> list[str]:
    """That all images, or nearly all, are called alike, and what is to blame."""
    names, matrix = metrics["class_names"], judged["confusion_matrix"]
    predicted = [name for index, name in enumerate(names) if any(row[index] for row in matrix)]
    numbers = defect_numbers(judged)
    interval = numbers["intervals"].get("auroc")
    within = f", 95 % interval {span(interval, plain=True)}" if interval else ""
    auroc = f"AUROC {number(numbers['auroc'])}{within}"
    if found := judged.get("collapse"):
        into, n = names.index(found["into"]), sum(map(sum, matrix))
        of_class = sum(matrix[into])
        right = sum(row[index] for index, row in enumerate(matrix) if index != into)
        others = _count(n - of_class, "image") + " of other classes"
        told = f"{right or 'none'} of {others} {_were(right or 1)} given the right one"
        defective = metrics["defective_classes"]
        if sum(defective) == len(defective) - 1 and not defective[into]:
            _, _, missed, caught = defect_counts(matrix, defective)
            told = f"{caught or 'none'} of {_count(missed + caught, 'defective image')} {_were(caught or 1)} caught"
        elif names[into] == DEFECTIVE:
            told = f"{right or 'none'} of {_count(n - of_class, 'sound image')} {_were(right or 1)} let through"
        trained = metrics.get("train", judged)["confusion_matrix"]
        name = "Majority-class collapse" if sum(trained[into]) == max(map(sum, trained)) else "Collapse onto one class"
        if ranks(judged):
            threshold = "the threshold is for other images" if "elsewhere" in metrics else USING_SCORES
            blame = f"The scores rank better than chance ({auroc}): {threshold}."
        else:
            blame = f"Nor do the scores surely rank better than chance ({auroc})."
            if "baseline" in metrics:
                blame += " Train from pretrained weights, for longer or at a higher learning rate."
        called = "all" if found["called"] == found["of"] else f"{found['called']} of"
        return [
            f"{name}: {called} {_count(found['of'], 'image')} are called “{found['into']}”, and {told}. The accuracy "
            f"of {percent(judged['accuracy'])} tells nothing: calling every image “{found['into']}” gives "
            f"{percent(of_class / n)}. {blame}"
        ]
    if len(predicted) > 1 or sum(any(row) for row in matrix) < 2:
        return []
    if ranks(judged):
        blame = f", although the scores tell them apart ({auroc}): {USING_SCORES}."
    else:
        others = sum(map(sum, matrix)) - sum(matrix[names.index(predicted[0])])
        few = f"{_count(others, 'image')} of other classes {'is' if others == 1 else 'are'}"
        blame = f", and {few} too few to show whether the model knows better."
    return [f"Every image is called “{predicted[0]}”{blame}"]


def _broken_promises(metrics: dict[str, Any], judged: dict[str, Any]) -> list[str]:
    found = not_promised(metrics.get("decision"))
    for promise in (metrics.get("decision") or {}).get("promises", []):
        interval = defect_numbers(judged)["intervals"].get(promise["rate"])
        if promise["kept"] and interval and interval[0] > promise["target"]:
            rate = promise["rate"].replace("_", " ")
            found += [
                f"The promise of an {rate} of at most {percent(promise['target'])} does not hold on this set, where it "
                f"is {span(interval)}. These images differ from those of the validation set."
            ]
    return found


def _frailties(rows: list[dict[str, Any]], images: int) -> list[str]:
    """The disturbances that cost much already when they are light, on so many images of the test part."""
    found = []
    for row in rows:
        for rate, name, sign in (("recall", "recall", -1), ("overkill_rate", "overkill", 1)):
            before, after = rows[0][rate], row[rate]
            if row["strength"] == 1 and None not in (before, after) and sign * (after - before) > FRAIL:
                found += [
                    f"Frail: {row['corruption']} ({row['setting']}) brings {name} from {percent(before)} to "
                    f"{percent(after)}, on {_count(images, 'test image')}."
                ]
    return found


def percent(value: float | None) -> str:
    """`94.7 %`, with as many digits as it takes not to call 99.97 % all or 0.03 % none; `–` where undefined."""
    return "–" if value is None or pd.isna(value) else f"{number(100 * value, 1, 100)} %"


def number(value: float | None, digits: int = 3, limit: float = 1) -> str:
    """The number with `digits` decimals, more where it would round to 0 or to `limit` without being it."""
    if value is None or pd.isna(value):
        return "–"
    while digits < 9 and 1e-9 < value < limit - 1e-9 and float(f"{value:.{digits}f}") in (0, limit):
        digits += 1
    return f"{value:.{digits}f}"


def span(interval: Sequence[float | None] | None, plain: bool = False) -> str:
    """`83.1 to 98.5 %`, or with `plain` the numbers as they are; `–` where undefined."""
    if interval is None or any(end is None or pd.isna(end) for end in interval):
        return "–"
    low, high = (float(end or 0) for end in interval)
    return f"{low:.3f} to {high:.3f}" if plain else f"{100 * low:.1f} to {100 * high:.1f} %"


def _interval(interval: Sequence[float | None] | None) -> str:
    return "" if interval is None else f" (95 % interval {span(interval)})"


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _were(count: int) -> str:
    return "was" if count == 1 else "were"
