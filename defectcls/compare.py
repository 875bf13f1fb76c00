"""Which run is better, and whether chance explains it: python -m defectcls.compare <run> <run>."""

import os
from pathlib import Path
from typing import Any

from defectcls.errors import UserError
from defectcls.training.command import run_verb


def compare(config: dict[str, Any], folder: Path) -> None:
    """Print what was found, and write compare.json and compare.html."""
    from defectcls.evaluation.comparison import CompareSettings, compare_predictions, unseen

    settings = CompareSettings(**config)
    files = [path / "predictions.csv" if path.is_dir() else path for path in settings.runs]
    if missing := [file for file in files if not file.is_file()]:
        raise UserError(f"{missing[0]} does not exist: give the folder of a finished run or a predictions CSV")
    names = short_names(files := [file.resolve() for file in files])
    from defectcls.evaluation.predictions import read_predictions
    from defectcls.pages.comparison import comparison_page
    from defectcls.pages.render import write_and_print

    tables, counts = unseen({name: read_predictions(file) for name, file in zip(names, files, strict=True)})
    found = counts | compare_predictions(
        tables, list(settings.metrics), settings.level, settings.resamples, settings.seed
    )
    page = comparison_page(found)
    found |= {"runs": dict(zip(names, map(str, files), strict=True)), "verdict": page.said("verdict")}
    write_and_print(page, found, folder / "compare.html")


def short_names(files: list[Path]) -> list[str]:
    """The path of each run's folder or CSV from where they part.

    Raises:
        UserError: a file is given twice.
    """
    if twice := [file for file in files if files.count(file) > 1]:
        raise UserError(f"{twice[0]} is given twice: compare different runs")
    paths = [file.parent if file.name == "predictions.csv" else file for file in files]
    return [str(path.relative_to(os.path.commonpath(paths))) for path in paths]


if __name__ == "__main__":
    run_verb("compare")
