"""Measure a trained model again, on its own test part or another dataset; or any table of predictions."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from defectcls.config import parse, run_verb

if TYPE_CHECKING:
    import pandas as pd

    from defectcls.settings import EvaluateSettings


def evaluate(config: dict[str, Any], folder: Path) -> None:
    """Write metrics.json, predictions.csv, the pictures and the report."""
    from defectcls.settings import EvaluateSettings

    settings = parse(EvaluateSettings, config)
    from defectcls import results

    heat: dict[str, Any] = {}
    if settings.predictions is not None:
        metrics, predictions = measure_table(settings.predictions, settings)
        root = settings.root or settings.predictions.parent
    else:
        from defectcls.inspection import inspect
        from defectcls.run import EvaluationRun

        run = EvaluationRun(settings, folder)
        metrics, predictions = run.measure()
        found, heat = inspect(run, predictions, settings.inspect)
        metrics |= found
        root = run.data.settings.root
    results.write_results(folder, metrics, predictions, results.draw(metrics, predictions, root, heat=heat))
    results.print_results(folder, metrics)


def measure_table(table: Path, settings: "EvaluateSettings") -> tuple[dict[str, Any], "pd.DataFrame"]:
    """metrics.json and the rows of a predictions table, decided anew on its validation rows where settings say so.

    Thresholds are in the table's own scores, which no temperature scales.

    Raises:
        UserError: no such table, a score that is no probability, or no row of the split val to decide on.
    """
    import pandas as pd

    from defectcls.config import job_command
    from defectcls.data.splits import PARTS
    from defectcls.errors import UserError
    from defectcls.evaluation.decision import choose_decision
    from defectcls.evaluation.judge import judge
    from defectcls.evaluation.predictions import classes_of_table, read_predictions
    from defectcls.results import provenance

    predictions = read_predictions(table)
    wrong = predictions[~predictions["score"].between(0, 1)]
    if len(wrong):
        row = wrong.iloc[0]
        raise UserError(
            f"{table}: the score of {row['path']} is {row['score']:g}, and of {len(wrong)} rows no probability: "
            "it must be from 0 (sound) to 1 (defective)"
        )
    classes = classes_of_table(predictions)
    split = predictions["split"] if "split" in predictions else pd.Series("test", predictions.index)
    decision = None
    if settings.decision is not None:
        validation = predictions[split == "val"]
        if validation.empty:
            raise UserError(f"a decision is chosen on validation images, and {table} has no row with split val")
        in_its_own_scores = settings.decision.model_copy(update={"calibrate": False})
        decision = choose_decision(in_its_own_scores, validation, *classes)
    wanted = [settings.part] if settings.part not in (None, "all") else PARTS
    judged = {part: judge(predictions[split == part], decision, *classes) for part in wanted if (split == part).any()}
    if not judged:
        raise UserError(f"{table} has no row with split {' or '.join(wanted)}")
    names, defective = classes
    metrics = {
        "dataset": table.stem,
        "model": "table of predictions",
        **{part: numbers for part, (_, numbers) in judged.items()},
        "class_names": names,
        "defective_classes": defective,
        "decision": decision and decision.plain(),
        "command": job_command(),
        **provenance(0, {}),
    }
    return metrics, pd.concat([rows for rows, _ in judged.values()]).sort_index()


if __name__ == "__main__":
    run_verb("evaluate", evaluate)
