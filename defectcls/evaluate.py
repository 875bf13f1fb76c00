"""Measure a trained model again, on its own test part or another dataset; or any table of predictions."""

from pathlib import Path
from typing import Any

from defectcls.training.command import run_verb


def evaluate(config: dict[str, Any], folder: Path) -> None:
    """Write metrics.json, predictions.csv, the pictures and the report."""
    from defectcls.training.settings import EvaluateSettings

    settings = EvaluateSettings(**config)
    if settings.audited is not None:
        _audited(settings, folder)
        return
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


def _audited(settings: Any, folder: Path) -> None:
    """Write audited.json, audited.html and plan.csv."""
    from defectcls.deployment.decisions import audited_photos
    from defectcls.deployment.predictor import load
    from defectcls.evaluation.audited import audit
    from defectcls.pages.audited import audited_page
    from defectcls.pages.render import write_and_print

    predictor = load(settings.checkpoint, settings.device, settings.precision)
    of = predictor.classes, predictor.about["digest"]
    photos, disputed = audited_photos(settings.audited, *of, settings.since)
    promised = (one.target for one in predictor.decision.promises if one.rate == "escape_rate")
    found, plan = audit(photos, predictor.decision.accept_below, settings.at_most, next(promised, None))
    found |= {"audited": settings.audited, "checkpoint": str(settings.checkpoint), "disputed": disputed}
    plan[["photo", "name", "score", "chance"]].to_csv(folder / "plan.csv", index=False)
    write_and_print(audited_page(found, folder / "plan.csv"), found, folder / "audited.html")


if __name__ == "__main__":
    run_verb("evaluate")
