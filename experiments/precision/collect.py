"""Write runs.csv, differences.csv and the table in README.md: python experiments/precision/collect.py <folder>

The folder holds a sweep over precision and seed for each dataset. Without it only README.md is written anew.
"""

import json
import sys
from pathlib import Path

import pandas as pd

from defectcls.evaluation.comparison import compare_predictions, unseen
from defectcls.evaluation.predictions import read_predictions

HERE = Path(__file__).parent
NUMBERS = ("accuracy", "auroc", "recall", "overkill_rate")


def row(folder: Path) -> dict:
    """One run: its test numbers, and how it was made."""
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    precision = str(metrics["config"]["trainer"]["precision"])
    found = {
        "dataset": metrics["dataset"],
        "precision": precision,
        "seed": metrics["seed"],
        "n_test": metrics["test"]["n"],
    }
    found |= {name: metrics["test"][name] for name in NUMBERS}
    versions = {f"version_{name}": version for name, version in metrics["versions"].items()}
    return found | {name: metrics[name] for name in ("commit", "hardware", "command")} | versions


def differences(folders: dict[tuple[str, str, int], Path]) -> pd.DataFrame:
    """bf16 minus float32 on the same test images, seed by seed, with 95 % intervals."""
    rows = []
    for (dataset, precision, seed), folder in folders.items():
        if precision == "bf16":
            pair = {"bf16": folder, "float32": folders[dataset, "32", seed]}
            tables, _ = unseen({name: read_predictions(run / "predictions.csv") for name, run in pair.items()})
            found = compare_predictions(tables, list(NUMBERS))["differences"]
            rows += [{"dataset": dataset, "seed": seed} | one for one in found]
    return pd.DataFrame(rows)


def mean_difference(of_seeds: pd.DataFrame) -> tuple[float, float, float]:
    """Mean over the seeds and its 95 % interval, as if their test images were not partly the same."""
    half = ((of_seeds["high"] - of_seeds["low"]).pow(2).sum() ** 0.5) / 2 / len(of_seeds)
    mean = of_seeds["difference"].mean()
    return mean, mean - half, mean + half


def table(runs: pd.DataFrame, differ: pd.DataFrame) -> str:
    """Means over seeds, and the difference of each seed with its interval."""
    head = ("dataset", "number", "float32", "bf16", "bf16 - float32: mean", "seed by seed")
    lines = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    for dataset, of_dataset in runs.groupby("dataset"):
        means = of_dataset.groupby("precision")[[*NUMBERS]].mean()
        for name in ("accuracy", "auroc"):
            chosen = differ[(differ["dataset"] == dataset) & (differ["metric"] == name)]
            rows = [mean_difference(chosen), *chosen[["difference", "low", "high"]].itertuples(index=False)]
            mean, *cells = (f"{value:+.4f} [{low:+.4f}, {high:+.4f}]" for value, low, high in rows)
            both = [f"{means.loc[precision, name]:.4f}" for precision in ("32", "bf16")]
            label = name.replace("auroc", "AUROC")
            lines.append(f"| {dataset} | {label} | {' | '.join(both)} | {mean} | {'; '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    if sys.argv[1:]:
        found = [(row(file.parent), file.parent) for file in sorted(Path(sys.argv[1]).glob("*/*/metrics.json"))]
        places = {(one["dataset"], one["precision"], one["seed"]): folder for one, folder in found}
        pd.DataFrame([one for one, _ in found]).to_csv(HERE / "runs.csv", index=False)
        differences(places).to_csv(HERE / "differences.csv", index=False)
    readme = HERE / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition("| dataset |")
    after = rest.partition("\n\n")[2]
    written = table(pd.read_csv(HERE / "runs.csv", dtype={"precision": str}), pd.read_csv(HERE / "differences.csv"))
    readme.write_text(f"{before}{written}\n\n{after}", encoding="utf-8")
    print(written)
