"""What a reader must know before trusting the verdict on a run, in plain words."""

from typing import Any

from defectcls.evaluation.evaluate import CHANCE, ranks
from defectcls.evaluation.metrics import METRICS, defect_counts, defect_numbers
from defectcls.pages import wording
from defectcls.pages.wording import SPLITS, percent, plural, shown, span, were

Metrics = dict[str, Any]  # the content of metrics.json, or of one of its parts

SMALL = 50  # fewer images than this on either side: one image more or less moves the rate by over 2 points
USING_SCORES = "decision=f1 takes a threshold that uses them"
FEW = 20  # validation images of either kind
ON_OTHER_IMAGES = ("auroc", "recall", "overkill_rate")  # what is said of a dataset that the model was not trained on


def caveats(metrics: Metrics) -> list[str]:
    """In sentences, the gravest first."""
    judged = metrics[wording.judged_split(metrics)]
    return [
        *seen_words(metrics.get("seen")),
        *_another_dataset(metrics, judged),
        *_called_alike(metrics, judged),
        *_not_learnt(metrics, judged),
        *_few_images(metrics, judged),
        *wording.not_promised(metrics.get("decision")),
        *_broken_promises(metrics, judged),
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


def _another_dataset(metrics: Metrics, judged: Metrics) -> list[str]:
    """That the images are of another dataset than the model was trained on, and what it loses there."""
    if not (elsewhere := metrics.get("elsewhere")):
        return []
    numbers, before = defect_numbers(judged), defect_numbers(elsewhere["test"])
    known = [name for name in ON_OTHER_IMAGES if numbers.get(name) is not None]
    here = ", ".join(f"{METRICS[name].name} {shown(name, numbers[name])}" for name in known)
    own = "its numbers on its own test images, so decided, are not known"
    if elsewhere["test"]:
        own = f"on its own test images {', '.join(shown(name, before.get(name)) for name in known)}"
    return [
        f"Another dataset: the model was trained on {elsewhere['trained_on']} and is judged on "
        f"{elsewhere['judged_on']}. Here {here}; {own}."
    ]


def _called_alike(metrics: Metrics, judged: Metrics) -> list[str]:
    """That nearly all images are called alike, and what is to blame."""
    matrix, collapse = judged["confusion_matrix"], judged.get("collapse")
    if not collapse:
        return []
    name, sizes = collapse["into"], [sum(row) for row in matrix]
    into = metrics["class_names"].index(name)
    others, auroc = sum(sizes) - sizes[into], f"AUROC {wording.with_interval(defect_numbers(judged), 'auroc')}"
    right = sum(row[index] for index, row in enumerate(matrix)) - matrix[into][into]
    trained = [sum(row) for row in metrics.get("train", judged)["confusion_matrix"]]
    kind = "Majority-class collapse" if trained[into] == max(trained) else "Collapse onto one class"
    blame = f"Nor do the scores surely rank better than chance: {auroc}."
    if ranks(judged):
        remedy = "the threshold is for other images" if "elsewhere" in metrics else USING_SCORES
        blame = f"The scores rank better than chance, {auroc}: {remedy}."
    elif "baseline" in metrics:
        blame += " Train from pretrained weights, for longer or at a higher learning rate."
    return [
        f"{kind}: {collapse['called']} of {plural(collapse['of'], 'image')} are called “{name}”, and of the {others} "
        f"others {right or 'none'} {were(right or 1)} given the right class. The accuracy of "
        f"{percent(judged['accuracy'])} tells nothing: calling every image “{name}” gives "
        f"{percent(sizes[into] / sum(sizes))}. {blame}"
    ]


def _not_learnt(metrics: Metrics, judged: Metrics) -> list[str]:
    """That training diverged or changed nothing, and that the scores do not rank."""
    found = []
    if judged["loss"] is None and judged["n"]:
        found += ["Some probabilities are not numbers: training has diverged. Lower the learning rate."]
    before, after, ranked = (
        defect_numbers(part).get("auroc") for part in (metrics.get("baseline", {}), judged, metrics.get("val", {}))
    )
    if before is not None and after is not None and after <= before < 1:
        better = f"AUROC {shown('auroc', after)}, before {shown('auroc', before)}"
        found += [f"No improvement over the network before training: {better}."]
    if ranked is not None and ranked <= CHANCE:
        reached = f"AUROC {shown('auroc', ranked)}"
        found += [f"On validation the scores rank no better than chance ({reached}): no threshold helps."]
    return found


def _few_images(metrics: Metrics, judged: Metrics) -> list[str]:
    """That the threshold or the verdict rests on few images or on those that made the model."""
    found, split, sides = [], SPLITS[wording.judged_split(metrics)], metrics["defective_classes"]
    decision = metrics.get("decision") or {}
    evidence = decision.get("evidence") if not decision.get("promises") else None
    if evidence and min(evidence["defective"], evidence["sound"]) < FEW:
        rests = f"{plural(evidence['defective'], 'defective image')} and {evidence['sound']} sound"
        found += [f"The threshold rests on {rests} of the validation set: others would have moved it."]
    if split != "test":
        found += [f"No test set: the verdict is on {split} images, which helped to make the model. Expect worse."]
    passed, rejected, missed, caught = defect_counts(judged["confusion_matrix"], sides)
    for kind, count, rate in (("defective", missed + caught, "escape"), ("sound", passed + rejected, "overkill")):
        if not any(sides) or all(sides):
            continue
        if not count:
            found += [f"The {split} set has no {kind} image: the {rate} rate is not known, nor the AUROC."]
        elif count < SMALL:
            found += [
                f"The {split} set is small: with {plural(count, f'{kind} image')}, a single one moves the {rate} rate "
                f"by {wording.number(100 / count, 1)} percentage points."
            ]
    return found


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


def _left_out(metrics: Metrics) -> list[str]:
    found = []
    if unreadable := len(metrics.get("unreadable", [])):
        found += [f"{plural(unreadable, 'image')} could not be read and {were(unreadable)} left out; see the end."]
    for stage in metrics.get("stages", []):
        if stage["rolled_back"]:
            found += [f"Stage “{stage['name']}” did not beat the stages before it on validation and was rolled back."]
    return found
