"""Train a classifier, measure it, and leave a report: python -m defectcls.train dataset=<name> model=<name>."""

from pathlib import Path
from typing import Any

from defectcls.config import parse, run_verb


def train(config: dict[str, Any], folder: Path) -> None:
    """One run, in its own folder; a finished one is only shown again."""
    finished = (folder / "metrics.json").is_file()
    metrics = train_run(config, folder)
    if metrics is not None:
        from defectcls.training.results import print_results

        if finished:
            print("this run is finished:")
        print_results(folder, metrics)


def train_run(config: dict[str, Any], folder: Path) -> dict[str, Any] | None:
    """metrics.json of a run, trained unless it is finished; None in all but the first process of a distributed one."""
    from defectcls.settings import TrainSettings

    settings = parse(TrainSettings, config)  # a wrong type is told before the seconds that torch takes to import
    from defectcls.files import read_json
    from defectcls.training import results
    from defectcls.training.inspection import inspect
    from defectcls.training.loggers import build_logger, finish, log_results
    from defectcls.training.run import TrainingRun

    finished = folder / "metrics.json"
    if finished.is_file():
        remedy = "delete it and resume the run, which measures it again"
        return read_json(finished, remedy, ("dataset", "model", "seed", "class_names", "test"))
    folder.mkdir(parents=True, exist_ok=True)
    logger, failed = build_logger(settings.logger, folder, config), True
    try:
        run = TrainingRun(settings, config, folder, logger)
        run.train()
        metrics, predictions = run.measure()
        leads = run.trainer.is_global_zero
        if leads:
            test = predictions[predictions["split"] == "test"]
            found, heat = inspect(run, test, settings.inspect)
            metrics |= found
            root = settings.dataset.root
            pictures = results.draw(metrics, predictions, root, run.record.table(), heat)
            results.write_results(folder, metrics, predictions, pictures)
            log_results(logger, metrics, test, pictures, root, settings.logger.table_rows)
        run.close()
        failed = False
    finally:
        finish(logger, failed)
    return metrics if leads else None


if __name__ == "__main__":
    run_verb("train", train)
