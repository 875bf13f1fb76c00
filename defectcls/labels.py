"""Take labels to another tool, or back: python -m defectcls.labels input=<labels> output=<file> format=<tool>."""

import json
from pathlib import Path
from typing import Any

from defectcls.training.command import run_verb


def labels(config: dict[str, Any], folder: Path) -> None:  # noqa: ARG001  of what it keeps nothing
    """Write what the tool takes, or a .csv of verdicts from what it has given."""
    from defectcls.data.exchange import FORMATS, LabelsSettings, read_labels

    settings = LabelsSettings(**config)
    from defectcls.evaluation.predictions import write_predictions
    from defectcls.files import refuse_output
    from defectcls.tables import refuse

    output, given, (suffix, write, _) = settings.output, settings.input, FORMATS[settings.format]
    back = output.suffix.lower() == ".csv"
    refuse_output(output, ".csv" if back else suffix or output.suffix.lower(), settings.overwrite)
    rows = read_labels(given, settings.format if back else None, settings.root)
    if settings.labels is not None:
        refuse({*rows["label"]} - {*settings.labels}, f"input={given} has labels that labels= does not name")
    if back:
        write_predictions(rows[["photo", "label", "name", "split"]], output)
    else:
        refuse(rows["name"][rows["name"].duplicated()], f"input={given} has more than one label of")
        content = write(rows.to_dict("records"), output, settings.root or Path())
        if content is not None:
            output.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
    print(f"{len(rows)} labels of {rows['photo'].nunique()} photos: {output}")


if __name__ == "__main__":
    run_verb("labels")
