"""What a search beside the default is worth on photos that neither saw: python experiments/auto/measure.py [<set> …]

A third of each set is left out, units whole, as the set's own data module ties them. `auto` and `train` learn from a
table of the other two thirds, and both are judged on that third. Each set's row goes to measured.csv; then, or without
a set, README.md gets its table anew.
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))
import collect

import defectcls
from defectcls.evaluation.comparison import compare_predictions, unseen
from defectcls.evaluation.metrics import defect_numbers
from defectcls.evaluation.predictions import read_predictions

FILE = Path(__file__).with_name("measured.csv")
MINUTES, SEED = 5, 0
SETS = {  # what names the photos, and what the set itself has
    "transistor": "dataset=mvtec dataset.categories=[transistor]",
    "screw": "dataset=mvtec dataset.categories=[screw]",
    "bottle": "dataset=mvtec dataset.categories=[bottle]",
    "casting": "dataset=casting augment=any_angle",
    "railway_components": "dataset=railway_components augment=texture target=defect_type",
    "magnetic_tile": "dataset=magnetic_tile",
}


def of_part(name: str, part: dict) -> dict[str, float]:
    """AUROC, defective against sound, and its interval."""
    numbers = defect_numbers(part)
    low, high = numbers["intervals"]["auroc"]
    return {f"{name}_auroc": numbers["auroc"], f"{name}_auroc_low": low, f"{name}_auroc_high": high}


def measure(name: str, folder: Path) -> dict:
    """One set's row."""
    words = SETS[name].split()
    data = defectcls.datamodule(defectcls.compose(*words, f"seed={SEED}"))
    data.prepare_data()
    data.setup()
    held = data.folds(np.arange(len(data.samples)), 3) == 0
    told = data.samples.filter(["path", "label", "defective", "defect_type", "unit"]).rename(columns={"unit": "group"})
    told[~held].to_csv(folder / "learned.csv", index=False)
    told[held].to_csv(folder / "held_out.csv", index=False)
    row = {"set": name, "n": int((~held).sum()), "defects": int(told["defective"][~held].sum())}
    row |= {"n_held_out": int(held.sum()), "defects_held_out": int(told["defective"][held].sum())}
    quiet = ["inspect.heat_maps=false", "inspect.robustness=false", "dataset=table", f"dataset.root={data.root}"]
    own = [word for word in words if not word.startswith("dataset")]
    given = [*quiet, *own, f"dataset.table={folder}/learned.csv", f"seed={SEED}", "logger=csv"]
    judged = {}
    for verb, more in (("auto", [f"minutes={MINUTES}"]), ("train", [])):
        began = time.perf_counter()
        run = defectcls.run(verb, *given, *more, f"hydra.run.dir={folder}/{verb}")
        row |= {f"seconds_{verb}": round(time.perf_counter() - began)}
        if verb == "auto":
            made, found = run.metrics, run.metrics["auto"]
            row |= {"kept": found["kept"], "tried": len(found["tried"]), "skipped": len(found["skipped"])}
            row |= {"seconds_tried": round(found["seconds"])} | of_part("nested", found["nested"])
        where = [f"dataset.table={folder}/held_out.csv", f"hydra.run.dir={folder}/{verb}_judged"]
        judged[verb] = defectcls.run("evaluate", f"checkpoint={run.folder}", *quiet, *where)
        row |= of_part(verb, judged[verb].metrics["test"])
    tables, _ = unseen({verb: read_predictions(run.folder / "predictions.csv") for verb, run in judged.items()})
    [one] = compare_predictions(tables, ["auroc"])["differences"]
    row |= {"difference": one["difference"], "difference_low": one["low"], "difference_high": one["high"]}
    versions = {f"version_{package}": version for package, version in made["versions"].items()}
    return row | {key: made[key] for key in ("seed", "commit", "hardware")} | versions


def table(measured: pd.DataFrame) -> str:
    """What README.md shows."""
    columns = ("set", "learned from (defective)", "left out (defective)", "tried", "kept", "AUROC as reported")
    columns += ("of it on the third", "of the default", "it - default", "third - reported")
    lines = []
    for one in measured.to_dict("records"):
        ends = ("", "_low", "_high")
        said, auto, default = ([one[f"{name}_auroc{end}"] for end in ends] for name in ("nested", "auto", "train"))
        counts = [f"{one[f'n{part}']} ({one[f'defects{part}']})" for part in ("", "_held_out")]
        kept = one["kept"] if one["kept"] == "default" else f"`{one['kept']}`"
        numbers = [f"{value:.4f} [{low:.4f}, {high:.4f}]" for value, low, high in (said, auto, default)]
        differ = ([one[f"difference{end}"] for end in ends], collect.difference(auto, said))
        numbers += [f"{value:+.4f} [{low:+.4f}, {high:+.4f}]" for value, low, high in differ]
        lines.append([one["set"], *counts, f"{one['tried']}", kept, *numbers])
    return collect.table(columns, lines)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as scratch:
            row = pd.DataFrame([measure(name, Path(scratch))])
        before = [pd.read_csv(FILE).query("set != @name")] if FILE.is_file() else []
        pd.concat([*before, row]).sort_values("set").to_csv(FILE, index=False)
    collect.put(table(pd.read_csv(FILE)), FILE.with_name("README.md"))
