"""Evaluations on other datasets as measured.csv, and README.md's table: python … <folder of an evaluation or run> …

Without arguments only the table is printed.
"""

import json
import re
import sys
from pathlib import Path

import pandas as pd

HERE = Path(__file__).parent
NUMBERS = ("auroc", "recall", "overkill_rate")


def row(metrics: dict) -> dict:
    """A run on its own test part, or its evaluation on another dataset."""
    test, where = metrics["test"], metrics.get("elsewhere", {})
    line = {
        "trained_on": where.get("trained_on", metrics["dataset"]),
        "judged_on": where.get("judged_on", metrics["dataset"]),
        "n_test": test["n"],
    }
    for name in NUMBERS:
        low, high = test["intervals"][name]
        line |= {name: test[name], f"{name}_low": low, f"{name}_high": high}
    return line | {
        "seed": metrics["seed"],
        "commit": metrics["commit"],
        "hardware": metrics["hardware"],
        **{f"version_{name}": value for name, value in metrics["versions"].items()},
        "command": re.sub(r"checkpoint=\S+", "checkpoint=<run>", metrics["command"]),
    }


def table(results: pd.DataFrame) -> str:
    """AUROC with its interval, and below it recall and overkill: a line a training set, a column a test set."""
    names = sorted(results["trained_on"].unique())
    lines = [f"| trained on | {' | '.join(names)} |", "| --- |" + " --- |" * len(names)]
    cells = results.set_index(["trained_on", "judged_on"])
    for trained in names:
        shown = []
        for judged in names:
            found = cells.loc[(trained, judged)]
            text = f"{found['auroc']:.3f} [{found['auroc_low']:.3f}, {found['auroc_high']:.3f}]"
            text = f"**{text}**" if trained == judged else text
            shown.append(f"{text}<br>{found['recall']:.0%}, {found['overkill_rate']:.0%}")
        lines.append(f"| {trained} | {' | '.join(shown)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    if sys.argv[1:]:
        rows = [row(json.loads((Path(folder) / "metrics.json").read_text(encoding="utf-8"))) for folder in sys.argv[1:]]
        pd.DataFrame(rows).sort_values(["trained_on", "judged_on"]).to_csv(HERE / "measured.csv", index=False)
    print(table(pd.read_csv(HERE / "measured.csv")))
