"""The report on a run: what a quality engineer can read, print and hand on."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from defectcls.evaluation.metrics import METRICS, RANKINGS, defect_numbers
from defectcls.evaluation.predictions import PROBABILITY
from defectcls.pages import wording
from defectcls.pages.blocks import Block, Cell, Page, Photo, Photos, Picture, Table, facts, section, text
from defectcls.pages.caveats import caveats
from defectcls.pages.photos import thumbnail_files, worst_errors
from defectcls.pages.wording import SPLITS, judged_split, number, percent, shown, span
from defectcls.tables import DEFECTIVE

HEADS = {"n": "images", "n_defective": "defective", "interval": "95 % interval", "mask_size": "size of the defect"}
HEADS |= {"accept": "accepted", "review": "to a person", "reject": "rejected"}
THUMBNAIL = 220  # pixels
MOST_CLASSES = 8  # of a matrix that a terminal shows
WHOLE = (99, 99)  # rows and columns in the terminal

INTERVALS = "Intervals: mid-p binomial for shares, bootstrap for rankings; images that belong together count as fewer."
UNDEFINED = "– stands where the images cannot state a number, such as recall without a defect."
REVIEWED = (
    "An image that goes to a person counts as caught and not as overkill; in precision, F1, accuracy and the matrix "
    "below it counts as called defective."
)
FOLDS = (
    "Each row a run of its own. The numbers above are of all their predictions together, but AUROC and average "
    "precision: the mean over folds, as one model's scores do not rank those of another. Pooled, they stand beside."
)
ELSEWHERE = "Threshold, calibration, image size and normalisation are those of the training; nothing was fitted here."


def report_page(
    metrics: dict[str, Any],
    predictions: pd.DataFrame | None = None,
    root: Path = Path(),
    history: pd.DataFrame | None = None,
    heat: dict[str, np.ndarray] | None = None,
) -> Page:
    """The page, with pictures and photos where there is something to see.

    Args:
        metrics: the content of metrics.json. Of `baseline`, `train`, `val` and `test` one of the last three is enough,
            and of what describes the run `class_names` and `defective_classes`: `evaluate` may know no more.
        predictions: the table of a run; without it there are neither photos nor pictures of scores.
        root: of the photos.
        history: of the training, one row an epoch.
        heat: what speaks for a defect, of the paths of some images, (side, side) from 0 to 1.
    """
    split, title = judged_split(metrics), f"{metrics.get('dataset', 'dataset')} · {metrics.get('model', 'model')}"
    judged, of, decision = metrics[split], SPLITS[split], metrics.get("decision") or {}
    rows = pd.DataFrame() if predictions is None else predictions
    rows = rows[rows["split"] == split] if "split" in rows else rows
    pictures = _pictures(metrics, rows, history)
    decided = wording.decision_words(metrics["decision"], "seconds" in metrics) if "decision" in metrics else []
    handled = judged.get("handling", {}).items() if "review_rate" in defect_numbers(judged) else []
    per_class = judged.get("per_class", {}).items()
    worst_first = sorted(per_class, key=lambda one: (one[1]["recall"] is None, one[1]["recall"]))
    blocks = [
        text(*wording.verdict(metrics), look="verdict", terminal=True),
        text(*caveats(metrics), look="caveats", terminal=True),
        *_numbers(metrics, judged),
        section("Fold by fold", text(FOLDS, look="note"), _folds(metrics.get("folds", []))),
        section(
            "How it decides",
            text(*decided, terminal=decision.get("accept_below") is not None),
            _table(("", "accept", "review", "reject"), handled),
            *pictures["scores"],
        ),
        section(f"What was taken for what ({of})", _matrix(judged["confusion_matrix"], metrics["class_names"])),
        section(
            f"Class by class ({of}, worst recall first)",
            _table(("class", "n", "recall", "precision", "f1"), worst_first),
        ),
        *(_breakdown(column, found, of) for column, found in judged.get("breakdowns", {}).items()),
        *_photos(metrics, rows, root, heat or {}),
        section(f"Can the probabilities be believed? ({of})", *pictures["reliability"]),
        _robustness(metrics, of),
        section("How training went", *pictures["curves"]),
        *_making(metrics),
    ]
    return Page("Defect classification report", title, blocks)


def _table(columns: Sequence[str], rows: Iterable[tuple[Any, dict[Any, Any]]]) -> Table:
    """One row a name with its values; numbers of METRICS as that table says."""
    head = [METRICS[key].name if key in METRICS else HEADS.get(key, key.replace("_", " ")) for key in columns]
    content = [
        (name, *(shown(key, row[key]) if key in METRICS else row[key] for key in columns[1:])) for name, row in rows
    ]
    return Table(content, head)


def _breakdown(column: str, found: list[dict[str, Any]], of: str) -> Block:
    """Where the model is weak."""
    rows = []
    for row in found:
        limits = span("recall", (row["recall_low"], row["recall_high"]))
        rows.append((row[column] or "not stated", row | {"interval": limits}))
    table = _table((column, "n", "n_defective", "recall", "interval", "overkill_rate"), rows)
    return section(f"By {table.head[0]} ({of}, worst first)", table)


def _numbers(metrics: dict[str, Any], judged: dict[str, Any]) -> Iterator[Block]:
    """Every number of every split, and of the test part of the dataset that the model was trained on, if it is another.

    Of many classes first defective against sound.
    """
    split, several, elsewhere = judged_split(metrics), "per_class" in judged, metrics.get("elsewhere") or {}
    others = {name: metrics[part] for part, name in reversed(SPLITS.items()) if part in metrics and part != split}
    if elsewhere.get("test"):
        others[f"test part of {elsewhere['trained_on']}"] = elsewhere["test"]
    parts, intervals = [judged, *others.values()], judged.get("intervals", {})
    rows: list[tuple[Any, ...]] = [("images", judged["n"], "", *(part["n"] for part in others.values()))]
    for sides in (True, False) if several else (False,):
        tables = [part.get("defect", {}) if sides else part for part in parts]
        spans = intervals.get("defect", {}) if sides else intervals
        which = ", defective against sound" if sides else ", mean over classes"
        for key, metric in METRICS.items():
            if any(key in table for table in tables) and key not in ("ece", "brier"):
                first, *rest = (shown(key, table.get(key)) for table in tables)
                name = metric.explained + which * (several and key.startswith(RANKINGS))
                rows.append((name, first, span(key, spans.get(key)), *rest))
    classes = zip(metrics["class_names"], metrics["defective_classes"], strict=True)
    defective = ", ".join(name for name, is_defective in classes if is_defective and name != DEFECTIVE)
    notes = [
        f"Defective: {defective}." if defective else "",
        REVIEWED if "review_rate" in defect_numbers(judged) else "",
        INTERVALS,
        "Before training: the same model before its first step." if "baseline" in metrics else "",
        ELSEWHERE if elsewhere else "",
        UNDEFINED if any("–" in (row[1], *row[3:]) for row in rows) else "",
    ]
    head = ["", SPLITS[split], "95 % interval", *others]
    yield section("The numbers", Table(rows, head, terminal=WHOLE), text(" ".join(filter(None, notes)), look="note"))


def _folds(folds: list[dict[str, Any]]) -> Table:
    """One row a fold of a cross-validation; below them mean and standard deviation."""
    columns = ["accuracy", "recall", "overkill_rate", "f1", "f1_macro", "auroc"]
    names = [f"{fold['fold']} of repeat {fold['repeat']}" for fold in folds]
    table = pd.DataFrame(folds, names, columns).astype(float)
    if folds:
        table.loc["mean"], table.loc["standard deviation"] = table.mean(), table[: len(folds)].std()
    return _table(["fold", *columns], table.to_dict("index").items())


def _matrix(matrix: list[list[int]], names: list[str]) -> Table:
    """Counts with their shares of the row; hits blue, errors vermilion."""
    rows: list[list[object]] = []
    for truth, counts in enumerate(matrix):
        total = sum(counts)
        rows.append([f"{names[truth]} (n = {total})"])
        for answer, count in enumerate(counts):
            share = count / max(total, 1)
            tint = {"good": share} if truth == answer else {"bad": np.sqrt(share)}  # so that a rare error is seen
            rows[-1].append(Cell(f"{count}\n{percent(share)}", **tint) if count else "0")
    return Table(rows, ["truth ↓, prediction →", *names], terminal=WHOLE if len(names) <= MOST_CLASSES else (0, 0))


def _pictures(metrics: dict[str, Any], rows: pd.DataFrame, history: pd.DataFrame | None) -> dict[str, list[Block]]:
    """Of the scores, their reliability and the training, with what belongs to them."""
    found: dict[str, list[Block]] = {"scores": [], "reliability": [], "curves": []}
    if rows.empty and history is None:
        return found  # a finished run that is shown again: without the half second that matplotlib takes
    from defectcls.pages.pictures import plot_curves, plot_scores, png

    if history is not None and len(history) > 1:
        words = "Loss, accuracy and learning rate against the epoch, stage by stage"
        found["curves"] = [Picture(png(plot_curves(history)), "curves", words)]
    if rows.empty or rows["defective"].nunique() < 2:
        return found
    judged, decision = metrics[judged_split(metrics)], metrics.get("decision") or {}
    figure = plot_scores(rows, decision.get("accept_below"), decision.get("reject_from"))
    words = "Above, how many images have which score; below, escape and overkill rate against the threshold"
    found["scores"] = [Picture(png(figure), "scores", words)]
    share = decision.get("prevalence")
    note = f"Scores are for {percent(share)} of defects: where as many are defective, the mean score is their share."
    names, before = ("ece", "brier", "loss"), judged.get("uncalibrated", judged)
    errors = [(METRICS[name].explained, shown(name, before[name]), shown(name, judged[name])) for name in names]
    found["reliability"] = [
        text(note if share else "", look="note"),
        Table(errors, ["", "before calibration", "after"]),
    ]
    return found


def _photos(metrics: dict[str, Any], rows: pd.DataFrame, root: Path, heat: dict[str, np.ndarray]) -> Iterator[Block]:
    """The worst errors, with what speaks for a defect in them."""
    if rows.empty or not any((root / path).is_file() for path in rows["path"].head(100)):
        return  # a table may be judged without its photos
    classes = dict(zip(metrics["class_names"], metrics["defective_classes"], strict=True))
    escapes, rejects = worst_errors(rows, classes).values()
    paths = pd.concat([escapes, rejects])["path"]
    files = thumbnail_files(paths, root, THUMBNAIL, metrics.get("depth", "auto"), heat)

    def grid(table: pd.DataFrame, kind: str) -> list[Photo]:
        return [
            Photo(
                files[row["path"]],
                f"score {row['score']:.2g}",
                f"{row['label']} → {row['prediction']} {row[PROBABILITY + row['prediction']]:.0%}",
                [row["path"]],
                kind,
            )
            for row in table.to_dict("records")
        ]

    note = "The most confident errors of either kind, each with its score and what it was taken for."
    if "heat_maps" in metrics:
        note += f" Beside the photo where the model sees what speaks for a defect ({metrics['heat_maps']}; each map "
        note += "from nothing to its own strongest point)."
    looked = ""
    if found := metrics.get("localisation"):
        looked = (
            f"Does the model look at the defect? On {wording.plural(found['n'], 'defective image')} with masks the "
            f"hottest point lies on the defect in {percent(found['hit'])}, and {percent(found['energy'])} of the heat "
            f"does; blind chance would be {percent(found['chance'])}."
        )
    errors = Photos([*grid(escapes, "alarm"), *grid(rejects, "doubt")], {"alarm": "escapes", "doubt": "false rejects"})
    yield section("Escapes and false rejects", text(note, look="note"), errors, text(looked))


def _robustness(metrics: dict[str, Any], of: str) -> Block:
    """Recall and overkill rate under each disturbance and strength, redder with the errors."""
    rows = []
    for row in metrics.get("robustness", []):
        caught, refused = row["recall"], row["overkill_rate"]
        recall = Cell(percent(caught), bad=0 if caught is None else np.sqrt(1 - caught))
        rows.append(
            (f"{row['corruption']} {row['setting']}", recall, Cell(percent(refused), bad=np.sqrt(refused or 0)))
        )
    note = text(f"On {metrics.get('robustness_images')} {of} images.", look="note")
    return section("When the camera is worse", note, Table(rows, ["disturbance", "recall", "overkill rate"]))


def _making(metrics: dict[str, Any]) -> Iterator[Block]:
    """Stages, times, provenance and the command."""
    stages = []
    for stage in metrics.get("stages", []):
        best = ", ".join(f"{metric} {number(value)}" for metric, value in stage["best"].items())
        stages.append((stage["name"], stage["epochs"], best, "rolled back" if stage["rolled_back"] else "kept"))
    seconds, speed = metrics.get("seconds", {}), metrics.get("images_per_second", {})
    phases = [(phase, number(seconds.get(phase), 1), number(speed.get(phase), 1)) for phase in {**seconds, **speed}]
    made: dict[str, Any] = {name: metrics.get(name) for name in ("date", "seed", "commit", "hardware")}
    made["photos"] = metrics.get("config", {}).get("dataset", {}).get("root")
    if head := metrics.get("head"):
        made["head"] = f"a memory of {head['bank']:,} sound patches"
        if head["name"] == "joined":
            weights = f"{head['memory']:.2f} to {head['classifier']:.2f}"
            made["head"] += f" joined with the classifier, {weights} (log-odds for a deviation of sound images)"
    made["versions"] = ", ".join(f"{name} {version}" for name, version in metrics.get("versions", {}).items())
    yield section(
        "How it was made",
        Table(stages, ["stage", "epochs", "best on validation", "outcome"], words=True),
        Table(phases, ["phase", "seconds", "images per second"]),
        facts(made),
    )
    yield section("To reproduce", text(metrics.get("command"), look="code"))
    unreadable = [(one["path"], one["reason"]) for one in metrics.get("unreadable", [])]
    yield section("Images that could not be read", Table(unreadable, ["path", "reason"], words=True))
    config = json.dumps(metrics.get("config", {}), indent=2, ensure_ascii=False, default=str)
    yield section("Resolved configuration", text(config if len(config) > 2 else "", look="code"), folded=True)
