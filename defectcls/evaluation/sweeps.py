"""The jobs of a sweep as one table: what each setting reached over its seeds, best first, and what chance explains.

Jobs that differ in nothing but their seed are of one setting. Settings are ranked by validation numbers: of many test
numbers the best flatters. An interval is Student's, of the mean over seeds; a difference to the best setting is taken
seed by seed, as one seed deals both of them the same split. It takes two seeds that differ.

Settings of other images (another dataset, other categories) are ranked by themselves, one block each, and below the
blocks stands the mean over them: a number of its own for each seed, and so with a spread and an interval over seeds.

The best of many is partly the luckiest: where twelve settings are equal, with five seeds each, in two sweeps of three
some of them seem worse than the best at 95 %. Worse is therefore said only of a difference that would hold if all pairs
of settings were compared, at 95 % together (Bonferroni): of equals, in 1 to 6 sweeps of 100.
"""

import shlex
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from math import comb
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import t as student

from defectcls.evaluation.metrics import METRICS, defect_counts, defect_numbers

RANKING = ("auroc", "loss")  # more is better, and of equal ones less
SHOWN = ("auroc", "recall", "overkill_rate", "precision", "f1", "accuracy", "f1_macro")  # of the test part
COUNTS = ("passed", "rejected", "missed", "caught")  # sound, sound, defective, defective images
LEVEL = 0.95
DECIMALS = 4  # in which two AUROC are equal
ROUNDING = 1e-9  # smaller spreads are none
OTHER_IMAGES = ("dataset", "target", "folds")  # settings that differ in these are not judged alike
SAME_DATASET = ("folds", *(f"dataset.{key}" for key in ("split", "resize", "depth", "consecutive", "on_unreadable")))


class Job(NamedTuple):
    """One job of a sweep; `metrics` is the metrics.json of a finished run that has one."""

    number: int
    overrides: tuple[str, ...]
    status: str
    error: str | None
    metrics: dict[str, Any] | None


class Number(NamedTuple):
    """Mean, standard deviation and interval of the mean over `n` seeds; NaN where these state none."""

    mean: float
    std: float
    low: float
    high: float
    n: int


@dataclass(frozen=True, eq=False)
class Setting:
    """What was typed for it that is not the same in all jobs, by key; its jobs, seeds and numbers."""

    name: str
    images: str  # of what was typed, that which says which images, as "bottle"; "" where all jobs have the same
    within: str  # and the rest
    values: dict[str, str]
    jobs: int
    finished: int
    again: int  # of the finished, those of a seed that had finished before
    seeds: pd.DataFrame  # one row a seed that finished, one column a number
    counts: tuple[int, ...] | None  # COUNTS on the judged parts of all seeds together
    collapsed: int  # seeds whose judged part says that the model calls nearly every image alike
    behind: Number | None = None  # the best of the same images less this one; None where nothing can be compared
    verdict: str = ""  # whether chance explains that it is behind

    @cached_property
    def numbers(self) -> dict[str, Number]:
        """Over the seeds; of the interval what lies where the number can."""
        most = {str(column): np.inf if str(column).endswith(("loss", "seconds")) else 1.0 for column in self.seeds}
        return {column: over_seeds(self.seeds[column], 0.0, end) for column, end in most.items()}


@dataclass(frozen=True)
class Sweep:
    """All jobs, one row each, and the settings, by images and best first; `ranked_by` is "" where no job has a number.

    `means` are those over all images, one for each setting `within` them.
    """

    name: str
    shared: list[str]
    varying: list[str]
    columns: list[str]  # of the numbers: <part>_<number>, and seconds
    ranked_by: str
    jobs: pd.DataFrame
    settings: list[Setting]
    means: list[Setting]

    @property
    def blocks(self) -> list[list[Setting]]:
        """The settings of the same images, best first."""
        return _blocks(self.settings)


