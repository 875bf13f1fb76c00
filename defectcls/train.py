"""Train a classifier, measure it, and leave a report: python -m defectcls.train dataset=<name> model=<name>."""

from pathlib import Path
from typing import Any

from defectcls.config import parse, run_verb


def train(config: dict[str, Any], folder: Path) -> None:
    """One run, in its own folder; a finished one is only shown again."""
    import json

    from defectcls.settings import TrainSettings

    settings = parse(TrainSettings, config)  # a wrong type is told before the seconds that torch takes to import
    from defectcls import results
    from defectcls.loggers import build_logger, finish, log_results
    from defectcls.run import TrainingRun

    finished = folder / "metrics.json"
    if finished.is_file():
        print("this run is finished:")
        results.print_results(folder, json.loads(finished.read_text(encoding="utf-8")))
        return
    logger, failed = build_logger(settings.logger, folder, config), True
    try:
        run = TrainingRun(settings, config, folder, logger)
        run.train()
        metrics, predictions = run.measure()
        if run.trainer.is_global_zero:
            test = predictions[predictions["split"] == "test"]
            log_results(logger, metrics, test, settings.dataset.root, settings.logger.table_rows)
            results.write_results(folder, metrics, predictions, run.record.table(), settings.dataset.root)
            results.print_results(folder, metrics)
        run.close()
        failed = False
    finally:
        finish(logger, failed)


if __name__ == "__main__":
    run_verb("train", train)
