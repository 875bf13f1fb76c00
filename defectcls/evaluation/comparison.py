"""Several predictions tables of the same images, and which of their differences chance does not explain.

A difference is paired: all tables are judged on one resample of the groups at a time, so that images which are hard for
all of them cancel out. Its variance is that of the bootstrap; to a share one group is added that speaks for each side
(Bonett and Price, Journal of Educational and Behavioral Statistics 37, 2012), or else a few images on which all differ
would prove anything. Of several pairs each has an interval at the level 1 - (1 - level) / pairs (Bonferroni).

So of several candidates, told of the same images out of fold, one is chosen; the first of them is the default.
"""

from collections.abc import Sequence
from itertools import combinations, product
from math import comb
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from pydantic import Field, NonNegativeInt
from scipy.stats import t as student

from defectcls.errors import UserError
from defectcls.evaluation.calibration import calibrated_losses
from defectcls.evaluation.decision import choose_decision, decide
from defectcls.evaluation.intervals import NOTHING, Interval, bootstrap, intervals_of
from defectcls.evaluation.metrics import ALL, DEFECT, METRICS, Answers, plain
from defectcls.evaluation.predictions import PROBABILITY, class_names_of, classes_of_table, groups_of
from defectcls.settings import DecisionSettings, Settings

CHEAPER = 0.8  # of the default's time: less of a difference is noise of the clock


class CompareSettings(Settings):
    runs: list[Path]
    metrics: list[Literal["recall", "overkill_rate", "precision", "f1", "accuracy", "auroc", "average_precision"]]
    level: Annotated[float, Field(gt=0.5, lt=1)]
    resamples: Annotated[int, Field(ge=100)]
    seed: NonNegativeInt

    def model_post_init(self, _: Any) -> None:
        if len(self.runs) < 2 or not self.metrics:
            raise ValueError("give two runs or more, and metrics: python -m defectcls.compare <run> <run>")


