"""What a run leaves: metrics.json, predictions.csv, the pictures and report.html."""

import json
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.console import Console
from rich.table import Table

from defectcls.evaluation.pictures import plot_confusion_matrix, plot_curves, plot_predictions, png
from defectcls.evaluation.predictions import write_predictions
from defectcls.evaluation.report import judged_split, render_report, verdict

PACKAGES = ("defectcls", "torch", "torchvision", "lightning", "timm", "torchmetrics", "hydra-core", "scikit-learn")
SHOWN = ("n", "accuracy", "precision", "recall", "f1", "f1_macro", "auroc")


def write_results(
    folder: Path, metrics: dict[str, Any], predictions: pd.DataFrame, history: pd.DataFrame, root: Path
) -> None:
    """Write all of contract 5; metrics.json comes last, so that it says that the run is finished."""
    names = metrics["class_names"]
    write_predictions(predictions, folder / "predictions.csv")
    figures = {
        "confusion_matrix": png(plot_confusion_matrix(metrics[judged_split(metrics)]["confusion_matrix"], names)),
        "predictions": png(plot_predictions(predictions, root, names)),
    }
    if not history.empty:
        figures["curves"] = png(plot_curves(history))
    for name, content in figures.items():
        (folder / f"{name}.png").write_bytes(content)
    (folder / "report.html").write_text(render_report(metrics, predictions, figures), encoding="utf-8")
    unfinished = folder / "metrics.json.part"
    unfinished.write_text(json.dumps(metrics, indent=2), encoding="utf-8")
    unfinished.replace(folder / "metrics.json")


def print_results(folder: Path, metrics: dict[str, Any]) -> None:
    """The result table, the verdict and where the report lies, on stdout."""
    parts = [part for part in ("baseline", "train", "val", "test") if part in metrics]
    table = Table("", *parts, title=f"{metrics['dataset']} · {metrics['model']} · seed {metrics['seed']}")
    for name in SHOWN:
        values = [metrics[part].get(name, metrics[part].get("defect", {}).get(name)) for part in parts]
        if any(value is not None for value in values):
            table.add_row(name, *("–" if v is None else f"{v:.4f}" if isinstance(v, float) else str(v) for v in values))
    console = Console(soft_wrap=True, highlight=False)
    console.print(table)
    console.print(f"{verdict(metrics)}\nreport: {folder / 'report.html'}")


def provenance(seed: int, config: dict[str, Any]) -> dict[str, Any]:
    """What a result needs so that another person can repeat it."""
    device = (
        torch.cuda.get_device_name() if torch.cuda.is_available() else f"{_cpu()}, {torch.get_num_threads()} threads"
    )
    return {
        "seed": seed,
        "versions": {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}},
        "commit": _commit(),
        "hardware": device,
        "config": json.loads(json.dumps(config, default=str)),
    }


def _cpu() -> str:
    """Model name of the processor; Python itself knows it on some systems only."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def _commit() -> str | None:
    """Commit of the checkout that this code runs from, `-dirty` where it was edited; None for an installed wheel."""
    checkout = Path(__file__).parents[1]
    if not (checkout / "pyproject.toml").is_file():
        return None
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--exclude=*", "--abbrev=12"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return result.stdout.strip() or None
