"""Write results.csv and differences.csv of this study: python experiments/leaks/collect.py <folder>

It holds the cross-validations in folders called <dataset>_<split>, as README.md says.
"""

import json
import sys
from pathlib import Path

import pandas as pd

from defectcls.compare import test_rows
from defectcls.evaluation.comparison import compare_predictions

HERE = Path(__file__).parent
NUMBERS = ("accuracy", "recall", "overkill_rate", "auroc")


def row(folder: Path) -> dict:
    """One cross-validation: its pooled numbers with their intervals, and how it was made."""
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    dataset, _, split = folder.name.rpartition("_")
    found = {"dataset": dataset, "split": split, "images": metrics["test"]["n"]}
    for name in NUMBERS:
        low, high = metrics["test"]["intervals"][name]
        found |= {name: metrics["test"][name], f"{name}_low": low, f"{name}_high": high}
    versions = {f"version_{name}": version for name, version in metrics["versions"].items()}
    made = {name: metrics[name] for name in ("seed", "commit", "hardware")}
    made["command"] = " ".join(word for word in metrics["command"].split() if not word.startswith("dataset.root="))
    return found | made | versions


def differences(folder: Path, results: pd.DataFrame) -> pd.DataFrame:
    """What each random split promises beyond each other one, on the same images: percentage points or AUROC."""
    rows = []
    for dataset, others in results[results["split"] != "random"].groupby("dataset")["split"]:
        for split in others:
            tables = {one: test_rows(folder / f"{dataset}_{one}" / "predictions.csv") for one in ("random", split)}
            found = compare_predictions(tables, list(NUMBERS)).differences
            rows += [{"dataset": dataset, "split": split} | one._asdict() | {"better": one.better} for one in found]
    return pd.DataFrame(rows)


if __name__ == "__main__":
    runs = Path(sys.argv[1])
    table = pd.DataFrame([row(file.parent) for file in sorted(runs.glob("*/metrics.json"))])
    table.to_csv(HERE / "results.csv", index=False)
    differences(runs, table).to_csv(HERE / "differences.csv", index=False)
    print(table[["dataset", "split", *NUMBERS]].to_string(index=False))
