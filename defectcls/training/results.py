"""What a run leaves in its folder, and what another person needs to repeat it."""

import contextlib
import io
import json
import os
import platform
import re
import subprocess
import sys
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd

from defectcls.config import job_command
from defectcls.errors import UserError, did_you_mean
from defectcls.evaluation.metrics import METRICS, defect_numbers, records
from defectcls.evaluation.predictions import read_predictions, write_predictions
from defectcls.files import read_json, written_whole
from defectcls.pages.blocks import Page
from defectcls.pages.render import print_page, write_page

PACKAGES = "defectcls torch torchvision lightning timm torchmetrics hydra-core scikit-learn onnxruntime"


def finished_metrics(folder: Path, part: str = "test") -> dict[str, Any] | None:
    """What `write_results` left of a run that is finished and measured on `part`.

    Raises:
        UserError: it is damaged.
    """
    file, remedy = folder / "metrics.json", "delete it and resume the run, which measures it again"
    return read_json(file, remedy, ("dataset", "model", "seed", "class_names", part)) if file.is_file() else None


def epochs_of(folder: Path) -> pd.DataFrame:
    """What a job has told of its epochs, without the probe; nothing while it is being written."""
    file = folder / "metrics.csv"
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    rows = pd.read_csv(io.StringIO(text)) if text.endswith("\n") else pd.DataFrame({"epoch": []})
    return rows[rows["epoch"] > 0]


def objective_of(metrics: dict[str, Any], objective: str | None) -> float | None:
    """The number <part>/<name> of metrics.json, sound against defective; None where it is undefined.

    Raises:
        UserError: there is no such number.
    """
    if objective is None:
        return None
    part, _, name = objective.partition("/")
    if part not in ("train", "val", "test") or name not in METRICS:
        near = did_you_mean(name, METRICS) or f", such as val/auroc; names are {', '.join(METRICS)}"
        raise UserError(f"objective={objective} is no <train, val or test>/<name of a number>{near}")
    return defect_numbers(metrics[part]).get(name) if metrics else None


def finished_run(key: str, run: Path) -> tuple[dict[str, Any], pd.DataFrame]:
    """metrics.json and the predictions table of a run that `key` names.

    Raises:
        UserError: it is not finished, or of a version that kept no digests of photos.
    """
    if (metrics := finished_metrics(run)) is None:
        raise UserError(f"{key}={run} is no folder of a finished run that was tested")
    table = read_predictions(run / "predictions.csv")
    if "photo" not in table:
        raise UserError(f"{key}={run} is of a version that kept no digests of photos: train it again")
    return metrics, table


def since_run(
    metrics: dict[str, Any], table: pd.DataFrame, samples: pd.DataFrame
) -> tuple[dict[Any, str], dict[str, Any]]:
    """The part of each photo in a finished run, by its digest, but for what was judged out of fold; and what is new."""
    known = table.drop_duplicates("photo").set_index("photo")
    parts = known["split"][~known["split"].isin([*metrics.get("out_of_fold", ["test"])])]
    before, tested = samples["photo"].map(known["label"]), samples["photo"][samples["photo"].map(parts) == "test"]
    changed = samples.assign(before=before)[before.notna() & (before != samples["label"])]
    gone = ~known.index.isin(samples["photo"])
    found = {"new": int(before.isna().sum()), "gone": int(gone.sum()), "tested": tested.nunique()}
    return dict(parts), found | {"relabelled": records(changed[["path", "before", "label"]])}


def write_results(folder: Path, metrics: dict[str, Any], predictions: pd.DataFrame, page: Page | None = None) -> None:
    """Predictions, the report if there is one, which is shown too, and last metrics.json: it says that all is there."""
    write_predictions(predictions, folder / "predictions.csv")
    if page is not None:
        write_page(page, folder / "report.html")
    with written_whole(folder / "metrics.json") as unfinished:
        unfinished.write_text(json.dumps(metrics, indent=2), encoding="utf-8")
    if page is not None:
        print_page(page, folder / "report.html")


def provenance(seed: int, config: dict[str, Any], device: object = None) -> dict[str, Any]:
    """Command, configuration, code, versions and hardware, for metrics.json and its kin.

    Args:
        device: of torch, or its name, that computed it; None where no network did.
    """
    return {
        "command": job_command(),
        "date": datetime.now().astimezone().isoformat(timespec="minutes"),
        "seed": seed,
        "versions": versions(),
        "commit": commit(),
        "hardware": device_name(device),
        "config": config,
    }


def versions() -> dict[str, str]:
    """Of Python and of the packages that are installed here."""
    found = {"python": platform.python_version()}
    for package in PACKAGES.split():
        with contextlib.suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def device_name(device: object) -> str:
    """Model of the GPU, or of the processor with the number of threads."""
    torch = sys.modules.get("torch")  # what has not needed it needs no second to name its threads
    if torch and str(device).startswith("cuda"):
        return torch.cuda.get_device_name(torch.device(device))
    info = Path("/proc/cpuinfo")  # Python itself knows the processor on some systems only
    name = re.search(r"model name\s*: (.*)", info.read_text()) if info.is_file() else None
    threads = torch.get_num_threads() if torch else os.cpu_count()
    return f"{name[1] if name else platform.processor()}, {threads} threads"


def commit() -> str | None:
    """Commit of the checkout that this code runs from, `-dirty` where it was edited; None for an installed wheel."""
    checkout = Path(__file__).parents[2]
    if not (checkout / "pyproject.toml").is_file():
        return None
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--exclude=*", "--abbrev=12"]
    with contextlib.suppress(OSError):  # no git
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None
    return None
