"""Write measured.csv and README.md's table: python experiments/finetuning/collect.py <folder>

The folder holds the cross-validations, each called ft_<set>_<recipe>; recipes are probe, full and layers. Without it
README.md alone is written anew.
"""

import json
import sys
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))
import collect

from defectcls.evaluation.comparison import compare_predictions, unseen
from defectcls.evaluation.metrics import defect_numbers
from defectcls.evaluation.predictions import read_predictions

FILE = Path(__file__).with_name("measured.csv")
RECIPES = {
    "probe": "head solved on frozen features",
    "full": "and then 3 epochs of all layers",
    "layers": "likewise, with layer decay and moving average",
}


def row(folder: Path) -> dict:
    """One recipe on one set, how it was made, and on the same photos its difference from the probe."""
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    folds = [json.loads(file.read_text(encoding="utf-8")) for file in folder.glob("repeat_*/fold_*/metrics.json")]
    _, photos, recipe = folder.name.split("_", 2)
    numbers = defect_numbers(metrics["test"])
    low, high = numbers["intervals"]["auroc"]
    found = {"photos": photos, "recipe": recipe, "n": numbers["n"], "folds": len(folds)}
    found |= {"auroc": numbers["auroc"], "auroc_low": low, "auroc_high": high}
    found |= {"rejected": collect.ranked(read_predictions(folder / "predictions.csv"))["rejected_at_95_recall"]}
    if recipe != "probe":
        probe = folder.with_name(f"ft_{photos}_probe")
        tables, _ = unseen({run.name: read_predictions(run / "predictions.csv") for run in (folder, probe)})
        [one] = compare_predictions(tables, ["auroc"])["differences"]
        found |= {"difference": one["difference"], "difference_low": one["low"], "difference_high": one["high"]}
        found |= {"rolled_back": sum(one["stages"][-1]["rolled_back"] for one in folds)}
    spent = pd.Series([sum(one["seconds"].get(phase, 0) for phase in ("probe", "fit")) for one in folds])
    versions = {f"version_{name}": version for name, version in metrics["versions"].items()}
    found |= {"seconds_a_fold": round(spent.median(), 1)} | {name: metrics[name] for name in ("commit", "hardware")}
    return found | {"command": metrics["command"]} | versions


def table(measured: pd.DataFrame) -> str:
    """What README.md shows."""
    lines = []
    for one in measured.to_dict("records"):
        trained = one["recipe"] != "probe"
        ends = [[one[f"{name}{end}"] for end in ("", "_low", "_high")] for name in ("auroc", "difference")]
        own = "{:.4f} [{:.4f}, {:.4f}]".format(*ends[0])
        behind = "{:+.4f} [{:+.4f}, {:+.4f}]".format(*ends[1]) if trained else "–"
        back = f"{one['rolled_back']:.0f} of {one['folds']}" if trained else "–"
        cells = [one["photos"], RECIPES[one["recipe"]], own, behind, f"{one['rejected']:.4f}"]
        lines.append([*cells, back, f"{one['seconds_a_fold']:.1f}"])
    numbers = ("AUROC", "it - probe", "sound parts rejected at 95 % recall", "folds rolled back", "seconds a fold")
    return collect.table(("photos", "recipe", *numbers), lines)


if __name__ == "__main__":
    if sys.argv[1:]:
        rows = pd.DataFrame([row(file.parent) for file in Path(sys.argv[1]).glob("ft_*/metrics.json")])
        rows["recipe"] = pd.Categorical(rows["recipe"], list(RECIPES))
        rows.sort_values(["photos", "recipe"]).to_csv(FILE, index=False)
    collect.put(table(pd.read_csv(FILE)), FILE.with_name("README.md"))
