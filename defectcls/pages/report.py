"""The report on a run: what a quality engineer can read, print and hand on."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from defectcls.evaluation.metrics import METRICS, RANKINGS, defect_numbers
from defectcls.evaluation.predictions import PROBABILITY
from defectcls.pages import wording
from defectcls.pages.blocks import Block, Cell, Page, Photo, Photos, Picture, Section, Table, making, section, text
from defectcls.pages.photos import thumbnail_files, worst_errors
from defectcls.pages.wording import SPLITS, caveats, judged_split, percent, plural, shown, span
from defectcls.tables import DEFECTIVE

HEADS = {"n": "images", "n_defective": "defective", "interval": "95 % interval", "mask_size": "size of the defect"}
THUMBNAIL = 220  # pixels
MOST_CLASSES = 8  # of a matrix that a terminal shows

INTERVALS = "Intervals: mid-p binomial for shares, bootstrap for rankings; images that belong together count as fewer."
REVIEWED = "An image for a person counts as caught and not as overkill; elsewhere, as in F1, as called defective."
FOLDS = "The numbers above are of all folds together, but AUROC and average precision, which are means over folds."


def report_page(
    metrics: dict[str, Any],
    predictions: pd.DataFrame | None = None,
    root: Path = Path(),
    history: pd.DataFrame | None = None,
    heat: dict[str, np.ndarray] | None = None,
) -> Page:
    """The page, with pictures and photos where there is something to see.

    Args:
        metrics: the content of metrics.json. Of `train`, `val` and `test` one is enough, and of what describes the
            run `class_names` and `defective_classes`: `evaluate` may know no more.
        predictions: the table of a run; without it there are neither photos nor pictures.
        root: of the photos.
        history: of the training, one row an epoch.
        heat: what speaks for a defect, of the paths of some images, (side, side) from 0 to 1.
    """
    split, title = judged_split(metrics), f"{metrics.get('dataset', 'dataset')} · {metrics.get('model', 'model')}"
    judged, of, decision = metrics[split], SPLITS[split], metrics.get("decision") or {}
    rows = pd.DataFrame() if predictions is None else predictions
    rows = rows[rows["split"] == split] if "split" in rows else rows
    scores, curves = _pictures(rows, decision, history)
    decided = wording.decision_words(metrics["decision"]) if "decision" in metrics else []
    worst_first = sorted(judged.get("per_class", {}).items(), key=lambda one: one[1]["recall"] or 0)
    stages = {one["name"]: "rolled back" if one["rolled_back"] else "kept" for one in metrics.get("stages", [])}
    unreadable = [(one["path"], one["reason"]) for one in metrics.get("unreadable", [])]
    blocks = [
        text(*wording.verdict(metrics), look="verdict", terminal=True),
        text(*caveats(metrics), look="caveats", terminal=True),
        _numbers(metrics, judged),
        section("Fold by fold", text(FOLDS, look="note"), _folds(metrics.get("folds", []))),
        section("How it decides", text(*decided, terminal=True), scores),
        section(f"What was taken for what ({of})", _matrix(judged["confusion_matrix"], metrics["class_names"])),
        section(
            f"Class by class ({of}, worst first)", _table(("class", "n", "recall", "precision", "f1"), worst_first)
        ),
        *(_breakdown(column, found, of) for column, found in judged.get("breakdowns", {}).items()),
        _photos(metrics, rows, root, heat or {}),
        _robustness(metrics, of),
        section("How training went", curves),
        making(metrics | {"stages": stages}),
        section("Images that could not be read", Table(unreadable, ["path", "reason"], words=True)),
    ]
    return Page("Defect classification report", title, blocks)


def _table(columns: Sequence[str], rows: Iterable[tuple[Any, dict[Any, Any]]]) -> Table:
    """One row a name with its values; numbers of METRICS as that table says."""
    head = [METRICS[key].name if key in METRICS else HEADS.get(key, key.replace("_", " ")) for key in columns]
    content = [
        (name, *(shown(key, row[key]) if key in METRICS else row[key] for key in columns[1:])) for name, row in rows
    ]
    return Table(content, head)


def _breakdown(column: str, found: list[dict[str, Any]], of: str) -> Section:
    """Where the model is weak."""
    limits = [span("recall", (row["recall_low"], row["recall_high"])) for row in found]
    rows = [(row[column] or "not stated", row | {"interval": one}) for row, one in zip(found, limits, strict=True)]
    table = _table((column, "n", "n_defective", "recall", "interval", "overkill_rate"), rows)
    return section(f"By {table.head[0]} ({of}, worst first)", table)


def _numbers(metrics: dict[str, Any], judged: dict[str, Any]) -> Section:
    """Every number of every split. Of many classes first defective against sound."""
    split = judged_split(metrics)
    others = {name: metrics[part] for part, name in reversed(SPLITS.items()) if part in metrics and part != split}
    parts, intervals = [judged, *others.values()], judged.get("intervals", {})
    kinds = [("", parts, intervals)]
    if "per_class" in judged:
        sides = [part.get("defect", {}) for part in parts]
        kinds = [(", defective against sound", sides, intervals.get("defect", {}))]
        kinds += [(", mean over classes", parts, intervals)]
    rows: list[tuple[Any, ...]] = [("images", judged["n"], "", *(part["n"] for part in others.values()))]
    for kind, numbers, limits in kinds:
        for key, metric in METRICS.items():
            if any(key in part for part in numbers):
                first, *rest = (shown(key, part.get(key)) for part in numbers)
                name = metric.explained + kind * (key in RANKINGS)
                rows.append((name, first, span(key, limits.get(key)), *rest))
    classes = zip(metrics["class_names"], metrics["defective_classes"], strict=True)
    defective = ", ".join(name for name, is_defective in classes if is_defective and name != DEFECTIVE)
    notes = [f"Defective: {defective}."] * bool(defective) + [REVIEWED] * ("review_rate" in defect_numbers(judged))
    head = ["", SPLITS[split], "95 % interval", *others]
    return section("The numbers", Table(rows, head, terminal=True), text(*notes, INTERVALS, look="note"))


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
        shares = np.array(counts) / max(sum(counts), 1)
        tints = np.sqrt(shares)  # so that a rare error is seen
        cells = [Cell(f"{n}\n{percent(share)}", bad=tint) for n, share, tint in zip(counts, shares, tints, strict=True)]
        cells[truth] = cells[truth]._replace(good=tints[truth])
        rows.append([f"{names[truth]} (n = {sum(counts)})", *cells])
    return Table(rows, ["truth ↓, prediction →", *names], terminal=len(names) <= MOST_CLASSES)


def _pictures(rows: pd.DataFrame, decision: dict[str, Any], history: pd.DataFrame | None) -> tuple[Block, Block]:
    """Of the scores and of the training."""
    if rows.empty:
        return text(), text()  # a finished run that is shown again: without the half second that matplotlib takes
    from defectcls.pages.pictures import plot_curves, plot_scores, png

    scores = png(plot_scores(rows, decision.get("accept_below"), decision.get("reject_from")))
    curves = png(plot_curves(history)) if history is not None and len(history) > 1 else b""
    return (
        Picture(scores, "scores", "Images by score; escape and overkill rate against the threshold"),
        Picture(curves, "curves", "Loss, accuracy and learning rate against the epoch, stage by stage"),
    )


def _photos(metrics: dict[str, Any], rows: pd.DataFrame, root: Path, heat: dict[str, np.ndarray]) -> Section:
    """The worst errors, with what speaks for a defect in them."""
    title, note, looked = "Escapes and false rejects, the most confident first", "", ""
    if rows.empty:
        return section(title)
    errors = worst_errors(rows, dict(zip(metrics["class_names"], metrics["defective_classes"], strict=True)))
    files = thumbnail_files(errors["path"], root, THUMBNAIL, metrics.get("depth", "auto"), heat)
    photos = [
        Photo(
            files[row["path"]],
            f"score {row['score']:.2g}",
            f"{row['label']} → {row['prediction']} {row[PROBABILITY + row['prediction']]:.0%}",
            [row["path"]],
            "alarm" if row["defective"] else "doubt",
        )
        for row in errors.to_dict("records")
    ]
    if "heat_maps" in metrics:
        note = f"Beside a photo what speaks for a defect ({metrics['heat_maps']}), from nothing to its strongest point."
    if found := metrics.get("localisation"):
        looked = (
            f"On {plural(found['n'], 'defective image')} with masks the hottest point lies on the defect in "
            f"{percent(found['hit'])}; blind chance would be {percent(found['chance'])}."
        )
    return section(title, text(note, look="note"), Photos(photos), text(looked))


def _robustness(metrics: dict[str, Any], of: str) -> Section:
    """Recall and overkill rate under each disturbance and strength."""
    rows = [(f"{row['corruption']} {row['setting']}", row) for row in metrics.get("robustness", [])]
    title = f"When the camera is worse (on {metrics.get('robustness_images')} {of} images)"
    return section(title, _table(("disturbance", "recall", "overkill_rate"), rows))
