"""A month replayed, a folder of photos a day: python experiments/month/replay.py <set> <seed> …

Light falls off from day 10, a type of defect that nobody has shown comes on day 15, 3 % of what people say is wrong.
And months in which nothing changes. What the tool says goes to days.csv, audited.csv and retrained.csv.
"""

import io
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image, ImageEnhance, ImageFilter
from sklearn.metrics import roc_auc_score

import defectcls
from defectcls.deployment.decisions import digest_of
from defectcls.evaluation.audited import audit, chances, drawn
from defectcls.evaluation.predictions import ACCEPT
from defectcls.training.results import provenance

HERE = Path(__file__).parent
DAYS, A_DAY, DEFECTS, WRONG = 30, 40, 4, 0.03  # photos a day, of which so many are defective; share of wrong labels
DARKER, COMES, LEARNS = 10, 15, 20  # days; after the last of these people's verdicts are learned from
FALL, BLUR = 0.02, 0.08  # of brightness a day; of the blur's radius in px
SHARE = 0.1  # of the accepted photos that are audited, more near the threshold
PERIODS = ((1, 9), (10, 14), (15, 20), (21, 30))
VERDICTS = (50, 100, 200)
SIDE = 192  # px
HARMLESS = 3  # months of each set in which nothing changes


class Set(NamedTuple):
    """Which photos, the type of defect that comes later, and how many learn at most, sound and defective."""

    words: str
    new: str | None
    sound: int
    defective: int


SETS = {
    "bottle": Set("dataset=mvtec dataset.categories=[bottle]", "contamination", 300, 60),
    "railway_components": Set("dataset=railway_components", "Missing Fasteners", 400, 120),
    "concrete_crack": Set("dataset=concrete_crack", None, 400, 60),
}


def photograph(image: Image.Image, generator: np.random.Generator, day: int = 0) -> bytes:
    """A part before the camera once more: a little shifted, turned and lit; and as dark and blurred as that day is."""
    pad, side = SIDE // 14, SIDE
    around = Image.fromarray(np.pad(np.asarray(image), ((pad, pad), (pad, pad), (0, 0)), "reflect"))
    shift = generator.uniform(-side / 50, side / 50, 2)
    turned = around.rotate(generator.uniform(-2, 2), Image.Resampling.BICUBIC, translate=tuple(shift))
    shot = turned.crop((pad, pad, pad + side, pad + side))
    gone = max(0, day - DARKER + 1)
    shot = ImageEnhance.Brightness(shot).enhance(generator.uniform(0.97, 1.03) * (1 - FALL * gone))
    if gone:
        shot = shot.filter(ImageFilter.GaussianBlur(BLUR * gone))
    content = io.BytesIO()
    shot.save(content, "jpeg", quality=95)
    return content.getvalue()


