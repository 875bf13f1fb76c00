"""The runs of some sweeps as runs.csv, and the table of README.md: python experiments/few_defects/collect.py <sweep> …

Without arguments only the table is printed.
"""

import json
import sys
from pathlib import Path

import pandas as pd

HERE = Path(__file__).parent


def row(metrics: dict) -> dict:
    """One run: how it was made, and its test numbers."""
    config = metrics["config"]
    return {
        "photos": " ".join([config["dataset"]["name"], *config["dataset"].get("categories", [])]),
        "image_size": config["image_size"],
        "anomalies": config["dataset"]["split"]["anomalies"],
        "head": config["model"]["head"],
        "seed": metrics["seed"],
        "n_train": metrics["train"]["n"],
        "n_test": metrics["test"]["n"],
        **{name: metrics["test"][name] for name in ("auroc", "average_precision", "recall", "overkill_rate")},
        "weight_memory": metrics.get("head", {}).get("memory"),
        "weight_classifier": metrics.get("head", {}).get("classifier"),
        "seconds_fit": metrics["seconds"]["probe"] + metrics["seconds"].get("memory", 0),
        "commit": metrics["commit"],
        "hardware": metrics["hardware"],
        **{f"version_{name}": value for name, value in metrics["versions"].items()},
        "command": metrics["command"],
    }


def table(runs: pd.DataFrame) -> str:
    """AUROC of both heads, mean ± standard deviation over seeds."""
    lines = ["| photos | px | defects shown | classifier | joined | least |", "| --- | --- | --- | --- | --- | --- |"]
    for (photos, size, anomalies), of_setting in runs.groupby(["photos", "image_size", "anomalies"]):
        values = {head: of_head["auroc"] for head, of_head in of_setting.groupby("head")}
        cells = [f"{values[head].mean():.4f} ± {values[head].std():.4f}" for head in ("linear", "joined")]
        lines.append(f"| {photos} | {size} | {anomalies} | {' | '.join(cells)} | {values['joined'].min():.4f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    if sys.argv[1:]:
        found = [file for sweep in sys.argv[1:] for file in sorted(Path(sweep).glob("*/metrics.json"))]
        rows = [row(json.loads(file.read_text(encoding="utf-8"))) for file in found]
        by = ["photos", "image_size", "anomalies", "head", "seed"]
        pd.DataFrame(rows).sort_values(by).to_csv(HERE / "runs.csv", index=False)
    print(table(pd.read_csv(HERE / "runs.csv")))
