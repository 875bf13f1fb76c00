"""What a run leaves: metrics.json, predictions.csv, the pictures and report.html."""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from defectcls.errors import UserError, did_you_mean
from defectcls.evaluation.metrics import METRICS, defect_numbers
from defectcls.evaluation.predictions import write_predictions
from defectcls.files import read_json, written_whole
from defectcls.pages.blocks import Page
from defectcls.pages.render import write_page


def finished_metrics(folder: Path) -> dict[str, Any] | None:
    """What `write_results` left of a run that is finished.

    Raises:
        UserError: it is damaged.
    """
    file, remedy = folder / "metrics.json", "delete it and resume the run, which measures it again"
    return read_json(file, remedy, ("dataset", "model", "seed", "class_names", "test")) if file.is_file() else None


def objective_of(metrics: dict[str, Any], objective: str | None) -> float | None:
    """The number <part>/<name> of metrics.json, sound against defective; None where it is undefined.

    Raises:
        UserError: there is no such number.
    """
    if objective is None:
        return None
    part, _, name = objective.partition("/")
    if part not in ("train", "val", "test") or name not in METRICS:
        near = did_you_mean(name, METRICS) or f" such as val/auroc; names are {', '.join(METRICS)}"
        raise UserError(f"objective={objective} is no <train, val or test>/<name of a number>{near}")
    value = defect_numbers(metrics[part]).get(name) if metrics else None
    return None if value is None else float(value)


def write_results(folder: Path, metrics: dict[str, Any], predictions: pd.DataFrame, page: Page | None = None) -> None:
    """Predictions, the report if there is one, and metrics.json: the last, it says that all is there."""
    write_predictions(predictions, folder / "predictions.csv")
    if page is not None:
        write_page(page, folder / "report.html")
    with written_whole(folder / "metrics.json") as unfinished:
        unfinished.write_text(json.dumps(metrics, indent=2), encoding="utf-8")