class Stock:
    """The parts of a set, units whole: those that are learned from, and those of the days to LEARNS and after it."""

    def __init__(self, name: str, seed: int, folder: Path) -> None:
        self.folder, self.set, self.generator = folder, SETS[name], np.random.default_rng([seed, 30])
        data = defectcls.datamodule(defectcls.compose(*self.set.words.split(), f"image_size={SIDE}"))
        data.prepare_data()
        data.setup()
        data.seed = seed
        self.data, samples = data, data.samples
        self.defective = samples["defective"].to_numpy(bool)
        kinds = samples["defect_type"] if "defect_type" in samples else samples["label"]
        self.kinds = np.where(self.defective, kinds, "good")
        fold = data.folds(np.arange(len(samples)), 5)
        new = np.isin(samples["unit"], samples["unit"][self.kinds == self.set.new])
        fold[new & (fold < 3)] = 3 + samples["unit"][new & (fold < 3)] % 2
        self.fold = np.clip(fold, 2, 4)  # 2: learned from

    def rows(self, fold: int, kind: str) -> np.ndarray:
        """Of good parts, of defects, or of the new ones, in random order."""
        new = self.kinds == self.set.new
        chosen = {"good": ~self.defective, "defect": self.defective & ~new, "new": new}[kind]
        return self.generator.permutation(np.flatnonzero((self.fold == fold) & chosen))

    def write(self, rows: np.ndarray, folder: str, day: int = 0) -> pd.DataFrame:
        """Photos of parts, in a folder: a table of them."""
        (self.folder / folder).mkdir(parents=True)
        table = []
        for number, row in enumerate(rows):
            with Image.open(self.data.root / self.data.samples["path"].iloc[row]) as opened:
                image = opened.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            content, path = photograph(image, self.generator, day), f"{folder}/{number:03}.jpg"
            (self.folder / path).write_bytes(content)
            about = {"path": path, "photo": digest_of(content), "label": self.kinds[row], "day": day}
            about |= {"defective": bool(self.defective[row]), "new": self.kinds[row] == self.set.new}
            table.append(about | {"group": self.data.samples["unit"].iloc[row]})
        return pd.DataFrame(table)

    def month(self, changes: bool) -> pd.DataFrame:
        """Its photos. Parts come again when all have been before the camera."""
        kind_of, days, turn = ("changed" if changes else "harmless"), [], {}

        def some(kind: str, count: int, fold: int) -> list[int]:
            found = []
            while len(found) < count:
                turn[fold, kind] = turn.get((fold, kind)) or list(self.rows(fold, kind))
                found.append(turn[fold, kind].pop())
            return found

        for day in range(1, DAYS + 1):
            fold, new = (3 if day <= LEARNS else 4), (DEFECTS // 2 if changes and self.set.new and day >= COMES else 0)
            rows = some("good", A_DAY - DEFECTS, fold) + some("defect", DEFECTS - new, fold) + some("new", new, fold)
            mixed = self.generator.permutation(rows)
            days.append(self.write(mixed, f"{kind_of}/day_{day:02}", day if changes else 0).assign(day=day))
        return pd.concat(days, ignore_index=True)


def flipped(table: pd.DataFrame, generator: np.random.Generator) -> pd.DataFrame:
    """What people say: 3 % is wrong."""
    wrong = generator.random(len(table)) < WRONG
    defective = table["defective"] ^ wrong
    label = np.where(wrong, np.where(defective, "defect", "good"), table["label"])
    return table.assign(label=label, defective=defective, wrong=wrong)


def given(table: pd.DataFrame, folder: Path, seed: int) -> list[str]:
    """What is typed to learn from a table, with today's defaults; a part stays in one fold."""
    file = folder / f"{len(table)}.csv"
    table[["path", "label", "defective", "group"]].to_csv(file, index=False)
    words = ["dataset=table", f"dataset.table={file}", f"dataset.root={folder}", f"image_size={SIDE}", "logger=csv"]
    return [*words, f"seed={seed}", "inspect.heat_maps=false", "inspect.robustness=false"]


def rates(table: pd.DataFrame) -> dict[str, float]:
    """Of decided photos whose truth is known."""
    accepted, defective = table["decision"] == ACCEPT, table["defective"]
    found = {"escape_rate": accepted[defective].mean(), "overkill_rate": (~accepted[~defective]).mean()}
    found |= {"among_accepted": defective[accepted].mean(), "auroc": roc_auc_score(defective, table["score"])}
    return found | {"new_escape_rate": accepted[table["new"]].mean()}


def watch(month: pd.DataFrame, predictor: Any) -> pd.DataFrame:
    """A row a day: what is told of the day's photos, and what is true."""
    drift, told = predictor.drift(A_DAY), []
    for day, of in month.groupby("day"):
        window = [drift.add(one.unlike, one.path, one.cause) for one in of.itertuples()][-1]
        said = {"beyond": window.beyond, "chance": window.chance, "change": bool(window.since), "cause": window.cause}
        told.append({"day": day, "photos": len(of)} | said | rates(of))
    return pd.DataFrame(told)


def audited(month: pd.DataFrame, accept_below: float | None, generator: np.random.Generator) -> list[dict]:
    """A row a period: the escape rate by audit, where people are right and where 3 % is wrong, beside the true one."""
    found = []
    chance = chances(month["score"].to_numpy(), accept_below, SHARE)
    accepted = (month["decision"] == ACCEPT).to_numpy()
    looked = accepted & drawn(month["photo"], chance)
    for wrong in (0.0, WRONG):
        said = month["defective"] ^ (generator.random(len(month)) < wrong)
        rows = month[["photo", "decision", "score", "day"]].assign(chance=np.where(looked, chance, np.nan))
        rows["defective"] = said.astype(object).where(looked | ~accepted, None)
        for first, last in PERIODS:
            here = month["day"].between(first, last)
            told, _ = audit(rows[here], accept_below, 0.01, None)
            said_of = dict(zip(("share_low", "share_high"), told["share_interval"] or (None, None), strict=True))
            true = {f"true_{key}": value for key, value in rates(month[here]).items()}
            kept = ("accepted", "looked_at", "escapes", "share", "escape_rate", "more")
            said_of |= {key: told[key] for key in kept}
            found.append({"first": first, "last": last, "wrong": wrong} | said_of | true)
    return found


def queue(month: pd.DataFrame, limit: float, count: int, generator: np.random.Generator) -> pd.DataFrame:
    """What people are asked for: half is nearest to the threshold, a quarter the most unlike, the rest drawn."""
    order = (month["score"] - limit).abs().sort_values().index[: count // 2]
    rest = month.drop(index=order)
    unlike = rest.sort_values("unlike", ascending=False, kind="stable").index[: count // 4]
    rest = rest.drop(index=unlike)
    uniform = generator.permutation(rest.index)[: count - len(order) - len(unlike)]
    return month.loc[[*order, *unlike, *uniform]]


def replay(name: str, seed: int, folder: Path) -> dict[str, pd.DataFrame]:
    """Rows of days.csv, audited.csv and retrained.csv."""
    stock, generator = Stock(name, seed, folder), np.random.default_rng([seed, 31])
    kinds = (("good", stock.set.sound), ("defect", stock.set.defective))
    rows = np.concatenate([stock.rows(2, kind)[:most] for kind, most in kinds])
    past = flipped(stock.write(rows, "past"), generator)
    words = given(past, folder, seed)
    run = defectcls.run("train", *words, f"hydra.run.dir={folder}/run")
    defectcls.run("audit", *words, f"hydra.run.dir={folder}/audit")
    predictor, found = defectcls.load(run.folder), {"days": [], "audited": [], "retrained": []}
    months = {}
    for kind in ("changed", "harmless")[: 1 + (seed < HARMLESS)]:
        month = stock.month(kind == "changed")
        said = predictor.predict([folder / path for path in month["path"]])
        month = months[kind] = month.assign(**said[["decision", "score", "unlike", "cause"]])
        found["days"].append(watch(month, predictor).assign(month=kind))
        limit = predictor.decision.accept_below
        found["audited"].append(pd.DataFrame(audited(month, limit, generator)).assign(month=kind))
    month = months["changed"]
    asked, after = month[month["day"].between(DARKER, LEARNS)], month[month["day"] > LEARNS]
    before = rates(month[month["day"] < DARKER])
    doubted = pd.read_csv(folder / "audit" / "audit.csv").query("kind == 'wrong_label'")["path"]
    at = past["path"].isin(doubted)
    labels = {"learned_from": len(past), "wrong": past["wrong"].sum(), "doubted": at.sum()}
    labels |= {"doubted_wrong": (at & past["wrong"]).sum()}
    # People look at what is doubted, too, and are right: laid over by the digest.
    truth = pd.Series(stock.kinds[rows], past.index)
    past.assign(label=truth)[at][["photo", "label"]].to_csv(folder / "verdicts.csv", index=False)
    overlay = [f"dataset.verdicts={folder}/verdicts.csv"] if at.any() else []
    for verdicts in (0, *VERDICTS):
        told = flipped(queue(asked, predictor.decision.accept_below or 0.5, verdicts, generator), generator)
        judged = after
        if verdicts:
            again = given(pd.concat([past, told]), folder, seed)
            one = defectcls.run("train", *again, *overlay, f"hydra.run.dir={folder}/run_{verdicts}")
            said = defectcls.load(one.folder).predict([folder / path for path in after["path"]])
            judged = after.assign(**said[["decision", "score"]].set_axis(after.index))
        numbers = {"verdicts": verdicts, "defects": told["defective"].sum()} | labels | rates(judged)
        found["retrained"].append(pd.DataFrame([numbers | {f"before_{key}": before[key] for key in before}]))
    return {key: pd.concat(tables, ignore_index=True) for key, tables in found.items()}


def main(name: str, seeds: list[str]) -> None:
    for seed in map(int, seeds):
        with tempfile.TemporaryDirectory() as scratch:
            found = replay(name, seed, Path(scratch))
        made = provenance(seed, {})
        versions = {f"version_{package}": version for package, version in made["versions"].items()}
        about = {key: made[key] for key in ("commit", "hardware")} | versions
        for key, rows in found.items():
            file, rows = HERE / f"{key}.csv", rows.assign(set=name, seed=seed, **about)
            before = [pd.read_csv(file).query("set != @name or seed != @seed")] if file.is_file() else []
            together = pd.concat([*before, rows]).sort_values(["set", "seed"], kind="stable")
            together.to_csv(file, index=False, float_format="%.5g")
        print(name, seed, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
