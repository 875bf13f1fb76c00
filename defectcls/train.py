"""Train a classifier, measure it, and leave a report: python -m defectcls.train dataset=<name> model=<name>."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from defectcls.training.command import run_verb


def train(config: dict[str, Any], folder: Path, more: Callable[[], dict[str, Any]] = dict) -> float | None:
    """One run, in its own folder; a finished one is only shown again. Its objective is what a sweeper is told.
    `more` makes what metrics.json says besides.
    """
    from defectcls.settings import TrainSettings

    settings = TrainSettings(**config)  # a wrong type is told before the seconds that torch takes to import
    import pandas as pd

    from defectcls.pages.render import print_page
    from defectcls.pages.report import report_page
    from defectcls.training.results import finished_metrics, objective_of, write_results

    if (metrics := finished_metrics(folder)) is not None:
        print("this run is finished:")
        print_page(report_page(metrics), folder / "report.html")
        return objective_of(metrics, settings.objective)
    from defectcls.training.inspection import inspect
    from defectcls.training.loggers import dashboard, log_results
    from defectcls.training.run import TrainingRun

    objective_of({}, settings.objective)  # a typo is told now
    with dashboard(settings.logger, folder, settings.model_dump(mode="json")) as logger:
        run = TrainingRun(settings, folder, logger)
        run.train()
        metrics, predictions = run.measure()
        if run.trainer.is_global_zero:
            test, root = predictions[predictions["split"] == "test"], settings.dataset.root
            with run.timed("inspect"):
                found, heat = inspect(run, test, settings.inspect)
            metrics |= found | more()
            page = report_page(metrics, predictions, root, pd.DataFrame(run.record.history), heat)
            write_results(folder, metrics, predictions, page)
            log_results(logger, folder, metrics, test)
        run.close()
    return objective_of(metrics, settings.objective)


if __name__ == "__main__":
    run_verb("train")
