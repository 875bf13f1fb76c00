"""What a reader must know before trusting the verdict on a run, in plain words."""

from typing import Any

from defectcls.evaluation.evaluate import CHANCE, ranks
from defectcls.evaluation.metrics import METRICS, defect_counts, defect_numbers
from defectcls.pages.wording import (
    SPLITS,
    judged_split,
    not_promised,
    number,
    percent,
    plural,
    shown,
    span,
    were,
    with_interval,
)

SMALL = 50  # fewer images than this on either side: one image more or less moves the rate by over 2 points
USING_SCORES = "decision=f1 takes a threshold that uses them"
FEW = 20  # validation images of either kind
ON_OTHER_IMAGES = ("auroc", "recall", "overkill_rate")  # what is said of a dataset that the model was not trained on
FRAIL = 0.1  # of recall or overkill lost under a light disturbance


def caveats(metrics: dict[str, Any]) -> list[str]:
    """In sentences, the gravest first."""
    judged = metrics[judged_split(metrics)]
    return [
        *seen_words(metrics.get("seen")),
        *_another_dataset(metrics, judged),
        *_called_alike(metrics, judged),
        *_not_learnt(metrics, judged),
        *_few_images(metrics, judged),
        *_classes(metrics, judged),
        *not_promised(metrics.get("decision")),
        *_broken_promises(metrics, judged),
        *_frailties(metrics.get("robustness", []), metrics.get("robustness_images", 0)),
        *_left_out(metrics),
    ]


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


def _another_dataset(metrics: dict[str, Any], judged: dict[str, Any]) -> list[str]:
    """That the images are of another dataset than the model was trained on, and what it loses there."""
    if not (elsewhere := metrics.get("elsewhere")):
        return []
    numbers, before = defect_numbers(judged), defect_numbers(elsewhere["test"])
    known = [name for name in ON_OTHER_IMAGES if numbers.get(name) is not None]
    here = ", ".join(f"{METRICS[name].name} {shown(name, numbers[name])}" for name in known)
    own = "its numbers on its own test images are not known"
    if elsewhere["test"]:
        own = f"on its own test images {', '.join(shown(name, before.get(name)) for name in known)}"
    sizes = [sum(row) for row in judged["confusion_matrix"]]
    most, useless = max(sizes), ""
    if judged["accuracy"] * sum(sizes) < most < sum(sizes):
        useless = (
            f" Calling every image “{metrics['class_names'][sizes.index(most)]}” would be right more often "
            f"({percent(most / sum(sizes))}) than this model ({percent(judged['accuracy'])})."
        )
    return [
        f"Another dataset: the model was trained on {elsewhere['trained_on']} and is judged on "
        f"{elsewhere['judged_on']}. Here {here}; {own}.{useless}"
    ]


def _called_alike(metrics: dict[str, Any], judged: dict[str, Any]) -> list[str]:
    """That all images, or nearly all, are called alike, and what is to blame."""
    matrix, collapse = judged["confusion_matrix"], judged.get("collapse")
    sizes, called = ([sum(one) for one in side] for side in (matrix, zip(*matrix, strict=True)))
    into = metrics["class_names"].index(collapse["into"]) if collapse else called.index(max(called))
    name, others = metrics["class_names"][into], sum(sizes) - sizes[into]
    numbers = defect_numbers(judged)
    interval = numbers["intervals"].get("auroc")
    auroc = f"AUROC {number(numbers['auroc'])}" + (f", 95 % interval {span('auroc', interval)}" if interval else "")
    if collapse:
        right = sum(row[index] for index, row in enumerate(matrix)) - matrix[into][into]
        trained = [sum(row) for row in metrics.get("train", judged)["confusion_matrix"]]
        kind = "Majority-class collapse" if trained[into] == max(trained) else "Collapse onto one class"
        blame = f"Nor do the scores surely rank better than chance ({auroc})."
        if ranks(judged):
            remedy = "the threshold is for other images" if "elsewhere" in metrics else USING_SCORES
            blame = f"The scores rank better than chance ({auroc}): {remedy}."
        elif "baseline" in metrics:
            blame += " Train from pretrained weights, for longer or at a higher learning rate."
        return [
            f"{kind}: {collapse['called']} of {plural(collapse['of'], 'image')} are called “{name}”, and of the "
            f"{others} others {right or 'none'} {were(right or 1)} given the right class. The accuracy of "
            f"{percent(judged['accuracy'])} tells nothing: calling every image “{name}” gives "
            f"{percent(sizes[into] / sum(sizes))}. {blame}"
        ]
    if called[into] < sum(sizes) or not 0 < others < sum(sizes):
        return []
    if ranks(judged):
        return [f"Every image is called “{name}”, although the scores tell them apart ({auroc}): {USING_SCORES}."]
    few = f"{plural(others, 'image')} of other classes {'is' if others == 1 else 'are'} too few to show"
    return [f"Every image is called “{name}”, and {few} whether the model knows better."]