def summarise_sweep(name: str, jobs: list[Job]) -> Sweep:
    """Settings by validation AUROC, by test AUROC where nothing was validated. A seed that ran twice counts once."""
    typed = [{override.partition("=")[0].lstrip("+"): override for override in job.overrides} for job in jobs]
    keys = [key for key in dict.fromkeys(key for one in typed for key in one) if key != "seed"]
    varying = [key for key in keys if len({one.get(key) for one in typed}) > 1]
    choosing = [key for key in other_images(varying) if not key.startswith(SAME_DATASET)]
    within = [key for key in varying if key not in choosing]
    rows: list[dict[str, Any]] = []
    for job, one in zip(jobs, typed, strict=True):
        metrics, images = job.metrics or {}, ", ".join(_value(one[key]).strip("[]") for key in choosing if key in one)
        row = {"job": job.number, "status": job.status, "setting": _name(one, varying)}
        row |= {"seed": str(metrics.get("seed", one.get("seed", "").partition("=")[2]))}
        row |= {"images": images or "defaults" * bool(choosing), "within": _name(one, within, "")}
        rows.append(row | {"overrides": shlex.join(job.overrides), "error": job.error or ""} | _numbers(metrics))
    about = ["job", "status", "setting", "seed", "images", "within", "overrides", "error"]
    table = pd.DataFrame(rows, columns=None if rows else about)
    columns = [str(column) for column in table if column not in (*about, "collapsed", *COUNTS)]
    columns.sort(key="seconds".__eq__)
    table = table.astype(dict.fromkeys(columns, float))
    ranked_by = next((one for one in columns if one.endswith(RANKING) and table[one].notna().any()), "")

    settings, means = [], []
    for setting, of_setting in table.groupby("setting", sort=False):
        one = typed[of_setting.index[0]]
        values = {key: _value(one.get(key, "")) for key in varying}
        settings.append(_setting(str(setting), values, of_setting, columns))
    order = list(dict.fromkeys(one.images for one in settings))
    settings.sort(key=lambda setting: (order.index(setting.images), *_rank(setting, ranked_by)))
    if ranked_by and other_images(varying) == choosing:
        blocks = _blocks(settings)
        pairs = sum(comb(sum(one.numbers[ranked_by].n > 0 for one in block), 2) for block in blocks)
        settings = [_compared(block[0], one, ranked_by, pairs) for block in blocks for one in block]
    kind = "categories" if choosing == ["dataset.categories"] else "datasets"
    for part, of_part in table.groupby("within", sort=False):
        if columns and of_part["images"].nunique() == len(order) > 1:
            mean = f"mean over {len(order)} {kind}"
            title = f"{mean}: {part!s}" if part else mean
            every = _setting(title, dict.fromkeys(varying, ""), of_part, columns, len(order))
            means.append(replace(every, images=mean))
    shared = [typed[0][key] for key in keys if key not in varying]
    jobs_table = table[["job", "status", "setting", "seed", *columns, "overrides", "error"]]
    return Sweep(name, shared, varying, columns, ranked_by, jobs_table, settings, means)


def _setting(name: str, values: dict[str, str], rows: pd.DataFrame, columns: list[str], images: int = 1) -> Setting:
    """Of its jobs, where they are on several `images` a seed's mean over those, if it finished on all."""
    every = rows[rows["status"] == "finished"]
    finished = every.drop_duplicates(["images", "seed"])
    of_seed = finished.groupby("seed", sort=False)[columns]
    counts = finished.reindex(columns=COUNTS).dropna()
    return Setting(
        name=name,
        images=rows["images"].iloc[0],
        within=rows["within"].iloc[0],
        values=values,
        jobs=len(rows),
        finished=len(every),
        again=len(every) - len(finished),
        seeds=of_seed.mean().where(of_seed.count() == images),
        counts=tuple(counts.sum().astype(int).tolist()) if len(counts) else None,
        collapsed=int(finished["collapsed"].sum()),
    )


def over_seeds(values: pd.Series, least: float = -np.inf, most: float = np.inf) -> Number:
    """Of one value a seed, those that are defined; the interval ends where the number can."""
    known = values.dropna()
    mean, std, n = known.mean(), known.std(), len(known)
    if not std > ROUNDING:
        return Number(mean, std, np.nan, np.nan, n)
    reach = student.ppf((1 + LEVEL) / 2, n - 1) * std / np.sqrt(n)
    return Number(mean, std, max(least, mean - reach), min(most, mean + reach), n)


