"""How often the promise of a run is broken: python experiments/promises/measure.py [group …]

Writes measured.csv beside this file, a row for each cell and promised rate, and the tables in README.md; groups of
cells that are not named keep their rows. Features are Gaussian, so that the true rates of the model that is kept are
known: the head is linear, and what it says of new photos is Gaussian too.
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.stats import binomtest, norm
from sklearn.metrics import roc_auc_score

from defectcls.data.splits import deal_folds
from defectcls.evaluation.decision import choose_decision, decide
from defectcls.evaluation.predictions import predictions_table, probabilities_of
from defectcls.model import memory
from defectcls.model.head import FOLDS, Head, fit_members, fit_probe
from defectcls.settings import DecisionSettings

HERE = Path(__file__).parent
CLASSES = {"good": False, "defect": True}
PENALTIES = [0.001, 0.01, 0.1, 1.0]  # conf/finetune/probe.yaml
ALIKE = 0.8  # share of the variance that photos of one part have in common
NEW = 4_000  # quantiles of what is said of new photos of a kind, or photos of each kind: rates are known to 1 / NEW
PLAIN = {"escape_cost": 10, "overkill_cost": 1, "escape_rate": 0.05, "overkill_rate": 0.05, "calibrate": True}
POLICIES = {
    f"{policy}{sign}{target:g}": DecisionSettings(policy=policy, target=target, confidence=0.95, **PLAIN)
    for policy, sign, target in (("recall", ">=", 0.95), ("recall", ">=", 0.85), ("fpr", "<=", 0.05))
}
POLICIES["review"] = DecisionSettings(policy="review", target=0.05, confidence=0.95, **PLAIN)
SIDE, CHANNELS = 4, 4  # of the maps that a memory sees


class Cell(NamedTuple):
    """What is drawn."""

    defects: int  # parts
    sound: int  # photos
    photos: int = 1  # of a part
    auroc: float = 0.99  # of the best classifier there is
    features: int = 300
    types: int = 1  # of defects, each with a direction of its own


EVERY = [Cell(defects, sound, photos) for photos in (1, 3) for sound in (300, 60) for defects in (20, 60, 200)]
OTHER = [Cell(60, 300, 1, 0.95), Cell(200, 300, 1, 0.95), Cell(60, 300, 1, 0.999), Cell(60, 300, 1, 0.99, 20)]
OTHER += [Cell(60, 300, 1, 0.99, 20, 8), Cell(400, 300)]
HOLDOUT = [Cell(60, 300), Cell(200, 300), Cell(200, 300, 3), Cell(400, 300)]
GROUPS: dict[str, tuple[str, int, list[Cell]]] = {  # procedure, repetitions, cells
    "photos": ("crossval", 150, EVERY[:6]),
    "parts": ("crossval", 100, EVERY[6:]),
    "other": ("crossval", 100, OTHER),
    "joined": ("joined", 60, [Cell(60, 60, 1, 0.95, 20)]),
    "in-sample": ("in-sample", 40, [Cell(60, 300), Cell(200, 300, 3)]),
    "holdout": ("holdout", 400, HOLDOUT),
}


def centres(cell: Cell) -> np.ndarray:
    """Mean features of sound photos and of each type of defect, (1 + types, features); photos deviate by 1."""
    directions = np.ones((1, cell.features))
    if cell.types > 1:
        directions = np.random.default_rng(0).normal(size=(cell.types, cell.features))
    apart = np.sqrt(2) * norm.ppf(cell.auroc)
    return np.concatenate(
        [np.zeros((1, cell.features)), apart * directions / np.linalg.norm(directions, axis=1)[:, None]]
    )


def draw(cell: Cell, generator: np.random.Generator) -> tuple[np.ndarray, pd.DataFrame]:
    """Features float32 (images, features) and the sample table: whole parts, `photos` of each."""
    kinds = np.append(
        np.zeros(cell.sound // cell.photos, int), 1 + generator.integers(cell.types, size=cell.defects)
    ).repeat(cell.photos)
    part = np.arange(len(kinds)) // cell.photos
    shared = ALIKE if cell.photos > 1 else 0.0
    noise = np.sqrt(shared) * generator.normal(size=(part[-1] + 1, cell.features))[part]
    noise += np.sqrt(1 - shared) * generator.normal(size=(len(part), cell.features))
    samples = pd.DataFrame({"path": np.arange(len(part)).astype(str), "defective": kinds > 0, "unit": part})
    samples["label"] = np.where(kinds > 0, "defect", "good")
    return (centres(cell)[kinds] + noise).astype(np.float32), samples


def learn(
    procedure: str, features: np.ndarray, samples: pd.DataFrame, generator: np.random.Generator
) -> tuple[Head, np.ndarray, pd.DataFrame, np.ndarray]:
    """The head that is kept, and logits, samples and folds of the images that the decision rests on."""
    targets = samples["defective"].to_numpy().astype(int)
    if procedure == "holdout":  # 15 % validate, 15 % test, as conf/dataset_base.yaml has it
        twentieth = deal_folds(samples, samples["unit"].to_numpy(), 20, generator)
        train, val = twentieth >= 6, twentieth < 3
        weights = (train.sum() / 2 / np.bincount(targets[train])).tolist()
        heads = [fit_probe((features[train], targets[train]), (features[val], targets[val]), PENALTIES, weights)]
        logits, samples, folds = heads[0].logits(features[val]), samples[val], twentieth[val]
    else:
        folds = deal_folds(samples, samples["unit"].to_numpy(), FOLDS, generator)
        weights = (len(targets) / 2 / np.bincount(targets)).tolist()
        heads, logits = fit_members((features, targets), features, folds, PENALTIES, weights)
    head = Head(features.shape[1], len(CLASSES), len(heads))
    head.load(*heads)
    if procedure == "in-sample":
        logits = said_by(head.eval(), features).mean(1)
    return head.eval(), logits, samples, folds


@torch.no_grad()
def said_by(head: Head, features: np.ndarray) -> np.ndarray:
    """Logits of each member, (images, members, classes)."""
    return head(torch.from_numpy(features)).unflatten(1, (-1, len(CLASSES))).double().numpy()


def new_photos(head: Head, cell: Cell) -> tuple[pd.DataFrame, dict[str, float]]:
    """Table of quantiles of what the mean of the members says of new photos; AUROC of it, and the members' mean one."""
    basis = np.concatenate([np.zeros((1, cell.features)), np.eye(cell.features)]).astype(np.float32)
    odds = np.diff(said_by(head, basis))[..., 0]  # linear in the features: known from these
    bias, slopes = odds[0], odds[1:] - odds[0]
    means, deviation = centres(cell) @ slopes.mean(1) + bias.mean(), np.linalg.norm(slopes.mean(1))
    grid = norm.ppf((np.arange(NEW) + 0.5) / NEW)
    told = [mean + deviation * (grid[:: cell.types] if kind else grid) for kind, mean in enumerate(means)]
    single = (centres(cell)[1:] @ slopes) / np.linalg.norm(slopes, axis=0)
    about = {
        "auroc_kept": float(norm.cdf((means[1:] - means[0]) / deviation / np.sqrt(2)).mean()),
        "auroc_member": float(norm.cdf(single / np.sqrt(2)).mean()),
    }
    odds = np.concatenate(told)
    table = as_table(np.column_stack([-odds, odds]) / 2, pd.DataFrame({"defective": np.arange(len(odds)) >= NEW}))
    return table, about


