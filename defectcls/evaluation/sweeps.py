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
from dataclasses import dataclass
from itertools import groupby
from math import comb
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import t as student

from defectcls.evaluation.metrics import defect_counts, defect_numbers

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


class Setting(NamedTuple):
    """What was typed for it that is not the same in all jobs, by key; its jobs, seeds and numbers."""

    name: str
    images: str  # of what was typed, that which says which images, as "bottle"; "" where all jobs have the same
    within: str  # and the rest
    values: dict[str, str]
    jobs: int
    finished: int
    again: int  # of the finished, those of a seed that had finished before
    seeds: pd.DataFrame  # one row a seed that finished, one column a number
    numbers: dict[str, Number]
    counts: tuple[int, ...] | None  # COUNTS on the judged parts of all seeds together
    collapsed: int  # seeds whose judged part says that the model calls nearly every image alike
    behind: Number | None = None  # the best of the same images less this one; None where nothing can be compared
    verdict: str = ""  # whether chance explains that it is behind


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
        return [list(block) for _, block in groupby(self.settings, lambda one: one.images)]

    @property
    def best(self) -> Setting | None:
        """None where nothing is ranked, or each by its own images."""
        return self.settings[0] if self.ranked_by and len(self.blocks) == 1 else None


def summarise_sweep(name: str, jobs: list[Job]) -> Sweep:
    """Settings by validation AUROC, by test AUROC where nothing was validated. A seed that ran twice counts once."""
    typed = [{override.partition("=")[0].lstrip("+"): override for override in job.overrides} for job in jobs]
    keys = [key for key in dict.fromkeys(key for one in typed for key in one) if key != "seed"]
    varying = [key for key in keys if len({one.get(key) for one in typed}) > 1]
    measured = [_numbers(job.metrics or {}) for job in jobs]
    columns = sorted(dict.fromkeys(column for one in measured for column in one), key="seconds".__eq__)
    rows: list[dict[str, Any]] = []
    for job, one, numbers in zip(jobs, typed, measured, strict=True):
        seed = (job.metrics or {}).get("seed", one.get("seed", "").partition("=")[2])
        about = {"job": job.number, "status": job.status, "setting": _name(one, varying), "seed": str(seed)}
        rows.append(about | numbers | {"overrides": shlex.join(job.overrides), "error": job.error or ""})
    table = pd.DataFrame(rows, columns=["job", "status", "setting", "seed", *columns, "overrides", "error"])
    table[columns] = table[columns].astype(float)

    ranked_by = next((one for one in columns if one.endswith(RANKING) and table[one].notna().any()), "")
    choosing = [key for key in other_images(varying) if not key.startswith(SAME_DATASET)]
    settings = []
    for setting, of_setting in table.groupby("setting", sort=False):
        one = typed[of_setting.index[0]]
        values = {key: _value(one.get(key, "")) for key in varying}
        finished = of_setting[of_setting["status"] == "finished"]
        again, finished = int(finished["seed"].duplicated().sum()), finished.drop_duplicates("seed")
        seeds = finished.set_index("seed")[columns]
        found = [_judged(jobs[index].metrics or {}) for index in finished.index]
        settings.append(
            Setting(
                name=str(setting),
                images=", ".join(values[key].strip("[]") for key in choosing if values[key])
                or "defaults" * bool(choosing),
                within=_name(one, [key for key in varying if key not in choosing])
                if len(varying) > len(choosing)
                else "",
                values=values,
                jobs=len(of_setting),
                finished=len(finished) + again,
                again=again,
                seeds=seeds,
                numbers=_over_seeds(seeds),
                counts=_sum([counts for counts, _ in found if counts]),
                collapsed=sum(collapsed for _, collapsed in found),
            )
        )
    blocks = list(dict.fromkeys(one.images for one in settings))
    if ranked_by:
        settings.sort(key=lambda setting: (blocks.index(setting.images), _rank(setting, ranked_by)))
    else:
        settings.sort(key=lambda setting: blocks.index(setting.images))
    if ranked_by and other_images(varying) == choosing:
        settings = _compared(settings, blocks, ranked_by)
    shared = [typed[0][key] for key in keys if key not in varying]
    means = _means(settings, "categories" if choosing == ["dataset.categories"] else "datasets")
    return Sweep(name, shared, varying, columns, ranked_by, table, settings, means)


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
        behind = {} if setting.behind is None else {"behind": setting.behind}
        for column, value in (setting.numbers | behind).items():
            row |= {f"{column}_{part}": item for part, item in value._asdict().items()}
        counts = dict(zip(COUNTS, setting.counts or [None] * len(COUNTS), strict=True))
        rows.append(row | counts | {"verdict": setting.verdict})
    table = pd.DataFrame(rows)
    last = [*COUNTS, "verdict"]
    return table[[*table.columns.drop(last), *last]] if rows else table


