"""The report on a run: what a quality engineer can read, print and hand on."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from defectcls.evaluation.metrics import METRICS, RANKINGS, defect_numbers
from defectcls.evaluation.predictions import PROBABILITY
from defectcls.pages import wording
from defectcls.pages.blocks import Block, Cell, Page, Photo, Photos, Picture, Section, Table, Text, making
from defectcls.pages.photos import Heat, thumbnail_files, worst_errors
from defectcls.pages.wording import caveats, judged_split, part_name, percent, plural, shown, span
from defectcls.tables import DEFECTIVE

HEADS = {key: metric.name for key, metric in METRICS.items()}
HEADS |= {"n": "images", "n_defective": "defective", "interval": "95 % interval", "mask_size": "size of the defect"}
HEADS |= {"overrides": "settings", "loss": "loss (nats)", "behind": "behind (nats)", "ms": "ms a photo"}
THUMBNAIL = 220  # pixels
MOST_CLASSES = 8  # of a matrix that a terminal shows

INTERVALS = "Two-sided intervals: mid-p binomial of shares, bootstrap of rankings; images that are tied count as fewer."
REVIEWED = "An image for a person counts as caught and not as overkill; elsewhere, as in F1, as called defective."
FOLDS = "The numbers above are of all folds together, but AUROC and average precision, which are means over folds."


def report_page(
    metrics: dict[str, Any],
    predictions: pd.DataFrame | None = None,
    root: Path = Path(),
    history: pd.DataFrame | None = None,
    heat: Heat | None = None,
) -> Page:
    """The page, with pictures and photos where there is something to see, and these beside their `Heat`.

    Args:
        metrics: the content of metrics.json. Of `train`, `val` and `test` one is enough, and of what describes the
            run `class_names` and `defective_classes`: `evaluate` may know no more.
        predictions: the table of a run; without it there are neither photos nor pictures.
        root: of the photos.
        history: of the training, one row an epoch.
    """
    split = judged_split(metrics)
    judged, of, decision = metrics[split], part_name(metrics, split), metrics.get("decision") or {}
    rows = pd.DataFrame() if predictions is None else predictions
    rows = rows[rows["split"] == split] if "split" in rows else rows
    scores, curves = _pictures(rows, decision, history)
    decided = wording.decision_words(metrics["decision"]) if "decision" in metrics else []
    by_class = [{"class": name} | row for name, row in judged.get("per_class", {}).items()]
    by_class.sort(key=lambda row: row["recall"] or 0)
    robustness = metrics.get("robustness", [])
    disturbed = [row | {"disturbance": f"{row['corruption']} {row['setting']}"} for row in robustness]
    stages = {one["name"]: "rolled back" if one["rolled_back"] else "kept" for one in metrics.get("stages", [])}
    unreadable = [(one["path"], one["reason"]) for one in metrics.get("unreadable", [])]
    blocks = [
        Text(*wording.verdict(metrics), look="verdict", terminal=True),
        Text(*caveats(metrics), look="caveats", terminal=True),
        *(_since(found) for found in [metrics.get("from")] if found),
        _numbers(metrics, judged),
        *(_tried(found) for found in [metrics.get("auto")] if found),
        Section("Fold by fold", Text(FOLDS, look="note"), _folds(metrics.get("folds", []))),
        Section("How it decides", Text(*decided, terminal=True), scores),
        Section(f"What was taken for what ({of})", _matrix(judged["confusion_matrix"], metrics["class_names"])),
        Section(f"Class by class ({of}, worst first)", _table(by_class, "class", "n", "recall", "precision", "f1")),
        *(_breakdown(column, found, of) for column, found in judged.get("breakdowns", {}).items()),
        _photos(metrics, rows, root, heat or {}),
        Section(
            f"When the camera is worse ({of}, {metrics.get('robustness_images')} images)",
            _table(disturbed, "disturbance", "recall", "overkill_rate"),
        ),
        Section("How training went", curves),
        making(metrics | {"stages": stages}),
        Section("Images that could not be read", Table(unreadable, ["path", "reason"], words=True)),
    ]
    title = f"{metrics.get('dataset', 'dataset')} · {metrics.get('model', 'model')}"
    return Page("Defect classification report", title, blocks)


def _table(rows: list[dict[Any, Any]], *columns: str, terminal: bool = False) -> Table:
    """These values of each row; numbers of METRICS as that table says."""
    content = [[shown(key, row[key]) if key in METRICS else row[key] for key in columns] for row in rows]
    return Table(content, [HEADS.get(key, key.replace("_", " ")) for key in columns], terminal=terminal)


def _breakdown(column: str, found: list[dict[str, Any]], of: str) -> Section:
    """Where the model is weak."""
    rows = []
    for row in found:
        interval = span("recall", (row["recall_low"], row["recall_high"]))
        rows.append(row | {column: row[column] or "not stated", "interval": interval})
    table = _table(rows, column, "n", "n_defective", "recall", "interval", "overkill_rate")
    return Section(f"By {table.head[0]} ({of}, worst first)", table)


def _numbers(metrics: dict[str, Any], judged: dict[str, Any]) -> Section:
    """Every number of every split. Of many classes first defective against sound."""
    split = judged_split(metrics)
    told = [part for part in ("test", "val", "train") if part != split and metrics.get(part, judged) != judged]
    others = {part_name(metrics, part): metrics[part] for part in told}
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
                meaning = f" ({metric.meaning})" if metric.meaning else kind * (key in RANKINGS)
                rows.append((metric.name + meaning, first, span(key, limits.get(key)), *rest))
    classes = zip(metrics["class_names"], metrics["defective_classes"], strict=True)
    defective = ", ".join(name for name, is_defective in classes if is_defective and name != DEFECTIVE)
    notes = [f"Defective: {defective}."] * bool(defective) + [REVIEWED] * ("review_rate" in defect_numbers(judged))
    head = ["", part_name(metrics, split), "95 % interval", *others]
    return Section("The numbers", Table(rows, head, terminal=True), Text(*notes, INTERVALS, look="note"))


def _since(found: dict[str, Any]) -> Section:
    """What is new since an earlier run."""
    rows = [[*row.values()] for row in found["relabelled"]]
    new, tested = plural(found["new"], "new photo"), plural(found["tested"], "photo")
    said = f"{new}, {found['gone']} are gone, {len(rows)} have another label; {tested} of its test are tested again."
    changed = Table(rows, ["photo", "label before", "label"], words=True, terminal=True)
    return Section(f"New since {found['run']}", Text(said, terminal=True), changed)


def _tried(found: dict[str, Any]) -> Section:
    """What `auto` compared, the least loss first, and what it left out."""
    rows = {}
    for row in sorted(found["tried"], key=lambda row: row["difference"]):
        behind = wording.difference("loss", row["difference"], row["low"], row["high"])
        rows[row["overrides"]] = row | {"behind": behind, "ms": wording.number(row["ms_per_photo"], 1, np.inf)}
    columns = ("overrides", "loss", "behind", "auroc", "seeds", "seconds", "ms")
    kept, quick = (f"{one}, {rows[one]['ms']} ms a photo" for one in (found["kept"], found["simplest"]))
    return Section(
        "What was tried",
        _table([*rows.values()], *columns, terminal=True),
        Text(f"Kept: {kept}. The quickest that is not shown to be worse than the best: {quick}.", terminal=True),
        Text("Out of fold, calibrated, every class alike; the intervals hold for all together.", look="note"),
        Table([*found["skipped"].items()], ["not tried", "why"], words=True),
    )


def _folds(folds: list[dict[str, Any]]) -> Table:
    """One row a fold of a cross-validation; below them mean and standard deviation."""
    columns = ["accuracy", "recall", "overkill_rate", "f1", "f1_macro", "auroc"]
    table = pd.DataFrame(folds, columns=columns).astype(float)
    names = [f"{fold['fold']} of repeat {fold['repeat']}" for fold in folds]
    if folds:
        table = pd.concat([table, table.agg(["mean", "std"])])
        names += ["mean", "standard deviation"]
    return _table(table.assign(fold=names).to_dict("records"), "fold", *columns)


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
        return Text(), Text()  # a finished run that is shown again: without the half second that matplotlib takes
    from defectcls.pages.pictures import plot_curves, plot_scores, png

    scores = png(plot_scores(rows, decision.get("accept_below"), decision.get("reject_from")))
    curves = png(plot_curves(history)) if history is not None and len(history) > 1 else b""
    of_scores = Picture(scores, "scores", "Images by score; escape and overkill rate against the threshold")
    return of_scores, Picture(curves, "curves", "Loss, accuracy and learning rate against the epoch, stage by stage")


def _photos(metrics: dict[str, Any], rows: pd.DataFrame, root: Path, heat: Heat) -> Section:
    """The worst errors, with what speaks for a defect in them."""
    note = looked = ""
    if rows.empty:
        return Section("")
    errors = worst_errors(rows, dict(zip(metrics["class_names"], metrics["defective_classes"], strict=True)))
    files = thumbnail_files(errors["path"], root, THUMBNAIL, metrics.get("depth", "auto"), heat)
    photos = []
    for row in errors.to_dict("records"):
        sure = percent(row[PROBABILITY + row["prediction"]])
        called = f"{row['label']} → {row['prediction']}, to which it gives {sure}"
        path, kind = row["path"], "alarm" if row["defective"] else "doubt"
        photos.append(Photo(files[path], f"score {row['score']:.2g}", called, [path], kind))
    if "heat_maps" in metrics:
        note = f"Beside a photo what speaks for a defect ({metrics['heat_maps']}), from nothing to its strongest point."
    if found := metrics.get("localisation"):
        looked = (
            f"On {plural(found['n'], 'defective image')} with masks the hottest point lies on the defect in "
            f"{percent(found['hit'])}; blind chance would be {percent(found['chance'])}."
        )
    title = "Escapes and false rejects, the most confident first"
    return Section(title, Text(note, look="note"), Photos(photos), Text(looked))