def as_table(logits: np.ndarray, samples: pd.DataFrame) -> pd.DataFrame:
    """The predictions table of sound and defective photos."""
    samples = samples.assign(label=np.where(samples["defective"], "defect", "good"))
    return predictions_table(samples, probabilities_of(logits), CLASSES)


def repetition(procedure: str, cell: Cell, seed: int) -> Iterator[dict[str, Any]]:
    """One run and what its promises were worth, a row for each policy and rate."""
    generator = np.random.default_rng(seed)
    if procedure == "joined":
        validation, new, about = joined(cell, generator)
    else:
        head, logits, samples, _ = learn(procedure, *draw(cell, generator), generator)
        validation, (new, about) = as_table(logits, samples), new_photos(head, cell)
    defective = new["defective"].to_numpy(bool)
    for name, policy in POLICIES.items():
        decision = choose_decision(policy, validation, CLASSES)
        decided = decide(new, decision, CLASSES)["decision"]
        wrong = {
            "escape_rate": (decided == "accept").to_numpy() & defective,
            "overkill_rate": (decided == "reject").to_numpy() & ~defective,
        }
        true = {"escape_rate": wrong["escape_rate"][defective].mean()}
        true["overkill_rate"] = wrong["overkill_rate"][~defective].mean()
        review = float((decided == "review").mean())
        for promise in decision.promises:
            rate = true.pop(promise.rate)
            [other] = true.values()
            true[promise.rate] = rate
            yield {
                **{"policy": name, "rate": promise.rate, "target": promise.target, "independent": promise.independent},
                **{"given": promise.kept, "exceeded": rate > promise.target, "over_bound": rate > promise.bound},
                **{"bound": promise.bound, "true": rate, "other": other, "review": review},
                "parts_exceeded": of_parts(rate, cell) > promise.target,
                **about,
            }