def settings_table(sweep: Sweep) -> pd.DataFrame:
    """One row a setting: each key that differs between jobs, mean, std, low, high and n of each number, and COUNTS.

    The rank is that among settings of the same images; the last rows are the means over images.
    """
    rows = []
    ranks = [rank for block in sweep.blocks for rank in range(1, len(block) + 1)]
    for rank, setting in zip([*ranks, *[None] * len(sweep.means)], [*sweep.settings, *sweep.means], strict=True):
        ranked = sweep.ranked_by and setting.numbers[sweep.ranked_by].n
        row: dict[str, Any] = {"rank": rank if ranked else None, "setting": setting.name} | setting.values
        row |= {"jobs": setting.jobs, "finished": setting.finished}
        for column, value in (setting.numbers | ({"behind": setting.behind} if setting.behind else {})).items():
            row |= {f"{column}_{part}": item for part, item in value._asdict().items()}
        rows.append(row | dict(zip(COUNTS, setting.counts or [None] * 4, strict=True)) | {"verdict": setting.verdict})
    table, last = pd.DataFrame(rows), [*COUNTS, "verdict"]
    return table[[*table.columns.drop(last), *last]] if rows else table


def other_images(varying: list[str]) -> list[str]:
    """The keys by which the settings are measured on other images, or other classes."""
    kept = ("dataset.cache", "dataset.download")
    return [key for key in varying if key.partition(".")[0] in OTHER_IMAGES and not key.startswith(kept)]


def _numbers(metrics: dict[str, Any]) -> dict[str, Any]:
    """Of metrics.json, by <part>_<number>: what ranks, and what is shown of the part that the verdict is on.

    Of that part also COUNTS, and whether the model `collapsed`.
    """
    found: dict[str, Any] = {}
    ranking, judged = (
        next((part for part in parts if part in metrics), "")
        for parts in (("val", "test", "train"), ("test", "val", "train"))
    )
    for part, names in ((ranking, RANKING), (judged, SHOWN)):
        values = defect_numbers(metrics.get(part, {}))
        wanted = [name for name in names if name in values and (name != "f1_macro" or "per_class" in values)]
        found |= {f"{part}_{name}": values[name] for name in wanted}
    if "seconds" in metrics:
        found["seconds"] = sum(metrics["seconds"].values())
    values, sides = metrics.get(judged, {}), metrics.get("defective_classes", [])
    if "confusion_matrix" in values and any(sides) and not all(sides):
        found |= zip(COUNTS, defect_counts(values["confusion_matrix"], sides), strict=True)
    return found | {"collapsed": "collapse" in values}


def _blocks(settings: list[Setting]) -> list[list[Setting]]:
    return [list(block) for _, block in groupby(settings, lambda one: one.images)]


def _compared(best: Setting, other: Setting, ranked_by: str, pairs: int) -> Setting:
    """`other` with its distance to the best; `pairs` of settings could have been the one that is looked at."""
    sign = -1 if METRICS[ranked_by.partition("_")[2]].less_is_better else 1
    differences = (sign * (best.seeds[ranked_by] - other.seeds[ranked_by])).dropna()  # joined by seed
    if other is best or differences.empty:
        return other
    behind = over_seeds(differences)
    if np.isnan(behind.low):
        verdict = "equal" if abs(behind.mean) < ROUNDING else "chance unknown"
    elif behind.low <= 0:
        verdict = "within chance"
    else:
        chance = 2 * student.sf(behind.mean / behind.std * np.sqrt(behind.n), behind.n - 1)
        verdict = "worse" if chance < (1 - LEVEL) / pairs else "perhaps worse"
    return replace(other, behind=behind, verdict=verdict)


def _rank(setting: Setting, ranked_by: str) -> tuple[float, float]:
    """What settings of the same images are sorted by."""
    columns = (f"{ranked_by.partition('_')[0]}_{name}" for name in RANKING)
    auroc, loss = (setting.numbers[column].mean if column in setting.numbers else np.nan for column in columns)
    return np.inf if np.isnan(auroc) else -round(auroc, DECIMALS), np.inf if np.isnan(loss) else loss


def _name(typed: dict[str, str], varying: list[str], nothing: str = "all jobs") -> str:
    return ", ".join(typed[key] for key in varying if key in typed) or ("defaults" if varying else nothing)


def _value(override: str) -> str:
    _, is_set, value = override.partition("=")
    return value if is_set else override
