"""What a search finds beside a grid at equal cost, and what pruning saves: python experiments/tune/measure.py [<set> …]

The search is that of `tune`, with its sampler, storage and pruner, 60 trials a study. What a trial trains is here, so
that it takes a fraction of a second: a linear head by AdamW on stored features, twenty epochs. A seed deals the photos
anew, units whole: three fifths to learn from, one to judge trials, one that no trial saw. measured.csv gets a row a
study; killed, the script goes on. Then, or without a set, README.md gets its table anew.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold

sys.path.insert(0, str(Path(__file__).parents[1]))
import collect

from defectcls.config import compose, plain
from defectcls.evaluation.sweeps import over_seeds
from defectcls.settings import TrainSettings
from defectcls.training import tuning
from defectcls.training.build import build_classifier, build_data, build_features
from defectcls.training.results import commit, device_name

FILE, PAGE = Path(__file__).with_name("measured.csv"), Path(__file__).with_name("README.md")
SETS, SEEDS, TRIALS, EPOCHS, BATCH = ("transistor", "screw"), range(5), 60, 20, 32
BOTH = {"image_size": "choice(64,96,128)", "model.levels": "choice([],[0.5,0.75,1])"}
GRID = BOTH | {"optim.lr": "choice(1e-5,1e-4,1e-3,1e-2,1e-1)", "optim.weight_decay": "choice(1e-4,1)"}  # 60 points
FREE = BOTH | {"optim.lr": "tag(log,interval(1e-5,1e-1))", "optim.weight_decay": "tag(log,interval(1e-4,1))"}
SEARCHES = {"grid": ("grid", GRID, False), "random": ("random", FREE, False), "tpe": ("tpe", FREE, False)}
SEARCHES |= {"tpe, pruned": ("tpe", FREE, True)}
COLUMNS = {
    "val_loss": "loss on what judged the trials",
    "test_loss": "loss on what no trial saw",
    "test_auroc": "AUROC there",
}


@cache
def features(name: str, size: str, levels: str) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    """Of all photos, with whether they are defective and their units."""
    words = ("dataset=mvtec", f"dataset.categories=[{name}]", f"image_size={size}", f"model.levels={levels}")
    settings = TrainSettings(**plain(compose(*words, "trainer=cpu", "trainer.precision=32", "augment=none")))
    data = build_data(settings)
    data.prepare_data()
    data.setup()
    stored = build_features(settings, data, build_classifier(settings, data).backbone)
    parts = [torch.from_numpy(rows) for rows in np.array_split(np.arange(len(data.samples)), 20)]
    every = torch.cat([stored.look({"image": data.images[part.numpy()], "index": part})[0] for part in parts])
    return every, data.samples["defective"].to_numpy(bool), data.samples["unit"].to_numpy()


@cache
def dealt(name: str, seed: int, size: str, levels: str) -> tuple[list[np.ndarray], torch.Tensor, np.ndarray]:
    """Five folds; features, scaled by what is learned from; and which photos are defective."""
    every, defective, units = features(name, size, levels)
    deal = StratifiedGroupKFold(5, shuffle=True, random_state=seed).split(every, defective, units)
    folds = [rows for _, rows in deal]
    learned = every[np.concatenate(folds[2:])]
    return folds, (every - learned.mean(0)) / (learned.std(0) + 1e-6), defective


def train(name: str, seed: int, params: dict[str, str]) -> tuple[pd.DataFrame, dict[str, float]]:
    """The loss of each epoch on what judges, and the numbers of the best one, also on what no trial sees."""
    folds, every, defective = dealt(name, seed, str(params["image_size"]), str(params["model.levels"]))
    learned, target = torch.from_numpy(np.concatenate(folds[2:])), torch.from_numpy(defective.astype(int))
    torch.manual_seed(seed)
    head = torch.nn.Linear(every.shape[1], 2)
    torch.nn.init.zeros_(head.weight)
    lr, weight_decay = (float(params[f"optim.{key}"]) for key in ("lr", "weight_decay"))
    steps, said = torch.optim.AdamW(head.parameters(), lr, weight_decay=weight_decay), []
    for _ in range(EPOCHS):
        for batch in learned[torch.randperm(len(learned))].split(BATCH):
            steps.zero_grad()
            torch.nn.functional.cross_entropy(head(every[batch]), target[batch]).backward()
            steps.step()
        with torch.no_grad():
            said.append(head(every).double().softmax(1)[:, 1].numpy())
    losses = [log_loss(defective[folds[0]], of_epoch[folds[0]]) for of_epoch in said]
    best = said[int(np.argmin(losses))]
    numbers: dict[str, float] = {}
    for part, rows in zip(("val", "test"), folds[:2], strict=True):
        numbers[f"{part}/loss"] = log_loss(defective[rows], best[rows])
        numbers[f"{part}/auroc"] = roc_auc_score(defective[rows], best[rows])
    return pd.DataFrame({"epoch": range(1, EPOCHS + 1), "val/loss": losses}), numbers


def measure(name: str, search: str, seed: int) -> dict:
    """One study's row."""
    sampler, space, prunes = SEARCHES[search]

    def run_job(task: tuning.Task, watch: Callable[[], bool]) -> dict:
        rows, numbers = train(name, seed, dict(word.split("=", 1) for word in task.overrides))
        for epoch in range(1, EPOCHS + 1) if prunes else [EPOCHS]:
            rows[:epoch].to_csv(task.folder / "metrics.csv", index=False)
            if prunes and watch():
                return task.record(tuning.PRUNED)
        return task.record("finished", objective=numbers | {"seconds": 0.0, "ms_per_photo": 0.0})

    config = plain(compose("dataset=mvtec", f"dataset.categories=[{name}]", "finetune=head", verb="tune"))
    once = compose("dataset=mvtec", "finetune=head", f"finetune.stages.head.epochs={EPOCHS}")
    tuning.compose = lambda *_: once  # of a trial nothing else is read here
    config |= {"sampler": sampler, "space": space, "n_trials": TRIALS, "objectives": ["val/loss"], "seed": seed}
    tuning.run_job, began = run_job, time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        study = tuning.Study(
            tuning.TuneSettings(**config | {"prune": prunes, "finalists": 1, "seeds": 1}), Path(folder)
        )
        study.run()
        found = study.summary()
        points = pd.DataFrame(found["trials"])
        (number, best), *_ = study.ranked()[0].items()
    row = {"set": name, "search": search, "seed": seed, "trials": found["drawn"], "different": len(points)}
    row |= {"pruned": (points["state"] == "pruned").sum(), "failed": (points["state"] == "fail").sum()}
    row |= {"epochs": points["epochs"].sum(), "best": number, **best.params}
    row |= {
        f"{part}_{kind}": best.user_attrs["told"][f"{part}/{kind}"]
        for part in ("val", "test")
        for kind in ("loss", "auroc")
    }
    return row | {"seconds": time.perf_counter() - began, "commit": commit(), "hardware": device_name("cpu")}