def of_parts(rate: float, cell: Cell) -> float:
    """Share of the parts of which any photo is misjudged, where `rate` of the photos are."""
    if cell.photos == 1:
        return rate
    shared, weights = np.polynomial.hermite_e.hermegauss(60)
    right = norm.sf((norm.ppf(rate) - np.sqrt(ALIKE) * shared) / np.sqrt(1 - ALIKE))
    return 1 - float(weights @ right**cell.photos / weights.sum())


def joined(cell: Cell, generator: np.random.Generator) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, float]]:
    """A classifier beside a memory, as model.head=joined; a defect lies in one cell of a map too."""
    memory.BANK = 500  # of 10,000; there are no more patches than these
    features, samples = draw(cell, generator)
    new_features, new = draw(Cell(NEW, NEW, 1, *cell[3:]), generator)
    maps, new_maps = (map_of(table["defective"].to_numpy(bool), generator) for table in (samples, new))
    head, logits, _, folds = learn("crossval", features, samples, generator)
    model, defective = memory.Joined(CHANNELS, [*CLASSES.values()], FOLDS), samples["defective"].to_numpy(bool)
    own = model.learn(lambda: maps.split(32), logits, defective, folds, 0)
    with torch.no_grad():
        said = model(torch.from_numpy(said_by(head, new_features)).float(), new_maps).mean(1)
    score = np.diff(said.numpy())[:, 0]
    about = {"auroc_kept": float(roc_auc_score(new["defective"], score))}
    return as_table(own.numpy(), samples), as_table(said.numpy(), new), about


def map_of(defective: np.ndarray, generator: np.random.Generator) -> torch.Tensor:
    """Maps (images, channels, height, width): noise, and a mark in one place of the defective."""
    maps = generator.normal(size=(len(defective), CHANNELS, SIDE, SIDE))
    maps[defective, :, 1, 2] += 1.5
    return torch.from_numpy(maps).float()


def interval(count: int, of: int) -> tuple[float, float]:
    """Exact 95 % interval of a share; NaN of nothing."""
    if not of:
        return np.nan, np.nan
    found = binomtest(count, of).proportion_ci(0.95, method="exact")
    return found.low, found.high


def measure(procedure: str, cell: Cell, repetitions: int) -> pd.DataFrame:
    """Rows of measured.csv."""
    start = time.perf_counter()
    rows = pd.DataFrame([row for seed in range(repetitions) for row in repetition(procedure, cell, seed)])
    seconds, found = time.perf_counter() - start, []
    for (policy, rate), of in rows.groupby(["policy", "rate"], sort=False):
        given = of[of["given"]]
        line = {
            "procedure": procedure,
            **cell._asdict(),
            "policy": policy,
            "rate": rate,
            "target": of["target"].iloc[0],
        }
        line |= {"repetitions": len(of), "independent": of["independent"].mean(), "given": len(given)}
        for name, chosen in (("exceeded", of), ("broken", given), ("over_bound", of), ("parts_exceeded", given)):
            count = int(chosen["exceeded" if name == "broken" else name].sum())
            low, high = interval(count, len(chosen))
            line |= {name: count, f"{name}_low": low, f"{name}_high": high}
        means = [name for name in ("bound", "true", "other", "review", "auroc_kept", "auroc_member") if name in of]
        found.append(line | of[means].mean().to_dict() | {"seeds": f"0-{repetitions - 1}", "seconds": seconds})
    return pd.DataFrame(found)


