"""The predictions table: one row an evaluated image. Every number of `evaluation/` comes from it alone.

| column           | meaning                                                                    |
| ---------------- | -------------------------------------------------------------------------- |
| the sample's own | `path`, `label` (the true class), `defective`, `split`, `defect_type` …    |
| `unit`           | number that images have in common which are not independent: copies, groups |
| `fold`, `repeat` | of a cross-validation: which of its models judged the image                |
| `prediction`     | name of the class the model chose                                          |
| `decision`       | accept, review or reject; where the model has decided (see decision.py)    |
| `p_<class name>` | float64 probability, one column a class, in the order of the logits        |
| `score`          | float64 probability of being defective: the sum over the defective classes |

Beside it go the `classes`: name -> whether it is defective, in the order of the logits.
"""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from defectcls.errors import UserError
from defectcls.files import written_whole
from defectcls.tables import DEFECTIVE, OPTIONAL_COLUMNS, SOUND, numbers, read_table, refuse

PROBABILITY = "p_"
ACCEPT, REVIEW, REJECT = "accept", "review", "reject"
TEXT_COLUMNS = ("path", "label", "prediction", *OPTIONAL_COLUMNS)


def probabilities_of(logits: np.ndarray) -> np.ndarray:
    """Softmax in float64, (images, classes); NaN where a logit is no finite number, as -inf would be a certain 0."""
    from scipy.special import softmax

    logits = logits.astype(np.float64)
    return softmax(np.where(np.isfinite(logits).all(1, keepdims=True), logits, np.nan), axis=1)


def predictions_table(samples: pd.DataFrame, probabilities: np.ndarray, classes: dict[str, bool]) -> pd.DataFrame:
    """Sample rows (n) joined with their probabilities (n, classes), in the same order.

    Raises:
        UserError: a column of the samples would be taken for one of the model's answers.
        ValueError: the shapes do not fit together.
    """
    answering = [name for name in map(str, samples) if name in ("prediction", "score") or name.startswith(PROBABILITY)]
    refuse(answering, "the sample table has columns that would be taken for a model's answers, rename them")
    probabilities = probabilities.astype(np.float64)
    answers = pd.DataFrame(probabilities, index=samples.index, columns=[PROBABILITY + name for name in classes])
    answers.insert(0, "prediction", np.array([*classes], object)[probabilities.argmax(axis=1)])
    answers["score"] = probabilities[:, [*classes.values()]].sum(axis=1).clip(max=1)  # rounding exceeds 1
    return samples.join(answers)


def groups_of(predictions: pd.DataFrame) -> np.ndarray:
    """Number of the images that each image belongs with, int (images,): its `unit`, or else its `group`.

    An image without one is one by itself.
    """
    rows = pd.Series(range(len(predictions)), predictions.index)
    column = next((column for column in ("unit", "group") if column in predictions), None)
    return pd.factorize(rows if column is None else predictions[column].where(predictions[column] != "", rows))[0]


def folds_of(predictions: pd.DataFrame) -> np.ndarray:
    """Number of the model that judged each image, int (images,): of its `fold` and `repeat`, 0 where it has none."""
    if "fold" not in predictions:
        return np.zeros(len(predictions), int)
    return predictions.groupby(["fold", *({"repeat"} & {*predictions.columns})]).ngroup().to_numpy()


def verdicts(predictions: pd.DataFrame, classes: dict[str, bool]) -> tuple[np.ndarray, np.ndarray]:
    """(flagged, rejected), bool (images,): not let through, and rejected without a look by a person.

    They differ only where the decision sends some images to review, in the column `decision`.
    """
    flagged = predictions["prediction"].isin([name for name in classes if classes[name]]).to_numpy(bool)
    return flagged, flagged & np.not_equal(predictions.get("decision", ""), REVIEW)


def class_names_of(predictions: pd.DataFrame) -> list[str]:
    """The class names in logit order, read from the probability columns."""
    return [column.removeprefix(PROBABILITY) for column in predictions.columns if column.startswith(PROBABILITY)]


def classes_of_table(predictions: pd.DataFrame) -> dict[str, bool]:
    """Class name -> whether it is defective, in logit order.

    A class without an image is defective where its probability is part of the score.
    """
    names = class_names_of(predictions)
    known = dict(zip(predictions["label"], predictions["defective"].astype(bool), strict=True))
    numbers = predictions[[*(PROBABILITY + name for name in names), "score"]].dropna().to_numpy()
    share = np.linalg.lstsq(numbers[:, :-1], numbers[:, -1])[0]
    return {name: known.get(name, bool(part > 0.5)) for name, part in zip(names, share, strict=True)}


def write_predictions(predictions: pd.DataFrame, path: Path) -> None:
    """Write CSV from which `read_predictions` restores every number to the bit; a reader never meets half a file."""
    with written_whole(path) as unfinished:
        # text in quotes: else a carriage return within a name would end the line
        predictions.to_csv(unfinished, index=False, quoting=csv.QUOTE_NONNUMERIC)


def read_predictions(path: Path) -> pd.DataFrame:
    """Read what `write_predictions` wrote, or another tool's CSV.

    Of another tool, `path`, `defective` (true or false) and `score` (the probability of being defective) are enough: it
    then tells sound from defective. With one `p_<class>` column a class it needs `label` too; `prediction` is the most
    probable class where there is no such column. Other columns are text.

    Raises:
        UserError: no such file, a column is missing, a value is none of what it must be, or an image stands there
            twice (in one `repeat`).
    """
    if not path.is_file():
        raise UserError(f"predictions={path} does not exist: give a CSV file")
    rows = read_table(path, ("defective", "score", *TEXT_COLUMNS))
    names = class_names_of(rows)
    missing = {"path", "defective", "label" if names else "score"} - {*rows}
    if missing or len(names) == 1:
        raise UserError(
            f"{path} is no predictions table, it lacks {', '.join(sorted(missing)) or 'a second class'}: it needs "
            f"path, defective and score, or path, defective, label and {PROBABILITY}<class name> for each class"
        )
    key = ["path", *rows.columns.intersection(["repeat"])]
    refuse(rows["path"][rows.duplicated(key)].unique(), f"{path} judges the same image more than once")
    given: dict[str, Any] = {"score": numbers(rows.pop("score"), path)} if "score" in rows else {}
    if names:
        probabilities = np.column_stack([numbers(rows.pop(PROBABILITY + name), path) for name in names])
    else:
        names, probabilities = [SOUND, DEFECTIVE], np.column_stack([1 - given["score"], given["score"]])
        rows["label"] = np.where(rows["defective"], DEFECTIVE, SOUND)
    if "prediction" in rows:
        given["prediction"] = rows.pop("prediction")
    answered = {*rows["label"], *given.get("prediction", ())}
    refuse(sorted(answered - {*names}), f"{path} has classes without a column {PROBABILITY}<class name>")
    defective = {*rows["label"][rows["defective"]]}
    return predictions_table(rows, probabilities, {name: name in defective for name in names}).assign(**given)
