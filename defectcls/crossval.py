"""Cross-validate: every fold a run of its own, and the predictions of all of them judged as one."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from defectcls.config import job_command, parse, run_verb

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)


def crossval(config: dict[str, Any], folder: Path) -> None:
    """Train what is not finished yet; then write metrics.json, predictions.csv, the pictures and the report."""
    from defectcls.settings import CrossvalSettings

    settings = parse(CrossvalSettings, config)
    from defectcls.errors import UserError
    from defectcls.evaluation.judge import judge_folds
    from defectcls.model.hardware import find_device
    from defectcls.train import train_run
    from defectcls.training import results

    if settings.trainer.strategy != "auto":
        raise UserError("cross-validation trains on one device: leave trainer.strategy=auto")
    log.info("cross-validation in %s", folder)
    runs = []
    for repeat in range(settings.repeats):
        for fold in range(settings.folds):
            log.info("repeat %d of %d, fold %d of %d", repeat + 1, settings.repeats, fold + 1, settings.folds)
            of_fold = fold_config(config, folder, repeat, fold)
            run_folder = folder / f"repeat_{repeat}" / f"fold_{fold}"
            metrics = train_run(of_fold, run_folder) or {}  # never empty: one process
            runs.append((repeat, fold, metrics, fold_predictions(run_folder, metrics)))
    metrics, predictions = judge_folds(runs)
    metrics |= results.provenance(settings.seed, config, find_device(settings.trainer.accelerator))
    metrics["command"] = job_command()
    results.write_results(folder, metrics, predictions, results.draw(metrics, predictions, settings.dataset.root))
    results.print_results(folder, metrics)


def fold_predictions(folder: Path, metrics: dict[str, Any]) -> "pd.DataFrame":
    """The test images of a fold's predictions.csv.

    Raises:
        UserError: it is not what the fold wrote.
    """
    from defectcls.errors import UserError
    from defectcls.evaluation.predictions import read_predictions

    file = folder / "predictions.csv"
    try:
        predictions = read_predictions(file)
        tested = predictions[predictions["split"] == "test"]
        whole = len(tested) == metrics["test"]["n"] and set(tested["label"]) <= set(metrics["class_names"])
    except (UserError, ValueError, KeyError):
        whole = False
    if not whole:
        raise UserError(f"{file} is damaged: delete {folder / 'metrics.json'} too, and the fold is measured again")
    return tested


def fold_config(config: dict[str, Any], folder: Path, repeat: int, fold: int) -> dict[str, Any]:
    """The configuration of one fold's training run. A repeat deals the folds anew, with the next seed."""
    dataset, logger = config["dataset"], config["logger"]
    split = dataset["split"] | {"folds": config["folds"], "fold": fold}
    changed = {
        "dataset": dataset | {"split": split},
        "logger": logger | {"group": "/".join(folder.parts[-3:]), "job_type": "crossval"},
        "seed": config["seed"] + repeat,
    }
    return {key: value for key, value in (config | changed).items() if key not in ("folds", "repeats")}


if __name__ == "__main__":
    run_verb("crossval", crossval)
