"""The report: one self-contained HTML page that a quality engineer can read, print and hand on."""

import json
from typing import Any

import pandas as pd

from defectcls.evaluation.metrics import breakdown, defect_counts
from defectcls.evaluation.page import render_page

SMALL = 50  # fewer images than this on either side: one image more or less moves the rate by over 2 points
SPLITS = {"baseline": "untrained baseline", "train": "train", "val": "validation", "test": "test"}
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
    "average_precision": "average precision",
    "loss": "loss (nats)",
}
PLAIN = ("auroc", "average_precision", "loss")  # shown as they are; all others in percent


def render_report(metrics: dict[str, Any], predictions: pd.DataFrame, figures: dict[str, bytes]) -> str:
    """The page as text.

    Args:
        metrics: the content of metrics.json. Of `baseline`, `train`, `val` and `test` one of the last three is enough,
            and of what describes the run `class_names` and `defective_classes`: `evaluate` may know no more.
        predictions: the predictions table; where it has a `split`, the breakdowns take the rows that the verdict is on.
        figures: PNG files by name: `confusion_matrix`, `curves`, `predictions`; each may be absent.
    """
    split = judged_split(metrics)
    class_names, defective_classes = metrics["class_names"], metrics["defective_classes"]
    if "split" in predictions:
        predictions = predictions[predictions["split"] == split]
    breakdowns = {
        column: [
            (name or "not stated", n, defective, percent(recall), percent(overkill))
            for name, n, defective, recall, overkill in breakdown(
                predictions, column, class_names, defective_classes
            ).itertuples(index=False)
        ]
        for column in ("category", "defect_type")
        if column in predictions and predictions[column].nunique() > 1
    }
    rows = _rows(metrics)
    return render_page(
        "report",
        figures,
        run=metrics,
        split=SPLITS[split],
        verdict=verdict(metrics),
        caveats=caveats(metrics),
        columns=[label for key, label in SPLITS.items() if key in metrics],
        rows=[(name, *values) for name, values in rows],
        undefined=any("–" in values for _, values in rows),
        defective_names=[name for name, defective in zip(class_names, defective_classes, strict=True) if defective],
        per_class=_per_class(metrics[split].get("per_class", {})),
        breakdowns=breakdowns,
        stages=_stages(metrics.get("stages", [])),
        phases=_phases(metrics),
        facts=_facts(metrics),
        unreadable=[(one["path"], one["reason"]) for one in metrics.get("unreadable", [])],
        config=json.dumps(metrics.get("config", {}), indent=2, ensure_ascii=False, default=str),
    )


def judged_split(metrics: dict[str, Any]) -> str:
    """The split that the verdict is on: test, or else validation, or else train."""
    return next(split for split in ("test", "val", "train") if split in metrics)


def verdict(metrics: dict[str, Any]) -> str:
    """What the model did on the judged split, in plain words."""
    split, judged = judged_split(metrics), metrics[judged_split(metrics)]
    place = f"the {SPLITS[split]} set"
    sentences = []
    if any(metrics["defective_classes"]) and not all(metrics["defective_classes"]):
        passed, rejected, missed, caught = defect_counts(judged["confusion_matrix"], metrics["defective_classes"])
        if defects := caught + missed:
            recall, escape = percent(caught / defects), percent(missed / defects)
            sentences += [
                f"Of {_count(defects, 'defective image')} in {place} {caught} {_were(caught)} caught: "
                f"recall {recall} (escape rate {escape})."
            ]
        if sound := passed + rejected:
            overkill = percent(rejected / sound)
            sentences += [
                f"Of {_count(sound, 'sound image')} {rejected} {_were(rejected)} rejected: overkill {overkill}."
            ]
    if len(metrics["class_names"]) > 2 or not sentences:
        right = sum(row[index] for index, row in enumerate(judged["confusion_matrix"]))
        share = percent(judged["accuracy"])
        sentences += [
            f"Of all {_count(judged['n'], 'image')} {right} {_were(right)} given the right class: accuracy {share}."
        ]
    return " ".join(sentences)


