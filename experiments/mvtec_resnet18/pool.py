"""Cross-validations of several products as one table, as they were decided.

python experiments/mvtec_resnet18/pool.py <table.csv> <cross-validation> …
"""

import sys
from pathlib import Path

import pandas as pd

from defectcls.evaluation.predictions import read_predictions

table, *runs = sys.argv[1:]
tables = [read_predictions(Path(run, "predictions.csv")) for run in runs]
named = [one.assign(unit=f"{run}/" + one["unit"].astype(str)) for one, run in zip(tables, runs, strict=True)]
pd.concat(named).to_csv(table, index=False)  # what belongs together, belongs together within a product