def _not_learnt(metrics: dict[str, Any], judged: dict[str, Any]) -> list[str]:
    """That training diverged or changed nothing, and that the scores do not rank."""
    found = []
    if judged["loss"] is None and judged["n"]:
        found += ["Some probabilities are not numbers: training has diverged. Lower the learning rate."]
    baseline, numbers = defect_numbers(metrics.get("baseline", {})), defect_numbers(judged)
    for key in ("auroc", "f1_macro"):
        before, after = baseline.get(key), numbers[key]
        if before is not None and after is not None and after <= before < 1:
            better = f"{METRICS[key].name} {shown(key, after)}, before {shown(key, before)}"
            found += [f"No improvement over the network before training: {better}."]
            break
    ranked = defect_numbers(metrics["val"])["auroc"] if "val" in metrics else None
    if ranked is not None and ranked <= CHANCE:
        found += [f"On validation the scores rank no better than chance (AUROC {number(ranked)}): no threshold helps."]
    return found


def _few_images(metrics: dict[str, Any], judged: dict[str, Any]) -> list[str]:
    """That the threshold or the verdict rests on few images or on those that made the model."""
    found, split = [], SPLITS[judged_split(metrics)]
    decision = metrics.get("decision") or {}
    if (evidence := decision.get("evidence")) and not decision["promises"]:
        defective, sound = evidence["defective"], evidence["sound"]
        if min(defective, sound) < FEW:
            rests = f"{plural(defective, 'defective image')} and {sound} sound of the validation set"
            found += [f"The threshold rests on {rests}: others would have moved it."]
    if split != "test":
        found += [f"No test set: the verdict is on {split} images, which helped to make the model. Expect worse."]
    if all(metrics["defective_classes"]) or not any(metrics["defective_classes"]):
        return found
    passed, rejected, missed, caught = defect_counts(judged["confusion_matrix"], metrics["defective_classes"])
    unknown = {"defective": "how many defects get through", "sound": "how many sound parts are rejected"}
    for kind, count, rate in (("defective", missed + caught, "escape"), ("sound", passed + rejected, "overkill")):
        if not count:
            found += [f"The {split} set has no {kind} image: {unknown[kind]} is not known, nor the AUROC."]
        elif count < SMALL:
            found += [
                f"The {split} set is small: with {plural(count, f'{kind} image')}, a single one moves the {rate} rate "
                f"by {number(100 / count, 1)} percentage points."
            ]
    return found


def _classes(metrics: dict[str, Any], judged: dict[str, Any]) -> list[str]:
    """Of many classes those that are never called or not there, and what became of the type that was held out."""
    found, matrix = [], judged["confusion_matrix"]
    if len(matrix) > 2:
        sides = zip(metrics["class_names"], matrix, zip(*matrix, strict=True), strict=True)
        sizes = [(name, sum(row), sum(column)) for name, row, column in sides]
        if unused := [f"“{name}” ({size})" for name, size, called in sizes if size and not called]:
            found += [f"No image is called {', '.join(unused)}; in brackets how many are."]
        if unseen := [f"“{name}”" for name, size, _ in sizes if not size]:
            found += [f"The {SPLITS[judged_split(metrics)]} set has no image of {', '.join(unseen)}."]
    held_out = metrics.get("config", {}).get("dataset", {}).get("split", {}).get("hold_out_defect_type")
    for row in judged.get("breakdowns", {}).get("defect_type", []):
        if row["defect_type"] == held_out:
            caught = round(row["recall"] * row["n"])
            recall = {"recall": row["recall"], "intervals": {"recall": (row["recall_low"], row["recall_high"])}}
            found += [
                f"Training was not shown “{held_out}”: of {plural(row['n'], 'such image')} {caught} {were(caught)} "
                f"caught, recall {with_interval(recall, 'recall')}; the rates above are of all types together."
            ]
    return found


def _broken_promises(metrics: dict[str, Any], judged: dict[str, Any]) -> list[str]:
    found, intervals = [], defect_numbers(judged)["intervals"]
    for promise in (metrics.get("decision") or {}).get("promises", []):
        rate, interval = promise["rate"], intervals.get(promise["rate"])
        if promise["kept"] and interval and interval[0] > promise["target"]:
            found += [
                f"The promise of an {METRICS[rate].name} of at most {percent(promise['target'])} does not hold on this "
                f"set, where it is {span(rate, interval)}. These images differ from those of the validation set."
            ]
    return found


def _frailties(rows: list[dict[str, Any]], images: int) -> list[str]:
    """The disturbances that cost much already when they are light, on so many images of the test part."""
    return [
        f"Frail: {row['corruption']} ({row['setting']}) brings {METRICS[rate].name} from {percent(rows[0][rate])} to "
        f"{percent(row[rate])}, on {plural(images, 'test image')}."
        for row in rows
        for rate, sign in (("recall", -1), ("overkill_rate", 1))
        if row["strength"] == 1
        and None not in (rows[0][rate], row[rate])
        and sign * (row[rate] - rows[0][rate]) > FRAIL
    ]


def _left_out(metrics: dict[str, Any]) -> list[str]:
    found = []
    if unreadable := len(metrics.get("unreadable", [])):
        found += [f"{plural(unreadable, 'image')} could not be read and {were(unreadable)} left out; see the end."]
    for stage in metrics.get("stages", []):
        if stage["rolled_back"]:
            found += [f"Stage “{stage['name']}” did not beat the stages before it on validation and was rolled back."]
    return found
