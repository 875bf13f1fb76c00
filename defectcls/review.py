"""Look at photos one by one and say what they are: a queue in the browser, of a folder, a table, or a line's store."""

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

    given = config.pop("input")
    if given is None:
        return serve(config, folder, page="/review")
    root, place = config["root"] and Path(config["root"]), Path(given)
    table = place.is_file() and place.suffix.lower() in TABLES
    photos = list_inputs(given, root if table else None)
    if place.name == "predictions.csv":  # of a run: its errors
        rows = read_predictions(place)
        photos = photos._replace(names=worst_errors(rows, classes_of_table(rows), len(rows))["path"].tolist())
    return serve(config, folder, (f"{DOUBTED if table else 'folder'}:{place.stem}", photos), "/review")


if __name__ == "__main__":
    run_verb("review")
