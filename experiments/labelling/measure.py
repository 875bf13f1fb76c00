"""Which unlabelled photos are worth a person's minute: python experiments/labelling/measure.py [<set> …]

A third of each set is the test, units whole. Of the rest the labels are known that a rule asks for, some at a time;
after each time heads are solved on stored features, as `train` does, and judged on the third. The set's rows go to
measured.csv; then, or without a set, needed.csv and README.md's table are written anew.
"""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import logit, softmax
from sklearn.metrics import log_loss, roc_auc_score

sys.path.insert(0, str(Path(__file__).parents[1]))
import collect

from defectcls.config import compose, plain
from defectcls.data.splits import deal_folds
from defectcls.evaluation.calibration import calibrate, fit_calibration
from defectcls.model.features import extract_features
from defectcls.model.head import FOLDS, LEAST_DEVIATION, fit_members
from defectcls.settings import TrainSettings
from defectcls.training.build import build_classifier, build_data, build_features, with_compute
from defectcls.training.results import provenance

FILE = Path(__file__).with_name("measured.csv")
SEEDS, START, GROWTH, MOST = 10, 20, 1.35, 500
AUROC_WITHIN, LOSS_WITHIN = 0.005, 1.1  # of what all labels give: so much below, so many times
SETS = {
    "screw": "dataset=mvtec dataset.categories=[screw]",
    "transistor": "dataset=mvtec dataset.categories=[transistor]",
    "casting": "dataset=casting augment=any_angle",
    "concrete_crack": "dataset=concrete_crack",
}
SHARES = {"concrete_crack": 0.1}  # of defective photos in the pool, where those of the set are no plant's
RULES = {
    "random": "at random",
    "twins": "at random, near twins once",
    "threshold": "nearest to the threshold",
    "coverage": "farthest from what is labelled",
    "both": "near the threshold, and far from each other",
    "half": "every other at random, the others nearest to the threshold",
}


class Learned(NamedTuple):
    """Calibrated probabilities of being defective, of features; and the threshold of decision=balanced."""

    says: Callable[[np.ndarray], np.ndarray]
    threshold: float


class Pool:
    """The photos that can be asked for and those of the test, of one seed."""

    def __init__(self, features: np.ndarray, targets: np.ndarray, units: np.ndarray, penalties: list[float]) -> None:
        self.features, self.targets, self.units, self.penalties = features, targets, units, penalties
        std = features.std(0)
        scaled = (features - features.mean(0)) / np.maximum(std, LEAST_DEVIATION * std.mean())
        self.scaled = scaled.astype(np.float32)

    def learn(self, asked: np.ndarray, seed: int) -> Learned:
        """From these labels, as a cross-validated run does."""
        features, targets = self.features[asked], self.targets[asked]
        table = pd.DataFrame({"label": targets})
        dealt = deal_folds(table, self.units[asked], FOLDS, np.random.default_rng([seed, 4]))
        weights = (len(targets) / (2 * np.bincount(targets, minlength=2).clip(1))).tolist()
        heads, said = fit_members((features, targets), features, dealt, self.penalties, weights)
        judged = ~np.isnan(said).any(1)
        out_of_fold = softmax(said[judged], axis=1)
        scale, shift = fit_calibration(out_of_fold, targets[judged])

        def says(of: np.ndarray) -> np.ndarray:
            logits = np.mean([head.logits(of) for head in heads], 0)
            return calibrate(softmax(logits.astype(np.float64), axis=1), scale, shift)[:, 1]

        return Learned(says, float(calibrate(out_of_fold, scale, shift)[:, 1].mean()))

    def farthest(self, asked: np.ndarray, among: np.ndarray, count: int) -> np.ndarray:
        """Greedily so many of `among`, each the farthest from all before it (k-center)."""
        distance = _squared(self.scaled[among], self.scaled[asked]).min(1)
        found = []
        for _ in range(count):
            found.append(among[distance.argmax()])
            distance = np.minimum(distance, _squared(self.scaled[among], self.scaled[found[-1:]])[:, 0])
        return np.array(found)

    def rounds(self, rule: str, seed: int) -> Iterator[tuple[np.ndarray, Learned]]:
        """The photos that are labelled and what is learned from them, from a random start to the whole pool."""
        order = np.random.default_rng([seed, 16]).permutation(len(self.targets))
        start = START
        while np.bincount(self.targets[order[:start]], minlength=2).min() < 2:
            start += 1
        asked = order[:start]
        while len(asked) < len(order):
            learned = self.learn(asked, seed)
            yield asked, learned
            left = order[~np.isin(order, asked)]  # in random order
            twins = left[:0]  # asked for when nothing else is left
            if rule != "random":
                once = left[np.sort(np.unique(self.units[left], return_index=True)[1])]
                once = once[~np.isin(self.units[once], self.units[asked])]
                left, twins = once, left[~np.isin(left, once)]
            count = min(int(np.ceil(len(asked) * (GROWTH - 1))), len(order) - len(asked))
            score = learned.says(self.features[left]).clip(1e-12, 1 - 1e-12)
            nearest = left[np.argsort(np.abs(logit(score) - logit(learned.threshold)), kind="stable")]
            if rule == "coverage":
                nearest = self.farthest(asked, left, min(count, len(left)))
            elif rule == "both":
                nearest = self.farthest(asked, nearest[: 4 * count], min(count, len(left)))
            elif rule == "half":
                both = np.stack([nearest, left], 1).ravel()  # each stands in it twice
                nearest = both[np.sort(np.unique(both, return_index=True)[1])]
            elif rule in ("random", "twins"):
                nearest = left
            asked = np.concatenate([asked, np.concatenate([nearest, twins])[:count]])


