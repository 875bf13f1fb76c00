"""Cross-validate: every fold a run of its own, and the predictions of all of them judged as one."""

import itertools
import logging
from pathlib import Path
from typing import Any

from defectcls.errors import UserError
from defectcls.training.command import run_verb

log = logging.getLogger(__name__)


def crossval(config: dict[str, Any], folder: Path) -> None:
    """Train what is not finished yet; then write metrics.json, predictions.csv, the pictures and the report.

    The images are listed, read and compared once for all folds; a fold leaves its numbers and its checkpoints, and no
    page. A dashboard is told of the whole.
    """
    from defectcls.settings import TrainSettings
    from defectcls.training.settings import CrossvalSettings

    settings = CrossvalSettings(**config)
    if settings.trainer.strategy != "auto":
        raise UserError("cross-validation trains on one device: leave trainer.strategy=auto")
    from defectcls.evaluation.evaluate import evaluate_folds
    from defectcls.evaluation.predictions import read_predictions
    from defectcls.model.hardware import find_device
    from defectcls.pages.report import report_page
    from defectcls.training.loggers import dashboard, log_results
    from defectcls.training.results import finished_metrics, provenance, write_results
    from defectcls.training.run import TrainingRun

    runs, data = [], None
    with dashboard(settings.logger, folder, config) as logger:
        for repeat, fold in itertools.product(range(settings.repeats), range(settings.folds)):
            log.info("repeat %d of %d, fold %d of %d", repeat + 1, settings.repeats, fold + 1, settings.folds)
            of_fold, run_folder = fold_config(config, repeat, fold), folder / f"repeat_{repeat}" / f"fold_{fold}"
            metrics = finished_metrics(run_folder)
            if metrics is None:
                run = TrainingRun(TrainSettings(**of_fold), run_folder, None, data)
                data = run.data
                run.train()
                metrics, predictions = run.measure(["test"])
                write_results(run_folder, metrics, predictions)
            runs.append((repeat, fold, metrics, read_predictions(run_folder / "predictions.csv")))
        metrics, predictions = evaluate_folds(runs)
        metrics |= provenance(settings.seed, config, find_device(settings.trainer.accelerator))
        write_results(folder, metrics, predictions, report_page(metrics, predictions, settings.dataset.root))
        log_results(logger, folder, metrics, predictions)


def fold_config(config: dict[str, Any], repeat: int, fold: int) -> dict[str, Any]:
    """The configuration of one fold's training run. A repeat deals the folds anew, with the next seed."""
    dataset = config["dataset"]
    split = dataset["split"] | {"folds": config["folds"], "fold": fold}
    changed = {"dataset": dataset | {"split": split}, "seed": config["seed"] + repeat}
    return {key: value for key, value in (config | changed).items() if key not in ("folds", "repeats")}


if __name__ == "__main__":
    run_verb("crossval")