def _numbers(metrics: dict[str, Any]) -> dict[str, float | None]:
    """Of metrics.json, by <part>_<number>: what ranks, and what is shown of the part that the verdict is on."""
    parts = [part for part in ("val", "test", "train") if part in metrics]
    found: dict[str, float | None] = {}
    for part, names in ((next(iter(parts), ""), RANKING), (_judged_part(metrics), SHOWN)):
        values = defect_numbers(metrics.get(part, {}))
        two_classes = "per_class" not in values
        wanted = [name for name in names if name in values and not (two_classes and name == "f1_macro")]
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


def _sum(counts: list[tuple[int, ...]]) -> tuple[int, ...] | None:
    return tuple(map(sum, zip(*counts, strict=True))) or None


def _over_seeds(seeds: pd.DataFrame) -> dict[str, Number]:
    return {str(column): over_seeds(seeds[column], *number_range(str(column))) for column in seeds}


def _means(settings: list[Setting], kind: str) -> list[Setting]:
    """The mean over all images of each setting that stands in every block; a seed counts where all blocks have it."""
    blocks = len({one.images for one in settings})
    means = []
    for within in dict.fromkeys(one.within for one in settings if blocks > 1 and one.numbers):
        members = [one for one in settings if one.within == within]
        if len(members) < blocks:
            continue
        of_seed = pd.concat([one.seeds for one in members]).groupby(level=0)
        seeds = of_seed.mean().where(of_seed.count() == blocks)
        title = f"mean over {blocks} {kind}"
        means.append(
            members[0]._replace(
                name=f"{title}: {within}" if within else title,
                images=title,
                values=dict.fromkeys(members[0].values, ""),
                jobs=sum(one.jobs for one in members),
                finished=sum(one.finished for one in members),
                again=sum(one.again for one in members),
                seeds=seeds,
                numbers=_over_seeds(seeds),
                counts=_sum([one.counts for one in members if one.counts]),
                collapsed=0,
                behind=None,
                verdict="",
            )
        )
    return means


def _compared(settings: list[Setting], blocks: list[str], ranked_by: str) -> list[Setting]:
    """Each with its distance to the best of the same images."""
    of_images = [[one for one in settings if one.images == images] for images in blocks]
    pairs = sum(comb(sum(one.numbers[ranked_by].n > 0 for one in block), 2) for block in of_images)
    return [
        one if one is block[0] else _compare(block[0], one, ranked_by, pairs) for block in of_images for one in block
    ]


def _name(typed: dict[str, str], varying: list[str]) -> str:
    return ", ".join(typed[key] for key in varying if key in typed) or ("defaults" if varying else "all jobs")


def _value(override: str) -> str:
    _, is_set, value = override.partition("=")
    return value if is_set else override


def number_range(column: str) -> tuple[float, float]:
    """Where a number can lie."""
    return 0.0, np.inf if column.endswith(("loss", "seconds")) else 1.0


def _rank(setting: Setting, ranked_by: str) -> tuple[float, float]:
    part = ranked_by.partition("_")[0]
    auroc, loss = (
        setting.numbers[column].mean if (column := f"{part}_{name}") in setting.numbers else np.nan for name in RANKING
    )
    return np.inf if np.isnan(auroc) else -round(auroc, DECIMALS), np.inf if np.isnan(loss) else loss


def _compare(best: Setting, other: Setting, ranked_by: str, pairs: int) -> Setting:
    """`other` with its distance to the best; `pairs` of settings could have been the one that is looked at."""
    sign = -1 if ranked_by.endswith("loss") else 1
    differences = (sign * (best.seeds[ranked_by] - other.seeds[ranked_by])).dropna()  # joined by seed
    if differences.empty:
        return other
    behind = over_seeds(differences)
    if np.isnan(behind.low):
        verdict = "equal" if abs(behind.mean) < ROUNDING else "chance unknown"
    elif behind.low <= 0:
        verdict = "within chance"
    else:
        chance = 2 * student.sf(behind.mean / behind.std * np.sqrt(behind.n), behind.n - 1)
        verdict = "worse" if chance < (1 - LEVEL) / pairs else "perhaps worse"
    return other._replace(behind=behind, verdict=verdict)


def other_images(varying: list[str]) -> list[str]:
    """The keys by which the settings are measured on other images, or other classes."""
    return [
        key
        for key in varying
        if key.partition(".")[0] in OTHER_IMAGES and not key.startswith(("dataset.cache", "dataset.download"))
    ]