def caveats(metrics: dict[str, Any]) -> list[str]:
    """What a reader must know before trusting the verdict, in plain words, the gravest first."""
    split, judged = judged_split(metrics), metrics[judged_split(metrics)]
    names, defective_classes, matrix = metrics["class_names"], metrics["defective_classes"], judged["confusion_matrix"]
    passed, rejected, missed, caught = defect_counts(matrix, defective_classes)
    found = []

    predicted = [name for index, name in enumerate(names) if any(row[index] for row in matrix)]
    if len(predicted) == 1 and sum(any(row) for row in matrix) > 1:
        found += [f"Every image is called “{predicted[0]}”: the model tells nothing apart, whatever its accuracy."]
    if judged["loss"] is None and judged["n"]:
        found += ["Some probabilities are not numbers: training has diverged. Lower the learning rate."]
    baseline = metrics.get("baseline", {})
    for key in ("auroc", "f1_macro"):
        before, after = baseline.get(key), judged[key]
        if before is not None and after is not None and after <= before < 1:
            label = NAMES[key]
            found += [
                f"No improvement over the untrained baseline: {label} {number(after)}, untrained {number(before)}."
            ]
            break
    if split != "test":
        found += [
            f"No test set: the verdict is on {SPLITS[split]} images, which helped to make the model. Expect worse."
        ]
    if any(defective_classes) and not all(defective_classes):
        for kind, count, rate in (("defective", missed + caught, "escape"), ("sound", passed + rejected, "overkill")):
            if not count:
                found += [f"The {SPLITS[split]} set has no {kind} image: {rate} rate and AUROC cannot be stated."]
            elif count < SMALL:
                few = _count(count, f"{kind} image")
                found += [
                    f"The {SPLITS[split]} set is small: with {few}, a single one moves the {rate} rate by "
                    f"{number(100 / count, 1)} percentage points."
                ]
    unseen = [name for name, row in zip(names, matrix, strict=True) if not any(row)]
    if unseen and len(names) > 2:
        found += [f"The {SPLITS[split]} set has no image of {', '.join(f'“{name}”' for name in unseen)}."]
    if unreadable := metrics.get("unreadable"):
        found += [
            f"{_count(len(unreadable), 'image')} could not be read and {_were(len(unreadable))} left out; see the end."
        ]
    for stage in metrics.get("stages", []):
        if stage["rolled_back"]:
            found += [f"Stage “{stage['name']}” did not beat the stages before it on validation and was rolled back."]
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


def _rows(metrics: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """(name, one text a split) of every number; of many classes first those of defective against sound."""
    splits = [metrics[split] for split in SPLITS if split in metrics]
    several = any("per_class" in split for split in splits)
    rows = [("images", [str(split["n"]) for split in splits])]
    for sides in (True, False) if several else (False,):
        tables = [split.get("defect", {}) if sides else split for split in splits]
        for key, name in NAMES.items():
            if several and key in ("auroc", "average_precision"):
                name += ", defective against sound" if sides else ", mean over classes"
            if any(key in table for table in tables):
                show = number if key in PLAIN else percent
                rows += [(name, [show(table.get(key)) for table in tables])]
    return rows


def _per_class(per_class: dict[str, dict]) -> list[tuple]:
    worst_first = sorted(per_class.items(), key=lambda one: (one[1]["recall"] is None, one[1]["recall"]))
    return [
        (name, row["n"], percent(row["recall"]), percent(row["precision"]), percent(row["f1"]))
        for name, row in worst_first
    ]


def _stages(stages: list[dict]) -> list[tuple]:
    return [
        (
            stage["name"],
            stage["epochs"],
            ", ".join(f"{metric} {number(value)}" for metric, value in stage["best"].items()),
            "rolled back" if stage["rolled_back"] else "kept",
        )
        for stage in stages
    ]


def _phases(metrics: dict[str, Any]) -> list[tuple]:
    seconds, speed = metrics.get("seconds", {}), metrics.get("images_per_second", {})
    return [(phase, number(seconds.get(phase), 1), number(speed.get(phase), 1)) for phase in {**seconds, **speed}]


def _facts(metrics: dict[str, Any]) -> dict[str, Any]:
    facts = {name: metrics.get(name) for name in ("seed", "commit", "hardware")}
    facts["versions"] = ", ".join(f"{name} {version}" for name, version in metrics.get("versions", {}).items())
    return {name: value for name, value in facts.items() if value not in (None, "", {})}


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _were(count: int) -> str:
    return "was" if count == 1 else "were"
