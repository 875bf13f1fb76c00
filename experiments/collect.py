"""Write a study's results.csv and the table of all studies: python experiments/collect.py <study> <run folder> …

Without arguments only experiments/README.md is written anew, from the results.csv of every study.
"""

import json
import sys
from pathlib import Path

import pandas as pd

HERE = Path(__file__).parent
NUMBERS = ("accuracy", "precision", "recall", "f1", "f1_macro", "auroc", "average_precision")
HEADLINE = {"railway_components": "f1_macro", "concrete_crack": "accuracy"}  # of the others: auroc


def row(metrics: dict) -> dict:
    """One run as a line of results.csv: test numbers, what was kept, and how it was made."""
    test = metrics["test"]
    numbers = {name: test.get(name, test.get("defect", {}).get(name)) for name in NUMBERS}
    kept = max((s for s in metrics["stages"] if not s["rolled_back"]), key=lambda stage: metrics["stages"].index(stage))
    return {
        "seed": metrics["seed"],
        "n_train": metrics["train"]["n"],
        "n_test": test["n"],
        **numbers,
        "kept": kept["name"],
        "seconds": round(sum(metrics["seconds"].values())),
        "commit": metrics["commit"],
        "hardware": metrics["hardware"],
        **{f"version_{name}": value for name, value in metrics["versions"].items()},
        "command": metrics["command"],
    }


def table() -> str:
    """The studies' headline numbers: mean over seeds ± standard deviation."""
    lines = ["| study | test | mean ± std over seeds | least | seconds a run |", "| --- | --- | --- | --- | --- |"]
    for file in sorted(HERE.glob("*/results.csv")):
        results, study = pd.read_csv(file), file.parent.name
        values = results[HEADLINE.get(study, "auroc")]
        name = HEADLINE.get(study, "auroc").replace("f1_macro", "macro F1").replace("auroc", "AUROC")
        spread = f"{values.mean():.4f} ± {values.std():.4f} ({len(values)} seeds)"
        seconds = f"{results['seconds'].mean():.0f}"
        lines.append(f"| [{study}]({study}) | {name} | {spread} | {values.min():.4f} | {seconds} |")
    return "\n".join(lines)


if __name__ == "__main__":
    if sys.argv[1:]:
        runs = [json.loads((Path(run) / "metrics.json").read_text(encoding="utf-8")) for run in sys.argv[2:]]
        rows = sorted(map(row, runs), key=lambda one: one["seed"])
        pd.DataFrame(rows).to_csv(Path(sys.argv[1]) / "results.csv", index=False)
    readme = HERE / "README.md"
    head = readme.read_text(encoding="utf-8").partition("| study |")[0]
    readme.write_text(f"{head}{table()}\n", encoding="utf-8")
    print(table())
