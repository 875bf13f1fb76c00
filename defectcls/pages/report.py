"""The report: one self-contained HTML page that a quality engineer can read, print and hand on."""

import json
from typing import Any

import pandas as pd

from defectcls.evaluation.comparison import Change, compare_parts
from defectcls.evaluation.metrics import defect_numbers
from defectcls.pages.page import render_page
from defectcls.pages.wording import (
    NAMES,
    SHORT,
    SPLITS,
    caveats,
    decision_words,
    judged_split,
    number,
    percent,
    span,
    verdict,
)
from defectcls.tables import DEFECTIVE

RANKINGS = ("auroc", "auroc_pooled", "average_precision", "average_precision_pooled")
PLAIN = (*RANKINGS, "loss", "ece", "brier")  # shown as they are; all others in percent
CALIBRATION = {"ece": "expected calibration error", "brier": "Brier score", "loss": "loss (nats)"}
FOLD_COLUMNS = ("accuracy", "recall", "overkill_rate", "f1", "f1_macro", "auroc")
BREAKDOWNS = {
    "category": "category",
    "defect_type": "defect type",
    "mask_size": "size of the defect",
    "group": "group of images",
}


def render_report(metrics: dict[str, Any], figures: dict[str, bytes]) -> str:
    """The page as text.

    Args:
        metrics: the content of metrics.json. Of `baseline`, `train`, `val` and `test` one of the last three is enough,
            and of what describes the run `class_names` and `defective_classes`: `evaluate` may know no more.
        figures: PNG files by name: `confusion_matrix`, `curves`, `scores`, `reliability`, `errors`, `predictions`,
            `robustness`; each may be absent.
    """
    split = judged_split(metrics)
    judged = metrics[split]
    classes = zip(metrics["class_names"], metrics["defective_classes"], strict=True)
    rows = _rows(metrics)
    return render_page(
        "report",
        figures,
        run=metrics,
        split=SPLITS[split],
        verdict=verdict(metrics),
        caveats=caveats(metrics),
        decision=decision_words(metrics["decision"], "seconds" in metrics) if "decision" in metrics else [],
        columns=[SPLITS[split], "95 % interval", *(SPLITS[other] for other in _others(metrics))],
        rows=rows,
        undefined=any("–" in (value, *others) for _, value, _, *others in rows),
        elsewhere=metrics.get("elsewhere"),
        changes=_changes(metrics, judged),
        defective_names=[name for name, defective in classes if defective and name != DEFECTIVE],
        reviews="review_rate" in defect_numbers(judged),
        per_class=_per_class(judged.get("per_class", {})),
        breakdowns={
            BREAKDOWNS[column]: _breakdown(column, rows) for column, rows in judged.get("breakdowns", {}).items()
        },
        calibration=_calibration(judged),
        scores_for=(metrics.get("decision") or {}).get("prevalence"),
        fold_columns=["fold", *FOLD_COLUMNS],
        folds=_folds(metrics.get("folds", [])),
        handling=_handling(judged),
        localisation=metrics.get("localisation"),
        disturbances=_disturbances(metrics.get("robustness", [])),
        percent=percent,
        stages=_stages(metrics.get("stages", [])),
        phases=_phases(metrics),
        facts=_facts(metrics),
        unreadable=[(one["path"], one["reason"]) for one in metrics.get("unreadable", [])],
        config=json.dumps(metrics.get("config", {}), indent=2, ensure_ascii=False, default=str),
    )


def _others(metrics: dict[str, Any]) -> list[str]:
    """The splits beside the judged one, the nearest to it first."""
    return [split for split in reversed(SPLITS) if split in metrics and split != judged_split(metrics)]


def _rows(metrics: dict[str, Any]) -> list[tuple[str, ...]]:
    """(name, number, interval, the number in each other split); of many classes first defective against sound."""
    judged, others = metrics[judged_split(metrics)], [metrics[split] for split in _others(metrics)]
    intervals = judged.get("intervals", {})
    several = "per_class" in judged
    rows: list[tuple[str, ...]] = [("images", str(judged["n"]), "", *(str(split["n"]) for split in others))]
    for sides in (True, False) if several else (False,):
        tables = [split.get("defect", {}) if sides else split for split in (judged, *others)]
        spans = intervals.get("defect", {}) if sides else intervals
        for key, name in NAMES.items():
            if several and key in RANKINGS:
                name += ", defective against sound" if sides else ", mean over classes"
            if any(key in table for table in tables):
                show = number if key in PLAIN else percent
                first, *rest = (show(table.get(key)) for table in tables)
                rows += [(name, first, span(spans.get(key), key in PLAIN), *rest)]
    return rows


