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
        """Over the seeds."""
        return {str(column): over_seeds(self.seeds[column], *number_range(str(column))) for column in self.seeds}


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

    @property
    def best(self) -> Setting | None:
        """None where nothing is ranked, or each by its own images."""
        return self.settings[0] if self.ranked_by and len(self.blocks) == 1 else None


def summarise_sweep(name: str, jobs: list[Job]) -> Sweep:
    """Settings by validation AUROC, by test AUROC where nothing was validated. A seed that ran twice counts once."""
    typed = [{override.partition("=")[0].lstrip("+"): override for override in job.overrides} for job in jobs]
    keys = [key for key in dict.fromkeys(key for one in typed for key in one) if key != "seed"]
    varying = [key for key in keys if len({one.get(key) for one in typed}) > 1]
    choosing = [key for key in other_images(varying) if not key.startswith(SAME_DATASET)]
    rows, columns = [], dict[str, None]()
    for job, one in zip(jobs, typed, strict=True):
        metrics, numbers = job.metrics or {}, _numbers(job.metrics or {})
        columns |= dict.fromkeys(numbers)
        about = {"job": job.number, "status": job.status, "setting": _name(one, varying)}
        about |= {"seed": str(metrics.get("seed", one.get("seed", "").partition("=")[2]))}
        rows.append(about | numbers | {"overrides": shlex.join(job.overrides), "error": job.error or ""})
    shown = sorted(columns, key="seconds".__eq__)
    table = pd.DataFrame(rows, columns=["job", "status", "setting", "seed", *shown, "overrides", "error"])
    table[shown] = table[shown].astype(float)

    ranked_by = next((one for one in shown if one.endswith(RANKING) and table[one].notna().any()), "")
    settings = []
    for setting, of_setting in table.groupby("setting", sort=False):
        one, every = typed[of_setting.index[0]], of_setting[of_setting["status"] == "finished"]
        values, finished = {key: _value(one.get(key, "")) for key in varying}, every.drop_duplicates("seed")
        images = ", ".join(values[key].strip("[]") for key in choosing if values[key])
        parts = [_judged(jobs[index].metrics or {}) for index in finished.index]
        settings.append(
            Setting(
                name=str(setting),
                images=images or "defaults" * bool(choosing),
                within=_name(one, [key for key in varying if key not in choosing], ""),
                values=values,
                jobs=len(of_setting),
                finished=len(every),
                again=len(every) - len(finished),
                seeds=finished.set_index("seed")[shown],
                counts=_sum([counts for counts, _ in parts]),
                collapsed=sum(collapsed for _, collapsed in parts),
            )
        )
    order = list(dict.fromkeys(one.images for one in settings))
    settings.sort(key=lambda setting: (order.index(setting.images), *_rank(setting, ranked_by)))
    if ranked_by and other_images(varying) == choosing:
        blocks = _blocks(settings)
        pairs = sum(comb(sum(one.numbers[ranked_by].n > 0 for one in block), 2) for block in blocks)
        settings = [_compared(block[0], one, ranked_by, pairs) for block in blocks for one in block]
    shared = [typed[0][key] for key in keys if key not in varying]
    means = _means(settings, "categories" if choosing == ["dataset.categories"] else "datasets")
    return Sweep(name, shared, varying, shown, ranked_by, table, settings, means)


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


def number_range(column: str) -> tuple[float, float]:
    """Where a number can lie."""
    return 0.0, np.inf if column.endswith(("loss", "seconds")) else 1.0


def other_images(varying: list[str]) -> list[str]:
    """The keys by which the settings are measured on other images, or other classes."""
    kept = ("dataset.cache", "dataset.download")
    return [key for key in varying if key.partition(".")[0] in OTHER_IMAGES and not key.startswith(kept)]


def _numbers(metrics: dict[str, Any]) -> dict[str, float | None]:
    """Of metrics.json, by <part>_<number>: what ranks, and what is shown of the part that the verdict is on."""
    found: dict[str, float | None] = {}
    ranking = next((part for part in ("val", "test", "train") if part in metrics), "")
    for part, names in ((ranking, RANKING), (_judged_part(metrics), SHOWN)):
        values = defect_numbers(metrics.get(part, {}))
        wanted = [name for name in names if name in values and (name != "f1_macro" or "per_class" in values)]
        found |= {f"{part}_{name}": values[name] for name in wanted}
    if "seconds" in metrics:
        found["seconds"] = sum(metrics["seconds"].values())
    return found


def _judged_part(metrics: dict[str, Any]) -> str:
    return next((part for part in ("test", "val", "train") if part in metrics), "")


def _judged(metrics: dict[str, Any]) -> tuple[tuple[int, ...] | None, bool]:
    """COUNTS of one job, and whether it collapsed."""
    values = metrics.get(_judged_part(metrics), {})
    sides, matrix = metrics.get("defective_classes", []), values.get("confusion_matrix")
    counts = defect_counts(matrix, sides) if matrix and any(sides) and not all(sides) else None
    return counts, "collapse" in values


def _sum(counts: list[tuple[int, ...] | None]) -> tuple[int, ...] | None:
    return tuple(map(sum, zip(*filter(None, counts), strict=True))) or None


def _blocks(settings: list[Setting]) -> list[list[Setting]]:
    return [list(block) for _, block in groupby(settings, lambda one: one.images)]


def _means(settings: list[Setting], kind: str) -> list[Setting]:
    """The mean over all images of each setting that stands in every block; a seed counts where all blocks have it."""
    blocks, means = len(_blocks(settings)), []
    title = f"mean over {blocks} {kind}"
    for within in dict.fromkeys(one.within for one in settings if blocks > 1 and one.numbers):
        members = [one for one in settings if one.within == within]
        if len(members) < blocks:
            continue
        of_seed = pd.concat([one.seeds for one in members]).groupby(level=0)
        means.append(
            Setting(
                name=f"{title}: {within}" if within else title,
                images=title,
                within=within,
                values=dict.fromkeys(members[0].values, ""),
                jobs=sum(one.jobs for one in members),
                finished=sum(one.finished for one in members),
                again=sum(one.again for one in members),
                seeds=of_seed.mean().where(of_seed.count() == blocks),
                counts=_sum([one.counts for one in members]),
                collapsed=0,
            )
        )
    return means


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
