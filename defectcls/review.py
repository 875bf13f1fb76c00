"""Look at photos one by one and say what they are, in the browser: those of a folder, of a table, or of a line."""

from pathlib import Path
from typing import Any

from defectcls.training.command import run_verb


def review(config: dict[str, Any], folder: Path) -> int:
    """Serve the page /review until Ctrl-C or SIGTERM; the next start goes on in the folder."""
    from defectcls.data.inputs import TABLES, list_inputs
    from defectcls.deployment.line import DOUBTED
    from defectcls.evaluation.predictions import classes_of_table, read_predictions
    from defectcls.pages.photos import worst_errors
    from defectcls.serve import serve

    if (given := config.pop("input")) is None:
        return serve(config, folder, "/review")
    place, root = Path(given), config["root"] and Path(config["root"])
    table = place.is_file() and place.suffix.lower() in TABLES
    photos = list_inputs(given, root if table else None)
    if place.name == "predictions.csv":  # of a run: its errors
        rows = read_predictions(place)
        photos = photos._replace(names=[*worst_errors(rows, classes_of_table(rows), len(rows))["path"]])
    return serve(config, folder, "/review", (photos, f"{DOUBTED if table else 'folder'}:{place.stem}"))


if __name__ == "__main__":
    run_verb("review")