def _squared(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Squared distances (one, other)."""
    return (one**2).sum(1)[:, None] + (other**2).sum(1) - 2 * one @ other.T


def _some(rows: np.ndarray, targets: np.ndarray, share: float | None, generator: np.random.Generator) -> np.ndarray:
    """MOST of the rows, in random order, of which a share is defective, that of the rows where it is None."""
    share = targets[rows].mean() if share is None else share
    mixed = generator.permutation(rows)
    kinds = (mixed[targets[mixed] == 0][: round(MOST * (1 - share))], mixed[targets[mixed] == 1][: round(MOST * share)])
    return np.concatenate(kinds)


def measure(name: str) -> pd.DataFrame:
    """Rows of measured.csv: a set, rule and seed, and numbers on the test after so many labels."""
    settings = with_compute(TrainSettings(**plain(compose(*SETS[name].split()))))
    data = build_data(settings, split=False)
    classifier = build_classifier(settings, data)
    stored = build_features(settings, data, classifier.backbone)
    features, targets = extract_features(stored, data.part_dataloader("test"))
    units, rows = data.samples["unit"].to_numpy(), []
    for seed in range(SEEDS):
        generator = np.random.default_rng([seed, 3])
        test = deal_folds(data.samples, units, 3, generator) == 0
        rows_of = [_some(np.flatnonzero(part), targets, SHARES.get(name), generator) for part in (~test, test)]
        (rows_of_pool, tested), everything = rows_of, np.arange(len(rows_of[0]))
        pool = Pool(*(of[rows_of_pool] for of in (features, targets, units)), settings.finetune.probe_c)
        own = {"set": name, "seed": seed, "pool": len(everything), "units": len(np.unique(pool.units))}
        whole = pool.learn(everything, seed)
        tied = own["units"] < 0.98 * own["pool"]
        for rule in [rule for rule in RULES if tied or rule != "twins"]:
            for asked, learned in [*pool.rounds(rule, seed), (everything, whole)]:
                score = learned.says(features[tested])
                numbers = {"auroc": roc_auc_score(targets[tested], score), "loss": log_loss(targets[tested], score)}
                counts = {"labels": len(asked), "defects": int(pool.targets[asked].sum())}
                rows.append(own | {"rule": rule} | counts | numbers)
        print(name, seed, flush=True)
    made = provenance(0, {})
    versions = {f"version_{package}": version for package, version in made["versions"].items()}
    return pd.DataFrame(rows).assign(**{key: made[key] for key in ("commit", "hardware")}, **versions)


def needed(curves: np.ndarray, labels: np.ndarray, enough: np.ndarray) -> np.ndarray:
    """How many labels it takes until a curve, of less is better, is no longer above what is enough; between two counts
    on the straight line over their logarithms.

    Args:
        curves: (draws, counts); labels: (counts,); enough: (draws,).
    """
    gap = curves - enough[:, None]
    first = (gap <= 0).argmax(1)
    rows = np.arange(len(gap))
    before = np.maximum(first - 1, 0)
    high, low = gap[rows, before], gap[rows, first]
    share = np.where(first == before, 0.0, high / np.where(high == low, 1.0, high - low))
    return np.exp(np.log(labels[before]) + share * (np.log(labels[first]) - np.log(labels[before])))


def compared(measured: pd.DataFrame, resamples: int = 2000) -> pd.DataFrame:
    """Labels needed by each rule, and their ratio to those at random with a 95 % interval: a bootstrap over seeds."""
    drawn = np.random.default_rng(0).integers(SEEDS, size=(resamples, SEEDS))
    drawn = np.concatenate([np.arange(SEEDS)[None], drawn])
    found = []
    for name, of_set in measured.groupby("set", sort=False):
        grid = np.unique(np.geomspace(START, of_set["pool"].min(), 60))
        for number in ("auroc", "loss"):
            took = {}
            for rule, rows in of_set.groupby("rule", sort=False):
                seeds = [one for _, one in rows.groupby("seed")]
                curves = np.stack([np.interp(np.log(grid), np.log(one["labels"]), one[number]) for one in seeds])
                last = np.array([one[number].iloc[-1] for one in seeds])
                mean, best = curves[drawn].mean(1), last[drawn].mean(1)
                if number == "auroc":
                    took[rule] = needed(-mean, grid, -best + AUROC_WITHIN)
                else:
                    took[rule] = needed(mean, grid, best * LOSS_WITHIN)
            for rule, counts in took.items():
                ratio = counts / took["random"]
                low, high = np.quantile(ratio[1:], [0.025, 0.975])
                about = {"set": name, "pool": int(of_set["pool"].median()), "rule": rule, "number": number}
                made = of_set[["commit", "hardware"]].iloc[0].to_dict()
                found.append(about | {"labels": counts[0], "ratio": ratio[0], "low": low, "high": high} | made)
    return pd.DataFrame(found)


def table(found: pd.DataFrame) -> str:
    """What README.md shows of needed.csv."""
    lines = []
    for (name, pool, rule), of in found.groupby(["set", "pool", "rule"], sort=False):
        cells = [f"{name}, {pool}" if rule == "random" else "", RULES[rule]]
        for one in of.to_dict("records"):
            ratio = f"{one['ratio']:.2f} [{one['low']:.2f}, {one['high']:.2f}]" if rule != "random" else ""
            cells += [f"{one['labels']:.0f}", ratio]
        lines.append(cells)
    head = ("photos, in the pool", "asked for", "labels until the AUROC is that of all - 0.005", "of those at random")
    return collect.table((*head, "labels until the loss is 1.1 times that of all", "of those at random "), lines)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        rows = measure(name)
        before = [pd.read_csv(FILE).query("set != @name")] if FILE.is_file() else []
        pd.concat([*before, rows]).to_csv(FILE, index=False, float_format="%.6g")
    needed_labels = compared(pd.read_csv(FILE))
    needed_labels.to_csv(FILE.with_name("needed.csv"), index=False, float_format="%.4g")
    collect.put(table(pd.read_csv(FILE.with_name("needed.csv"))), FILE.with_name("README.md"))
