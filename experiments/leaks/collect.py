"""Write splits.csv, differences.csv and the tables in README.md: python experiments/leaks/collect.py <folder>

The folder holds the cross-validations, each called <dataset>_<split>; rows of other datasets stay. Without it
only README.md is written anew.
"""

import json
import sys
from pathlib import Path

import pandas as pd

from defectcls.evaluation.comparison import compare_predictions, unseen
from defectcls.evaluation.predictions import read_predictions

HERE = Path(__file__).parent
NUMBERS = ("recall", "overkill_rate", "accuracy", "auroc")


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
    """What each random split promises beyond each other one, on the same images, with 95 % intervals."""
    rows = []
    for dataset, others in results[results["split"] != "random"].groupby("dataset")["split"]:
        for split in others:
            files = {one: folder / f"{dataset}_{one}" / "predictions.csv" for one in ("random", split)}
            tables, _ = unseen({one: read_predictions(file) for one, file in files.items()})
            found = compare_predictions(tables, list(NUMBERS))["differences"]
            rows += [{"dataset": dataset, "split": split} | one for one in found]
    return pd.DataFrame(rows)


def tables(results: pd.DataFrame, differ: pd.DataFrame) -> str:
    """Both files as the tables of README.md."""
    lines = ["| photos | split | recall | overkill rate | accuracy | AUROC |", "| --- | --- | --- | --- | --- | --- |"]
    for one in results.to_dict("records"):
        cells = [
            f"{number(name, one[name])} ({number(name, one[f'{name}_low'])} to {number(name, one[f'{name}_high'])})"
            for name in NUMBERS
        ]
        lines.append(f"| {one['dataset']} | {one['split']} | {' | '.join(cells)} |")
    lines += ["", "| random minus | recall | overkill rate | accuracy | AUROC |", "| --- | --- | --- | --- | --- |"]
    for (dataset, split), rows in differ.groupby(["dataset", "split"]):
        of = rows.set_index("metric").to_dict("index")
        cells = [
            f"{number(name, of[name]['difference'], '+')} "
            f"({number(name, of[name]['low'], '+')} to {number(name, of[name]['high'], '+')})"
            for name in NUMBERS
        ]
        lines.append(f"| {dataset}, {split} | {' | '.join(cells)} |")
    return "\n".join(lines)


def number(name: str, value: float, sign: str = "") -> str:
    """AUROC as it is, all else in percent."""
    return f"{value:{sign}.4f}" if name == "auroc" else f"{100 * value:{sign}.2f}"


if __name__ == "__main__":
    if sys.argv[1:]:
        runs = Path(sys.argv[1])
        splits = pd.DataFrame([row(file.parent) for file in sorted(runs.glob("*/metrics.json"))])
        for name, found in (("splits", splits), ("differences", differences(runs, splits))):
            before = pd.read_csv(HERE / f"{name}.csv")
            together = pd.concat([found, before[~before["dataset"].isin(found["dataset"])]])
            together.sort_values(["dataset", "split"], kind="stable").to_csv(HERE / f"{name}.csv", index=False)
    written = tables(pd.read_csv(HERE / "splits.csv"), pd.read_csv(HERE / "differences.csv"))
    readme = HERE / "README.md"
    text = readme.read_text(encoding="utf-8")
    head, end = text.partition("| photos | split |")[0], "".join(text.partition("What it means:")[1:])
    readme.write_text(f"{head}{written}\n\n{end}", encoding="utf-8")
    print(written)