def compare_predictions(
    tables: dict[str, pd.DataFrame], metrics: list[str], level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """Every pair of runs on the images that all have, as compare.json has it.

    Args:
        tables: predictions table of each run, by the run's name.
        metrics: of METRICS; of more than two classes all defective ones count as one, but for the accuracy.

    Returns:
        How many `images` these are, and how many of each run are `left_out`; `values` {run, metric, value, low, high}
        at `level`, None where undefined; and where both runs can state a number the `differences` {metric, run, other,
        difference, low, high, better}, the number of `run` less that of `other`, at `adjusted_level`: so all pairs of
        one number hold together at `level`. `better` is the run that is shown to be, "" where none is.

    Raises:
        UserError: the tables have other classes, other images or another truth.
    """
    common = common_images(tables)
    first = next(iter(common.values()))
    classes, groups = classes_of_table(first), groups_of(first)
    answers = {run: Answers(table, classes) for run, table in common.items()}
    stated = {run: one.stated() for run, one in answers.items()}
    # The same seed draws the same resamples for every run.
    drawn = {run: bootstrap(groups, one.weighted, resamples, seed) for run, one in answers.items()}
    keys = [(metric, ALL if metric == "accuracy" else DEFECT) for metric in metrics]
    values, differences = [], []
    for run, one in answers.items():
        limits = intervals_of(one, drawn[run], level)
        for key in keys:
            low, high = limits.get(key, NOTHING)
            values.append({"run": run, "metric": key[0], "value": stated[run].get(key), "low": low, "high": high})

    adjusted_level = 1 - (1 - level) / comb(len(tables), 2)
    for key, (run, other) in product(keys, combinations(common, 2)):
        ahead = float(stated[run].get(key, np.nan) - stated[other].get(key, np.nan))
        if np.isnan(ahead):
            continue
        if share := key in answers[run].shares:
            members = answers[run].shares[key].members | answers[other].shares[key].members
            units = len(np.unique(groups[members]))
        else:
            units = answers[run].units[DEFECT]
        spread = float(np.nanstd(drawn[run][key] - drawn[other][key]))
        low, high = paired_interval(ahead, spread, units, adjusted_level, share)
        leading, trailing = (other, run) if METRICS[key[0]].less_is_better else (run, other)
        better = leading if low > 0 else trailing if high < 0 else ""
        found = {"metric": key[0], "run": run, "other": other, "difference": ahead, "low": low, "high": high}
        differences.append(found | {"better": better})
    return {
        "images": len(first),
        "left_out": {run: len(table) - len(first) for run, table in tables.items()},
        "level": level,
        "adjusted_level": adjusted_level,
        "values": [plain(value) for value in values],
        "differences": [plain(difference) for difference in differences],
    }


def unseen(tables: dict[str, pd.DataFrame]) -> tuple[dict[str, pd.DataFrame], dict[str, int]]:
    """The test rows of each predictions table, or all, without those `seen`, from which another has learned; counts.

    Where all tables have the digest of a `photo`, that is its `path` then, and where its truth is not that of the first
    table it is `relabelled` so. Repeats are apart.
    """
    by_digest, tested, learned, relabelled = all("photo" in one for one in tables.values()), {}, set(), set()
    for name, table in tables.items():
        rows = table.assign(path=table["photo"]) if by_digest else table
        rows = rows.drop_duplicates(["path", *{"repeat"} & {*rows}])
        marked = rows["split"] == "test" if "split" in rows else pd.Series(False, rows.index)
        tested[name] = rows[marked | (not marked.any())]
        learned |= {*rows["path"][~marked]} if marked.any() else set()
    seen = {*pd.concat(tested.values())["path"]} & learned
    truth = next(iter(tested.values())).drop_duplicates("path").set_index("path")[["label", "defective"]]
    for name, rows in tested.items():
        tested[name] = rows = rows[~rows["path"].isin(seen)].reset_index(drop=True)
        known = rows["path"].isin(truth.index).to_numpy() & by_digest
        now = truth.loc[rows["path"][known]].set_axis(rows.index[known])
        relabelled |= {*rows["path"][known][now["label"] != rows["label"][known]]}
        rows.loc[known, now.columns] = now
        if "repeat" in rows and rows["repeat"].nunique() > 1:
            rows["path"] += " in repeat " + rows["repeat"].astype(str)
    return tested, {"seen": len(seen), "relabelled": len(relabelled)}


def common_images(tables: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """The rows of the images that all tables have, joined on `path`, in the order of the first; raises as above."""
    (first_run, first), *_ = tables.items()
    paths = first["path"]
    for table in tables.values():
        paths = paths[paths.isin(table["path"])]
    if paths.empty:
        raise UserError(f"no image stands in all of {', '.join(tables)}: compare runs on the same test images")
    common = {run: one.set_index("path", drop=False).loc[paths].reset_index(drop=True) for run, one in tables.items()}
    truth = ["label", "defective"]
    for run, table in common.items():
        same_classes = {*class_names_of(table)} == {*class_names_of(first)}
        if not same_classes or (table[truth] != common[first_run][truth]).to_numpy().any():
            raise UserError(f"the images that {run} and {first_run} share have other classes in one than in the other")
    return common


def paired_interval(ahead: float, spread: float, units: int, level: float, share: bool) -> Interval:
    """Of a difference that rests on `units` groups and has the standard deviation `spread` in the bootstrap."""
    if units < 2:
        return -1.0, 1.0
    centre, variance = ahead, spread**2 * units / (units - 1)
    if share:
        centre = ahead * units / (units + 2)
        variance = ((units * (units * spread**2 + ahead**2) + 2) / (units + 2) - centre**2) / (units + 2)
    reach = student.ppf((1 + level) / 2, units - 1) * np.sqrt(variance)
    return max(-1.0, centre - reach), min(1.0, centre + reach)


class Choice(NamedTuple):
    """The kept and the simplest candidate; of each the mean loss over its seeds, and how far it is behind the best."""

    kept: int
    simplest: int  # the quickest that is not shown to be worse than the best
    losses: np.ndarray  # `calibrated_loss`, nats (candidates,)
    behind: np.ndarray  # difference, and where its interval begins and ends, (candidates, 3)


def choose(tables: Sequence[Sequence[pd.DataFrame]], milliseconds: Sequence[float], classes: dict[str, bool]) -> Choice:
    """Of the candidates that are better than the default beyond chance, the one of the least loss.

    Where none is, of those that are cheaper by a fifth and have no more loss; else the default. So none is kept that
    has more loss than the default, nor one that costs as much for what may be luck. Intervals of 95 % hold for all
    candidates together (Bonferroni); they are of a bootstrap over groups, in which calibrations stay as they are.

    Args:
        tables: of each candidate one predictions table a seed, of the same images in the same order; a difference is
            over the seeds that both have, and all have the first.
        milliseconds: that each takes for a photo.
    """
    took, first = np.array(milliseconds), tables[0][0]
    groups, columns = groups_of(first), [PROBABILITY + name for name in classes]
    truth = pd.Index([*classes]).get_indexer(pd.Index(first["label"]))
    members = [truth == target for target in np.unique(truth)]
    units = min(len(np.unique(groups[one])) for one in members)
    level = 1 - 0.05 / max(1, len(tables) - 1)
    losses = np.full((len(tables), max(map(len, tables)), len(truth)), np.nan)
    for place, of_seeds in enumerate(tables):
        losses[place, : len(of_seeds)] = [calibrated_losses(one[columns].to_numpy(), truth) for one in of_seeds]

    def means(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Of values (candidates, images) under weights (resamples, images), every class weighing alike."""
        with np.errstate(invalid="ignore"):  # a resample may lack a class
            return np.mean([(weights * one) @ values.T / (weights @ one)[:, None] for one in members], axis=0)

    def mean(values: np.ndarray) -> np.ndarray:
        return means(values, np.ones((1, len(truth))))[0]

    def against(other: int) -> np.ndarray:
        """Of each candidate the difference to the other, and where its interval begins and ends."""
        values = np.nanmean(losses - losses[other], axis=1)
        drawn = bootstrap(groups, lambda weights: {"means": means(values, weights)})["means"]
        found = zip(mean(values), np.nanstd(drawn, axis=0), strict=True)
        return np.array([(one, *paired_interval(one, spread, units, level, share=False)) for one, spread in found])

    ahead, _, high = against(0).T
    eligible = high < 0 if (high < 0).any() else (ahead <= 0) & (took <= CHEAPER * took[0])
    kept = int(np.where(eligible, ahead, np.inf).argmin()) if eligible.any() else 0
    behind = against(int(np.nanargmin(ahead)))
    simplest = int(np.where(behind[:, 1] <= 0, took, np.inf).argmin())
    return Choice(kept, simplest, mean(np.nanmean(losses, axis=1)), behind)


def nested(
    tables: Sequence[pd.DataFrame], milliseconds: Sequence[float], classes: dict[str, bool], settings: DecisionSettings
) -> pd.DataFrame:
    """The decided table of the whole procedure: each `fold` is judged by what is chosen on the other folds alone.

    So are its calibration and its thresholds; but the members that judge the others have learned from this fold.
    """
    decided = []
    for held in (tables[0]["fold"] == fold for fold in tables[0]["fold"].unique()):
        table = tables[choose([[one[~held]] for one in tables], milliseconds, classes).kept].drop(columns="fold")
        decided.append(decide(table[held], choose_decision(settings, table[~held], classes), classes))
    return pd.concat(decided).sort_index()
