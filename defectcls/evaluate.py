"""Measure a trained model again, on its own test part or on another dataset."""

from pathlib import Path
from typing import Any

from defectcls.config import parse, run_verb


def evaluate(config: dict[str, Any], folder: Path) -> None:
    """Write metrics.json, predictions.csv, the pictures and the report of one part of a dataset."""
    from defectcls.settings import EvaluateSettings

    settings = parse(EvaluateSettings, config)
    import pandas as pd

    from defectcls import results
    from defectcls.run import EvaluationRun

    run = EvaluationRun(settings, folder)
    metrics, predictions = run.measure()
    results.write_results(folder, metrics, predictions, pd.DataFrame(), run.data.settings.root)
    results.print_results(folder, metrics)


if __name__ == "__main__":
    run_verb("evaluate", evaluate)
