"""The report on a run: what a quality engineer can read, print and hand on."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from defectcls.evaluation.calibration import uncalibrate
from defectcls.evaluation.metrics import METRICS, RANKINGS, defect_numbers
from defectcls.evaluation.predictions import PROBABILITY
from defectcls.pages.blocks import Block, Cell, Page, Photo, Photos, Picture, Section, Table, Text
from defectcls.pages.caveats import ON_OTHER_IMAGES, caveats
from defectcls.pages.photos import thumbnail_files, worst_errors, worth_seeing
from defectcls.pages.wording import (
    SPLITS,
    decision_words,
    judged_split,
    number,
    percent,
    plural,
    shown,
    span,
    verdict,
)
from defectcls.tables import DEFECTIVE

HEADS = {  # of columns that are no numbers of METRICS
    "n": "images",
    "n_defective": "defective",
    "interval": "95 % interval",
    "defect_type": "defect type",
    "mask_size": "size of the defect",
    "group": "group of images",
    "accept": "accepted",
    "review": "to a person",
    "reject": "rejected",
}
THUMBNAIL = 220  # pixels
HARDEST = 12  # photos besides the errors
MOST_CLASSES = 8  # of a matrix that a terminal shows
WHOLE = (99, 99)  # rows and columns in the terminal

INTERVALS = (
    "Intervals: mid-p binomial for shares, bootstrap for AUROC and average precision; images that belong "
    "together (copies, groups) count as the fewer independent ones that they are worth."
)
UNDEFINED = (
    "– stands where the images cannot state a number: precision needs a rejected image, recall and escape rate a "
    "defective one, overkill rate a sound one, AUROC and average precision both kinds."
)
REVIEWED = (
    "An image that goes to a person counts as caught and not as overkill; in precision, F1, accuracy and the matrix "
    "below it counts as called defective."
)
FOLDS = (
    "Each row a run of its own, with its own threshold and calibration. The numbers above are of all their predictions "
    "together, but AUROC and average precision: the mean of each fold's own, since the scores of one model do not rank "
    "those of another. Pooled, they stand beside; where folds were dealt anew, an image stands in them once a repeat, "
    "and the intervals know it."
)
ELSEWHERE = (
    "Threshold, calibration, image size and normalisation are those of the training; nothing was fitted to these "
    "images. Where the threshold is another than the model was tested with, only the AUROC on its own images is known."
)


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
    split = judged_split(metrics)
    judged, of, decision = metrics[split], SPLITS[split], metrics.get("decision") or {}
    rows = pd.DataFrame() if predictions is None else predictions
    rows = rows[rows["split"] == split] if "split" in rows else rows
    decided = decision_words(metrics["decision"], "seconds" in metrics) if "decision" in metrics else []
    pictures = _pictures(metrics, rows, history)
    handling = judged.get("handling", {})
    per_class = sorted(
        judged.get("per_class", {}).items(), key=lambda one: (one[1]["recall"] is None, one[1]["recall"])
    )
    blocks = [
        Text(verdict(metrics), "verdict", terminal=True),
        Text(caveats(metrics), "caveats", terminal=True),
        *_elsewhere(metrics, judged),
        *_numbers(metrics, judged),
        Section([Text([FOLDS], "note"), _folds(metrics.get("folds", []))], "Fold by fold"),
        Section(
            [
                Text(decided, terminal=decision.get("accept_below") is not None),
                _table(("", "accept", "review", "reject"), handling.items() if "review_rate" in judged else []),
                *pictures["scores"],
            ],
            "How it decides",
        ),
        Section([_matrix(judged["confusion_matrix"], metrics["class_names"])], f"What was taken for what ({of})"),
        Section(
            [_table(("class", "n", "recall", "precision", "f1"), per_class)],
            f"Class by class ({of}, worst recall first)",
        ),
    ]
    for column, found in judged.get("breakdowns", {}).items():
        columns = (column, "n", "n_defective", "recall", "interval", "overkill_rate")
        limits = [span("recall", (row["recall_low"], row["recall_high"])) for row in found]
        table = [(row[column] or "not stated", row | {"interval": one}) for row, one in zip(found, limits, strict=True)]
        blocks.append(Section([_table(columns, table)], f"By {HEADS.get(column, column)} ({of}, worst first)"))
    return Page(
        "Defect classification report",
        f"{metrics.get('dataset', 'unnamed dataset')} · {metrics.get('model', 'unnamed model')}",
        [
            *blocks,
            *_photos(metrics, rows, root, heat or {}),
            Section(pictures["reliability"], f"Can the probabilities be believed? ({of})"),
            *_robustness(metrics, of),
            Section(pictures["curves"], "How training went"),
            *_making(metrics),
        ],
    )


def _table(columns: Sequence[str], rows: Iterable[tuple[Any, dict[Any, Any]]]) -> Table:
    """One row a name with its values; numbers of METRICS as that table says."""
    head = [METRICS[key].name if key in METRICS else HEADS.get(key, key) for key in columns]
    content = [
        (name, *(shown(key, row[key]) if key in METRICS else row[key] for key in columns[1:])) for name, row in rows
    ]
    return Table(content, head)


def _elsewhere(metrics: dict[str, Any], judged: dict[str, Any]) -> Iterator[Block]:
    """Its numbers on its own test images beside those here, where these are of another dataset."""
    if not (elsewhere := metrics.get("elsewhere")) or not (own := elsewhere["test"]):
        return
    parts = defect_numbers(own), defect_numbers(judged)
    rows: list[tuple[Any, ...]] = [("images", own["n"], "", judged["n"], "")]
    for name in ON_OTHER_IMAGES:
        cells = ((shown(name, one.get(name)), span(name, one["intervals"].get(name))) for one in parts)
        rows.append((METRICS[name].name, *(cell for pair in cells for cell in pair)))
    places = f"{elsewhere['trained_on']}, test part", f"{elsewhere['judged_on']}, these images"
    head = ["", *(cell for place in places for cell in (place, "95 % interval"))]
    yield Section([Table(rows, head), Text([ELSEWHERE], "note")], "On its own images and on these")


def _numbers(metrics: dict[str, Any], judged: dict[str, Any]) -> Iterator[Block]:
    """Every number of every split; of many classes first defective against sound."""
    split, several = judged_split(metrics), "per_class" in judged
    others = [other for other in reversed(SPLITS) if other in metrics and other != split]
    parts, intervals = [judged, *(metrics[other] for other in others)], judged.get("intervals", {})
    rows: list[tuple[Any, ...]] = [("images", judged["n"], "", *(part["n"] for part in parts[1:]))]
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
    notes = {
        f"Defective: {defective}.": defective,
        REVIEWED: "review_rate" in defect_numbers(judged),
        INTERVALS: True,
        "Before training: the same model before its first step.": "baseline" in metrics,
        UNDEFINED: any("–" in (row[1], *row[3:]) for row in rows),
    }
    note = Text([" ".join(words for words, needed in notes.items() if needed)], "note")
    head = ["", SPLITS[split], "95 % interval", *(SPLITS[other] for other in others)]
    yield Section([Table(rows, head, terminal=WHOLE), note], "The numbers")


def _folds(folds: list[dict[str, Any]]) -> Table:
    """One row a fold of a cross-validation; below them mean and standard deviation."""
    columns = ["accuracy", "recall", "overkill_rate", "f1", "f1_macro", "auroc"]
    table = pd.DataFrame(folds, columns=columns).astype(float)
    names = [f"{fold['fold']} of repeat {fold['repeat']}" for fold in folds]
    rows = [table, table.mean().to_frame("mean").T, table.std().to_frame("standard deviation").T] if folds else [table]
    found = pd.concat(rows).set_axis([*names, "mean", "standard deviation"] if folds else [])
    return _table(["fold", *columns], list(found.to_dict("index").items()))


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
    from defectcls.pages.pictures import plot_curves, plot_reliability, plot_scores, png

    judged, decision = metrics[judged_split(metrics)], metrics.get("decision") or {}
    found: dict[str, list[Block]] = {"scores": [], "reliability": [], "curves": []}
    if len(rows) and rows["defective"].nunique() == 2:
        figure = plot_scores(rows, decision.get("accept_below"), decision.get("reject_from"))
        words = "Above, how many images have which score; below, escape and overkill rate against the threshold"
        found["scores"] = [Picture(png(figure), "scores", words)]
        scores = {"calibrated": rows["score"].to_numpy()}
        if "uncalibrated" in judged:
            columns = [PROBABILITY + name for name in metrics["class_names"]]
            before = uncalibrate(rows[columns].to_numpy(), decision["scale"], tuple(decision["shift"]))
            before = before[:, metrics["defective_classes"]].sum(axis=1)
            scores = {"before calibration": before, "after": scores["calibrated"]}
        words = "Share of defective images against the probability of being defective; on the diagonal they are right"
        picture = png(plot_reliability(scores, rows["defective"].to_numpy(bool)))
        found["reliability"] = [Picture(picture, "reliability", words, wide=False)]
        if share := decision.get("prevalence"):
            note = f"Scores are for {percent(share)} of defects: where as many are defective, the mean score is their "
            found["reliability"] += [Text([f"{note}share. The calibration error is that of the score."], "note")]
        uncalibrated = judged.get("uncalibrated", judged)
        errors = {METRICS[key].explained: (uncalibrated[key], judged[key]) for key in ("ece", "brier", "loss")}
        table = [(name, *map(number, values)) for name, values in errors.items()]
        found["reliability"] += [Table(table, ["", "before calibration", "after"])]
    if history is not None and len(history) > 1:
        words = "Loss, accuracy and learning rate against the epoch, stage by stage"
        found["curves"] = [Picture(png(plot_curves(history)), "curves", words)]
    return found


def _photos(metrics: dict[str, Any], rows: pd.DataFrame, root: Path, heat: dict[str, np.ndarray]) -> Iterator[Block]:
    """The worst errors with what speaks for a defect in them, and the hardest of the other images."""
    if rows.empty or not any((root / path).is_file() for path in rows["path"].head(100)):
        return  # a table may be judged without its photos
    escapes, rejects = worst_errors(rows, metrics["class_names"], metrics["defective_classes"]).values()
    others = worth_seeing(rows.drop([*escapes.index, *rejects.index]), metrics["class_names"], HARDEST)
    paths = pd.concat([escapes, rejects, others])["path"]
    files = thumbnail_files(paths, root, THUMBNAIL, metrics.get("depth", "auto"), heat)

    def grid(table: pd.DataFrame, kind: str) -> list[Photo]:
        return [
            Photo(
                files[row["path"]],
                f"score {row['score']:.2g}" if kind else "✓" if row["label"] == row["prediction"] else "✗",
                f"{row['label']} → {row['prediction']} {row[PROBABILITY + row['prediction']]:.0%}",
                [row["path"]],
                kind,
            )
            for row in table.to_dict("records")
        ]

    note = (
        "The most confident errors of either kind, each with its score, and the probability of what it was taken for."
    )
    if "heat_maps" in metrics:
        note += f" Beside the photo where the model sees what speaks for a defect ({metrics['heat_maps']}; each map "
        note += "from nothing to its own strongest point)."
    looked = []
    if found := metrics.get("localisation"):
        looked = [
            f"Does the model look at the defect? On {plural(found['n'], 'defective image')} with masks the hottest "
            f"point lies on the defect in {percent(found['hit'])}, and {percent(found['energy'])} of the heat does; "
            f"blind chance would be {percent(found['chance'])}."
        ]
    errors = Photos([*grid(escapes, "alarm"), *grid(rejects, "doubt")], {"alarm": "escapes", "doubt": "false rejects"})
    yield Section([Text([note], "note"), errors, Text(looked)], "Escapes and false rejects")
    note = "Those of the wrong class (✗), then the right ones of which the model is least certain."
    yield Section([Text([note], "note"), Photos(grid(others, ""))], "The hardest of the other images")


def _robustness(metrics: dict[str, Any], of: str) -> Iterator[Block]:
    """Recall and overkill rate under each disturbance by strength, redder with the errors."""
    if not (found := metrics.get("robustness")):
        return
    clean, *disturbed = found
    rates = {"recall": lambda value: 1 - value, "overkill_rate": lambda value: value}
    strengths = sorted({row["strength"] for row in disturbed})
    rows: list[list[object]] = [["none"]]
    for rate in rates:
        rows[0] += [percent(clean[rate]), *[""] * (len(strengths) - 1)]
    for name in dict.fromkeys(row["corruption"] for row in disturbed):
        rows.append([name])
        for rate, error in rates.items():
            for row in disturbed:
                if row["corruption"] == name:
                    tint = 0 if row[rate] is None else np.sqrt(error(row[rate]))
                    rows[-1].append(Cell(f"{percent(row[rate])}\n{row['setting']}", bad=tint))
    head = ["disturbance", *(f"{METRICS[rate].name}, strength {strength}" for rate in rates for strength in strengths)]
    note = f"On {metrics['robustness_images']} {of} images."
    yield Section([Text([note], "note"), Table(rows, head)], "When the camera is worse")


def _making(metrics: dict[str, Any]) -> Iterator[Block]:
    """Stages, times, provenance and the command."""
    stages = []
    for stage in metrics.get("stages", []):
        best = ", ".join(f"{metric} {number(value)}" for metric, value in stage["best"].items())
        stages.append((stage["name"], stage["epochs"], best, "rolled back" if stage["rolled_back"] else "kept"))
    seconds, speed = metrics.get("seconds", {}), metrics.get("images_per_second", {})
    phases = [(phase, number(seconds.get(phase), 1), number(speed.get(phase), 1)) for phase in {**seconds, **speed}]
    facts: dict[str, Any] = {name: metrics.get(name) for name in ("date", "seed", "commit", "hardware")}
    facts["photos"] = metrics.get("config", {}).get("dataset", {}).get("root")
    if head := metrics.get("head"):
        facts["head"] = f"a memory of {head['bank']:,} sound patches"
        if head["name"] == "joined":
            weights = f"{head['memory']:.2f} to {head['classifier']:.2f}"
            facts["head"] += f" joined with the classifier, {weights} (log-odds for a deviation of sound images)"
    facts["versions"] = ", ".join(f"{name} {version}" for name, version in metrics.get("versions", {}).items())
    facts = {name: value for name, value in facts.items() if value not in (None, "")}
    made = [
        Table(stages, ["stage", "epochs", "best on validation", "outcome"], words=True),
        Table(phases, ["phase", "seconds", "images per second"]),
        Table(list(facts.items()), words=True),
    ]
    yield Section(made, "How it was made")
    yield Section([Text([metrics["command"]] if metrics.get("command") else [], "code")], "To reproduce")
    unreadable = [(one["path"], one["reason"]) for one in metrics.get("unreadable", [])]
    yield Section([Table(unreadable, ["path", "reason"], words=True)], "Images that could not be read")
    config = json.dumps(metrics.get("config", {}), indent=2, ensure_ascii=False, default=str)
    yield Section([Text([config] if metrics.get("config") else [], "code")], "Resolved configuration", folded=True)