def tables(results: pd.DataFrame) -> str:
    """Of README.md: how often promises were broken, and what a promise takes."""
    cell = ["group", "procedure", *Cell._fields]
    head = ["procedure", "defective parts", "photos a part", "sound photos", "AUROC: best there is, kept", "features"]
    head += ["escape rate promised", "broken, %", "bound exceeded, %", "overkill rate promised", "broken, %"]
    lines = [[*head, "bound exceeded, %"], ["---"] * (1 + len(head))]
    for _, of in results.groupby(cell, sort=False):
        rows = of[of["policy"] != "review"].set_index("policy").to_dict("index")
        escape = rows["recall>=0.95" if rows["recall>=0.95"]["given"] else "recall>=0.85"]
        one = of.iloc[0]
        what = "crossval, 8 types" if one["types"] > 1 else one["procedure"]
        line = [what, one["defects"], one["photos"], one["sound"], f"{one['auroc']:g}, {one['auroc_kept']:.3f}"]
        line.append(one["features"])
        for found in (escape, rows["fpr<=0.05"]):
            share = 100 * found["given"] / found["repetitions"]
            line.append(
                f"{found['target']:.0%}" + ("" if share in (0, 100) else f", of {share:.0f} %") if share else "–"
            )
            for name, of_all in (("broken", found["given"]), ("over_bound", found["repetitions"])):
                line.append(in_percent(found, name, of_all))
        lines.append([str(value) for value in line])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n\n" + table_of_cost(results)


def in_percent(found: dict[str, Any], name: str, of: int) -> str:
    """A share and its interval."""
    low, high = (100 * found[f"{name}_{end}"] for end in ("low", "high"))
    return f"{100 * found[name] / of:.1f} [{low:.1f}, {high:.1f}]" if of else "–"


def table_of_cost(results: pd.DataFrame) -> str:
    """What the same photos promise by cross-validation and by a part that is set aside."""
    head = ["defective parts", "photos a part", "procedure", "of them judge", "bound of the escape rate, %"]
    lines = [[*head, "true escape rate, %", "overkill rate at it, %", "AUROC kept"], ["---"] * (3 + len(head))]
    shared = results[results["procedure"] == "holdout"]
    chosen = results[(results["policy"] == "recall>=0.95") & (results["procedure"] != "in-sample")]
    for (defects, photos), of in chosen.groupby(["defects", "photos"]):
        if not ((shared["defects"] == defects) & (shared["photos"] == photos)).any():
            continue
        like = of[(of["sound"] == 300) & (of["auroc"] == 0.99) & (of["features"] == 300) & (of["types"] == 1)]
        for one in like.to_dict("records"):
            rates = [f"{100 * one[name]:.1f}" for name in ("bound", "true", "other")]
            judge = f"{one['independent']:.0f}"
            lines.append([f"{defects}", f"{photos}", one["procedure"], judge, *rates, f"{one['auroc_kept']:.3f}"])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("groups", nargs="*", default=[*GROUPS], help=", ".join(GROUPS))
    parser.add_argument("--file", type=Path, default=HERE / "measured.csv")
    given = parser.parse_args()
    from defectcls.training.results import provenance

    made = provenance(0, {})
    about = {name: made[name] for name in ("commit", "hardware")}
    about |= {f"version_{name}": value for name, value in made["versions"].items()}
    for group in given.groups:
        before = pd.read_csv(given.file, dtype={"commit": str}) if given.file.is_file() else pd.DataFrame()
        kept = [] if before.empty else [before[before["group"] != group]]
        procedure, repetitions, cells = GROUPS[group]
        for cell in cells:
            kept.append(measure(procedure, cell, repetitions).assign(**about))
            kept[-1].insert(0, "group", group)
            pd.concat(kept, ignore_index=True).to_csv(given.file, index=False, float_format="%.5g")
            print(group, cell, flush=True)
    readme = HERE / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition("| procedure |")
    written = tables(pd.read_csv(HERE / "measured.csv"))
    readme.write_text(f"{before}{written}\n\nWhat it means{rest.partition('What it means')[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
