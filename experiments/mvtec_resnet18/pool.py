"""Cross-validations as one table, each fold decided anew on its validation images.

python experiments/mvtec_resnet18/pool.py <table.csv> <policy> <cross-validation> …
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
from hydra import compose, initialize_config_dir

from defectcls.config import CONF_DIR
from defectcls.evaluation.evaluate import evaluate_table
from defectcls.evaluation.predictions import read_predictions
from defectcls.settings import DecisionSettings


def decided(runs: list[str], settings: DecisionSettings) -> Iterator[pd.DataFrame]:
    """The test images of each fold."""
    for run in runs:
        for file in sorted(Path(run).glob("repeat_*/fold_*/predictions.csv")):
            test, _ = evaluate_table(read_predictions(file), str(file), settings, ["test"])
            yield test.assign(unit=f"{run}/" + test["unit"].astype(str))  # what belongs together, within a run


if __name__ == "__main__":
    table, policy, *runs = sys.argv[1:]
    with initialize_config_dir(str(CONF_DIR / "decision"), version_base=None):
        settings = DecisionSettings.model_validate(compose(policy, ["escape_cost=2"]))
    pd.concat(decided(runs, settings)).to_csv(table, index=False)