def _changes(metrics: dict[str, Any], judged: dict[str, Any]) -> list[tuple[str, ...]]:
    """(name, own test images, interval, this dataset, interval, difference, interval)."""
    if not (own := metrics.get("elsewhere", {}).get("test")):
        return []
    rows: list[tuple[str, ...]] = [("images", str(own["n"]), "", str(judged["n"]), "", "", "")]
    for one in compare_parts(own, judged):
        plain = one.name in PLAIN
        show = number if plain else percent
        cells = [(show(value), span(limits, plain)) for value, limits in (one[1:3], one[3:5])]
        rows.append((SHORT[one.name], *cells[0], *cells[1], *_difference(one, plain)))
    return rows


def _difference(change: Change, plain: bool) -> tuple[str, str]:
    """With its sign, shares in percentage points."""
    if change.difference is None:
        return "–", "–"
    scale, digits, unit = (1, 3, "") if plain else (100, 1, " points")
    limits = "–" if change.interval is None else " to ".join(f"{scale * end:+.{digits}f}" for end in change.interval)
    return f"{scale * change.difference:+.{digits}f}{unit}", limits


def _breakdown(column: str, rows: list[dict[str, Any]]) -> list[tuple]:
    return [
        (
            row[column] or "not stated",
            row["n"],
            row["n_defective"],
            percent(row["recall"]),
            span((row["recall_low"], row["recall_high"])),
            percent(row["overkill_rate"]),
        )
        for row in rows
    ]


def _calibration(judged: dict[str, Any]) -> list[tuple[str, str, str]]:
    before = judged.get("uncalibrated", judged)
    return [(name, number(before[key]), number(judged[key])) for key, name in CALIBRATION.items()]


def _folds(folds: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """One row a fold of a cross-validation; below them mean and standard deviation."""
    if not folds:
        return []
    table = pd.DataFrame(folds).reindex(columns=FOLD_COLUMNS).astype(float)
    names = [f"{fold['fold']} of repeat {fold['repeat']}" for fold in folds]
    rows = pd.concat([table, table.mean().to_frame().T, table.std().to_frame().T])
    named = zip([*names, "mean", "standard deviation"], rows.itertuples(index=False), strict=True)
    return [(name, *(number(value) for value in values)) for name, values in named]


def _handling(judged: dict[str, Any]) -> list[tuple[str, ...]]:
    """What becomes of sound and of defective images; empty where nothing goes to a person."""
    counts = judged.get("handling", {})
    if not any(row["review"] for row in counts.values()):
        return []
    return [(kind, str(row["accept"]), str(row["review"]), str(row["reject"])) for kind, row in counts.items()]


def _disturbances(rows: list[dict[str, Any]]) -> list[str]:
    """`blur: 0.5 %, 1 %, 2 % of the side`, one a disturbance."""
    settings: dict[str, list[str]] = {}
    for row in rows:
        if row["strength"]:
            settings.setdefault(row["corruption"], []).append(row["setting"])
    return [f"{name}: {', '.join(values)}" for name, values in settings.items()]


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
    facts = {name: metrics.get(name) for name in ("date", "seed", "commit", "hardware")}
    facts["photos"] = metrics.get("config", {}).get("dataset", {}).get("root")
    if head := metrics.get("head"):
        joined = (
            f" joined with the classifier, {head['memory']:.2f} to {head['classifier']:.2f} (log-odds for a "
            "deviation of sound images)"
        )
        facts["head"] = f"a memory of {head['bank']:,} sound patches{joined if head['name'] == 'joined' else ''}"
    facts["versions"] = ", ".join(f"{name} {version}" for name, version in metrics.get("versions", {}).items())
    return {name: value for name, value in facts.items() if value not in (None, "", {})}