def table(measured: pd.DataFrame) -> str:
    """Means over seeds; of each number the difference to the grid of the same seed, with its 95 % interval."""
    lines = []
    for name, of_set in measured.groupby("set", sort=False):
        by_search = {search: rows.set_index("seed") for search, rows in of_set.groupby("search", sort=False)}
        for search, rows in by_search.items():
            lines.append([name, search, f"{rows['different'].mean():.0f}", f"{rows['epochs'].mean():.0f}"])
            for column in COLUMNS:
                told = over_seeds("behind", rows[column] - by_search["grid"][column])
                differ = f"{told['behind_mean']:+.4f} [{told['behind_low']:+.4f}, {told['behind_high']:+.4f}]"
                lines[-1] += [f"{rows[column].mean():.4f}", "–" if search == "grid" else differ]
    head = [
        "set",
        "search",
        "different trials",
        "epochs",
        *(one for title in COLUMNS.values() for one in (title, "- grid")),
    ]
    return collect.table(head, lines)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[1:]:
        for seed in SEEDS:
            for search in SEARCHES:
                known = pd.read_csv(FILE) if FILE.is_file() else pd.DataFrame(columns=["set", "search", "seed"])
                if known.query("set == @name and search == @search and seed == @seed").empty:
                    pd.concat([known, pd.DataFrame([measure(name, search, seed)])]).to_csv(FILE, index=False)
    if PAGE.is_file():
        collect.put(table(pd.read_csv(FILE)), PAGE)
