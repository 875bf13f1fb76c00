"""The predictions table: one row an evaluated image. Every number and picture in `evaluation/` comes from it alone.

| column           | meaning                                                                    |
| ---------------- | -------------------------------------------------------------------------- |
| the sample's own | `path`, `label` (the true class), `defective`, `split`, `defect_type` …    |
| `prediction`     | name of the class the model chose                                          |
| `p_<class name>` | float64 probability, one column a class, in the order of the logits        |
| `score`          | float64 probability of being defective: the sum over the defective classes |
"""

import csv
from pathlib import Path

import numpy as np
import pandas as pd

from defectcls.data.samples import OPTIONAL_COLUMNS
from defectcls.errors import UserError

PROBABILITY = "p_"
TEXT_COLUMNS = ("path", "label", "prediction", *OPTIONAL_COLUMNS)
REQUIRED_COLUMNS = ("path", "label", "defective", "prediction", "score")


def predictions_table(
    samples: pd.DataFrame, probabilities: np.ndarray, class_names: list[str], defective_classes: list[bool]
) -> pd.DataFrame:
    """Sample rows (n) joined with their probabilities (n, classes), in the same order.

    Raises:
        UserError: a column of the samples would be taken for one of the model's answers.
        ValueError: the shapes do not fit together.
    """
    if probabilities.shape != (len(samples), len(class_names)):
        raise ValueError(f"{probabilities.shape=} for {len(samples)} samples of {len(class_names)} classes")
    for column in samples.columns:
        if column in ("prediction", "score") or column.startswith(PROBABILITY):
            raise UserError(f"the sample table's column '{column}' would be taken for a model's answer: rename it")
    probabilities = probabilities.astype(np.float64)
    answers = pd.DataFrame(probabilities, index=samples.index, columns=[PROBABILITY + name for name in class_names])
    answers.insert(0, "prediction", [class_names[index] for index in probabilities.argmax(axis=1)])
    answers["score"] = probabilities[:, defective_classes].sum(axis=1).clip(max=1)  # rounding exceeds 1
    return samples.join(answers)


def class_names_of(predictions: pd.DataFrame) -> list[str]:
    """The class names in logit order, read from the probability columns."""
    return [column.removeprefix(PROBABILITY) for column in predictions.columns if column.startswith(PROBABILITY)]


def write_predictions(predictions: pd.DataFrame, path: Path) -> None:
    """Write CSV from which `read_predictions` restores every bit; a reader never meets half a file."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        # text in quotes: else a carriage return within a name would end the line
        predictions.to_csv(temporary, index=False, quoting=csv.QUOTE_NONNUMERIC)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_predictions(path: Path) -> pd.DataFrame:
    """Read what `write_predictions` wrote, or another tool's CSV with the same columns.

    Raises:
        UserError: a column is missing.
    """
    columns = pd.read_csv(path, nrows=0).columns
    numbers = [column for column in columns if column.startswith(PROBABILITY)] + ["score"]
    missing = [column for column in REQUIRED_COLUMNS if column not in columns]
    if missing or len(numbers) < 3:
        needed = ", ".join((*REQUIRED_COLUMNS, f"and {PROBABILITY}<class name> for two classes or more"))
        raise UserError(f"{path} is no predictions table: its columns are {', '.join(columns)}; it needs {needed}")
    return pd.read_csv(
        path,
        dtype={**dict.fromkeys(TEXT_COLUMNS, str), "defective": bool},
        keep_default_na=False,  # a class may be called "NA" or "null"
        # Python's float is exact; that of pandas 2 is not, and its option for it is deprecated in pandas 3
        converters=dict.fromkeys(numbers, lambda text: float(text or "nan")),
    ).astype(dict.fromkeys(numbers, np.float64))  # of an empty table too
