"""What a search finds beside a grid at equal cost: python experiments/tune/measure.py [transistor screw]

On each set and for each of five seeds 60 trials by TPE and 60 by a grid, of the same space, judged out of fold; each
study's best judges the fifth of the photos that none of its trials saw. A seed deals another fifth. measured.csv gets a
row a study; killed, the script goes on. The space has 180 points: a grid of 60 is a third of it, drawn by chance.
"""

import sys
from pathlib import Path

import pandas as pd

import defectcls
from defectcls.evaluation.metrics import defect_numbers

FILE, STUDIES = Path(__file__).with_name("measured.csv"), Path("runs/studies/tune")
SETS = {"transistor": "dataset.categories=[transistor]", "screw": "dataset.categories=[screw]"}
SAMPLERS, SEEDS, TRIALS = ("tpe", "grid"), range(5), 60
SPACE = (
    "image_size=choice(224,320,448)",
    "model=choice(efficientnet_lite0,mobilenetv2)",
    "model.levels=choice([],[1],[0.5,1],[0.75,1],[0.5,0.75,1])",
    "model.head=choice(linear,joined)",
    "finetune.probe_views=choice(0,2,4)",
)


def measure(name: str, sampler: str, seed: int) -> dict:
    """One study's row."""
    given = ("dataset=mvtec", SETS[name], *SPACE, f"sampler={sampler}", f"n_trials={TRIALS}", f"seed={seed}")
    folder = STUDIES / f"{name}_{sampler}_{seed}"
    found = defectcls.run("tune", *given, "logger=csv", f"hydra.run.dir={folder}").metrics
    best = defectcls.RunFolder(folder / "trials" / str(found["best"]) / "0").metrics
    points = pd.DataFrame(found["trials"]).query("repeat == 0")
    (of_best,) = points.query("trial == @found['best']").to_dict("records")
    test = defect_numbers(best["test"])
    low, high = test["intervals"]["auroc"]
    row = {"set": name, "sampler": sampler, "seed": seed, "trials": len(points), "same": int(points["same_as"].count())}
    row |= {"failed": int((points["state"] == "fail").sum()), "seconds": points["seconds"].sum()}
    row |= {key: of_best[key] for key in found["keys"]} | {"val_auroc": of_best["val/auroc"]}
    row |= {"test_auroc": test["auroc"], "test_auroc_low": low, "test_auroc_high": high, "n_test": test["n"]}
    return row | {key: best[key] for key in ("commit", "hardware")}


if __name__ == "__main__":
    for name in sys.argv[1:] or SETS:
        for seed in SEEDS:
            for sampler in SAMPLERS:
                known = pd.read_csv(FILE) if FILE.is_file() else pd.DataFrame(columns=["set", "sampler", "seed"])
                if known.query("set == @name and sampler == @sampler and seed == @seed").empty:
                    rows = pd.concat([known, pd.DataFrame([measure(name, sampler, seed)])])
                    rows.sort_values(["set", "sampler", "seed"]).to_csv(FILE, index=False)
