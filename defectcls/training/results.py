"""What a run leaves: metrics.json, predictions.csv, the pictures and report.html."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from defectcls.evaluation.calibration import uncalibrate
from defectcls.evaluation.metrics import defect_numbers
from defectcls.evaluation.predictions import PROBABILITY, write_predictions
from defectcls.files import read_json, written_whole
from defectcls.pages.pictures import (
    plot_confusion_matrix,
    plot_curves,
    plot_errors,
    plot_predictions,
    plot_reliability,
    plot_robustness,
    plot_scores,
    png,
    worst_errors,
)
from defectcls.pages.report import render_report
from defectcls.pages.wording import SPLITS, caveats, decision_words, judged_split, verdict

RATES = ("recall", "overkill_rate", "auroc")  # undefined ones are None in JSON
SHOWN = ("n", "accuracy", "precision", "recall", "f1", "f1_macro", "auroc", "auroc_pooled", "review_rate")


def finished_metrics(folder: Path) -> dict[str, Any] | None:
    """What `write_results` left of a run that is finished.

    Raises:
        UserError: it is damaged.
    """
    file, remedy = folder / "metrics.json", "delete it and resume the run, which measures it again"
    return read_json(file, remedy, ("dataset", "model", "seed", "class_names", "test")) if file.is_file() else None


def write_results(
    folder: Path, metrics: dict[str, Any], predictions: pd.DataFrame, pictures: dict[str, bytes] | None = None
) -> None:
    """Predictions, the page where there are pictures for it, and metrics.json: the last, it says that all is there."""
    write_predictions(predictions, folder / "predictions.csv")
    if pictures is not None:
        for name, content in pictures.items():
            (folder / f"{name}.png").write_bytes(content)
        (folder / "report.html").write_text(render_report(metrics, pictures), encoding="utf-8")
    with written_whole(folder / "metrics.json") as unfinished:
        unfinished.write_text(json.dumps(metrics, indent=2), encoding="utf-8")


def draw(
    metrics: dict[str, Any],
    predictions: pd.DataFrame,
    root: Path,
    history: pd.DataFrame | None = None,
    heat: dict[str, np.ndarray] | None = None,
) -> dict[str, bytes]:
    """The pictures of a run as PNG files by name, each where there is something to see.

    Args:
        history: of the training, one row an epoch.
        heat: what speaks for a defect, of the paths of some images, (side, side) from 0 to 1.
    """
    names, defective_classes = metrics["class_names"], metrics["defective_classes"]
    judged = judged_split(metrics)
    rows = predictions[predictions["split"] == judged] if "split" in predictions else predictions
    figures = {"confusion_matrix": plot_confusion_matrix(metrics[judged]["confusion_matrix"], names)}
    if rows["defective"].nunique() == 2:
        decision = metrics.get("decision") or {}
        figures["scores"] = plot_scores(rows, decision.get("accept_below"), decision.get("reject_from"))
        scores = {"calibrated": rows["score"].to_numpy()}
        if "uncalibrated" in metrics[judged]:
            columns = [PROBABILITY + name for name in names]
            before = uncalibrate(rows[columns].to_numpy(), decision["scale"], tuple(decision["shift"]))
            scores = {
                "before calibration": before[:, defective_classes].sum(axis=1),
                "after": scores["calibrated"],
            }
        figures["reliability"] = plot_reliability(scores, rows["defective"].to_numpy(bool))
    errors, depth = worst_errors(rows, names, defective_classes), metrics.get("depth", "auto")
    if any((root / path).is_file() for path in rows["path"].head(100)):  # a table may be judged without its photos
        if any(len(table) for table in errors.values()):
            figures["errors"] = plot_errors(errors, root, heat or {}, depth)
        figures["predictions"] = plot_predictions(predictions, root, names, depth)
    if metrics.get("robustness"):
        figures["robustness"] = plot_robustness(pd.DataFrame(metrics["robustness"]).astype(dict.fromkeys(RATES, float)))
    if history is not None and len(history) > 1:
        figures["curves"] = plot_curves(history)
    return {name: png(figure) for name, figure in figures.items()}


def print_results(folder: Path, metrics: dict[str, Any]) -> None:
    """The result table, the verdict, what to know before relying on it and where the report lies, on stdout."""
    parts = [part for part in ("baseline", "train", "val", "test") if part in metrics]
    title = f"{metrics['dataset']} · {metrics['model']} · seed {metrics['seed']}"
    table = Table("", *(SPLITS[part] for part in parts), title=title)
    for name in SHOWN:
        values = [defect_numbers(metrics[part]).get(name) for part in parts]
        if any(value is not None for value in values):
            table.add_row(name, *("–" if v is None else f"{v:.4f}" if isinstance(v, float) else str(v) for v in values))
    console = Console(soft_wrap=True, highlight=False)
    console.print(table)
    console.print(verdict(metrics), markup=False)
    if (metrics.get("decision") or {}).get("accept_below") is not None:
        console.print(*decision_words(metrics["decision"], "seconds" in metrics), sep="\n", markup=False)
    for caveat in caveats(metrics):
        console.print(f"- {caveat}", markup=False)
    console.print(f"report: {folder / 'report.html'}", markup=False)
