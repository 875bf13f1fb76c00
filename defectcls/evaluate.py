"""Measure a trained model again, on its own test part or another dataset; or any table of predictions."""

from pathlib import Path
from typing import Any

from defectcls.training.command import run_verb


def evaluate(config: dict[str, Any], folder: Path) -> None:
    """Write metrics.json, predictions.csv, the pictures and the report."""
    from defectcls.settings import EvaluateSettings

    settings = EvaluateSettings(**config)
    from defectcls.pages.report import report_page
    from defectcls.training.results import provenance, write_results

    heat: dict[str, Any] = {}
    if settings.predictions is not None:
        from defectcls.data.splits import PARTS
        from defectcls.evaluation.evaluate import evaluate_table
        from defectcls.evaluation.predictions import read_predictions

        table = settings.predictions
        wanted = PARTS if settings.part in (None, "all") else (settings.part,)
        predictions, found = evaluate_table(read_predictions(table), str(table), settings.decision, wanted)
        metrics = {"dataset": table.stem, "model": "table of predictions"} | found | provenance(0, {})
        root = settings.root or table.parent
    else:
        from defectcls.training.evaluation_run import EvaluationRun
        from defectcls.training.inspection import inspect

        run = EvaluationRun(settings, folder)
        metrics, predictions = run.measure([run.part])
        with run.timed("inspect"):
            found, heat = inspect(run, predictions, settings.inspect)
        metrics |= found
        root = run.data.settings.root
    write_results(folder, metrics, predictions, report_page(metrics, predictions, root, heat=heat))


if __name__ == "__main__":
    run_verb("evaluate")
