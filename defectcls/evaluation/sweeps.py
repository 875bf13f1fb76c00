"""The jobs of a sweep as one table: what each setting reached over its seeds, best first, and what chance explains.

Jobs that differ in nothing but their seed are of one setting. Settings are ranked by validation numbers: of many test
numbers the best flatters. An interval is Student's, of the mean over seeds; a difference to the best setting is taken
seed by seed, as one seed deals both of them the same split. It takes two seeds that differ.

Settings of other images (another dataset, other categories) are ranked by themselves. As the best of many is partly the
luckiest, worse is said only of a difference that would hold if all pairs of settings were compared, at 95 % together
(Bonferroni).
"""

import shlex
from collections import Counter
from dataclasses import dataclass
from math import comb
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import t as student

from defectcls.evaluation.metrics import METRICS, defect_numbers

RANKING = ("auroc", "loss")  # more is better, and of equal ones less
SHOWN = ("auroc", "recall", "overkill_rate", "precision", "f1", "accuracy", "f1_macro")  # of the test part
LEVEL = 0.95
DECIMALS = 4  # in which two AUROC are equal
ROUNDING = 1e-9  # smaller spreads are none
OTHER_IMAGES = ("dataset", "target", "folds")  # settings that differ in these are not judged alike …
SAME_IMAGES = ("dataset.cache", "dataset.download")  # … but for these


class Job(NamedTuple):
    """One job of a sweep; `metrics` is the metrics.json of a finished run that has one."""

    number: int
    overrides: tuple[str, ...]
    status: str
    error: str | None
    metrics: dict[str, Any] | None


@dataclass(frozen=True)
class Sweep:
    """All jobs and settings, as jobs.csv and sweep.csv have them.

    A row of `settings` holds its rank among those of the same images, its name, the value of each key that differs
    between jobs, the number of jobs, <column>_mean, _std, _low, _high and _n over seeds for each of `columns`, the same
    of how far it is `behind` the best, and whether chance explains that: the verdict, "" where nothing is compared.
    """

    name: str
    other_images: list[str]  # the keys by which settings are judged by other images, or other classes
    columns: list[str]  # of the numbers: <part>_<number>, and seconds
    ranked_by: str  # one of them; "" where no job has a number
    jobs: pd.DataFrame
    settings: pd.DataFrame


def summarise_sweep(name: str, jobs: list[Job]) -> Sweep:
    """Settings by validation AUROC, by test AUROC where nothing was validated. A seed that ran twice counts once."""
    typed = [{override.partition("=")[0].lstrip("+"): override for override in job.overrides} for job in jobs]
    keys = [key for key in dict.fromkeys(key for one in typed for key in one) if key != "seed"]
    varying = [key for key in keys if len({one.get(key) for one in typed}) > 1]
    other = [key for key in varying if key.partition(".")[0] in OTHER_IMAGES and not key.startswith(SAME_IMAGES)]
    rows: list[dict[str, Any]] = []
    for job, one in zip(jobs, typed, strict=True):
        metrics = job.metrics or {}
        setting = ", ".join(one[key] for key in varying if key in one) or ("defaults" if varying else "all jobs")
        seed = str(metrics.get("seed", one.get("seed", "").partition("=")[2]))
        row = {"job": job.number, "status": job.status, "setting": setting, "seed": seed} | _numbers(metrics)
        rows.append(row | {"overrides": shlex.join(job.overrides), "error": job.error or ""})
    table = pd.DataFrame(rows)
    about = ["job", "status", "setting", "seed"], ["overrides", "error"]
    columns = [str(column) for column in table if column not in (*about[0], *about[1])]
    table = table[[*about[0], *columns, *about[1]]].astype(dict.fromkeys(columns, float))
    ranked_by = next((one for one in columns if one.endswith(RANKING) and table[one].notna().any()), "")

    settings: list[dict[str, Any]] = []
    seeds: dict[Any, pd.DataFrame] = {}
    for typed_for, of_setting in table.groupby("setting", sort=False):
        one = typed[of_setting.index[0]]
        finished = of_setting[of_setting["status"] == "finished"]
        seeds[typed_for] = finished.drop_duplicates("seed").set_index("seed")
        row = {"setting": typed_for, "images": tuple(one.get(key) for key in other)}
        row |= {key: one.get(key, "").partition("=")[2] for key in varying} | {
            "jobs": len(of_setting),
            "finished": len(finished),
        }
        for column in columns:
            row |= over_seeds(column, seeds[typed_for][column])
        settings.append(row)
    order = list(dict.fromkeys(row["images"] for row in settings))
    settings.sort(key=lambda row: (order.index(row["images"]), *_rank(row, ranked_by)))
    ranked = Counter(row["images"] for row in settings if ranked_by and row[f"{ranked_by}_n"])
    pairs = sum(comb(count, 2) for count in ranked.values())
    best, rank = settings[0], 0
    for row in settings:
        first = not rank or row["images"] != best["images"]
        best, rank = (row, 1) if first else (best, rank + 1)
        row |= {"rank": rank, "verdict": ""}
        if not first and ranked_by and row[f"{ranked_by}_n"]:
            sign = -1 if METRICS[ranked_by.partition("_")[2]].less_is_better else 1
            behind = sign * (seeds[best["setting"]][ranked_by] - seeds[row["setting"]][ranked_by])  # joined by seed
            row |= over_seeds("behind", behind) | {"verdict": _verdict(behind.dropna(), pairs)}
    shown = pd.DataFrame(settings).drop(columns="images")
    last = [f"behind_{part}" for part in ("mean", "std", "low", "high", "n") if "behind_n" in shown] + ["verdict"]
    shown = shown[["rank", *shown.columns.drop(["rank", *last]), *last]]
    return Sweep(name, other, columns, ranked_by, table, shown)


def over_seeds(name: str, values: pd.Series) -> dict[str, float]:
    """Mean, standard deviation and interval of the mean over the seeds that have a value, and how many these are.

    The interval of a share ends where the share can.
    """
    known = values.dropna()
    mean, std, n = known.mean(), known.std(), len(known)
    reach = student.ppf((1 + LEVEL) / 2, n - 1) * std / np.sqrt(n) if std > ROUNDING else np.nan
    low, high = mean - reach, mean + reach
    if not name.endswith(("loss", "seconds", "behind")):
        low, high = np.clip((low, high), 0, 1)
    parts = {"mean": mean, "std": std, "low": low, "high": high, "n": n}
    return {f"{name}_{part}": value for part, value in parts.items()}


def _verdict(behind: pd.Series, pairs: int) -> str:
    """Of a difference to the best, one a seed; any of `pairs` of settings could have been the one looked at."""
    if behind.empty:
        return ""
    if not behind.std() > ROUNDING:
        return "equal" if abs(behind.mean()) < ROUNDING else "chance unknown"
    chance = 2 * student.sf(behind.mean() / behind.std() * np.sqrt(len(behind)), len(behind) - 1)
    return "worse" if chance < (1 - LEVEL) / pairs else "within chance"


def _numbers(metrics: dict[str, Any]) -> dict[str, float]:
    """Of metrics.json, by <part>_<number>: what ranks, and what is shown of the part that the verdict is on."""
    found: dict[str, float] = {}
    ranking = next((part for part in ("val", "test", "train") if part in metrics), "")
    judged = next((part for part in ("test", "val", "train") if part in metrics), "")
    for part, name in [(ranking, RANKING[0]), *((judged, name) for name in SHOWN), (ranking, RANKING[1])]:
        values = defect_numbers(metrics.get(part, {}))
        if name in values and (name != "f1_macro" or "per_class" in values):
            found[f"{part}_{name}"] = values[name]
    return found | ({"seconds": sum(metrics["seconds"].values())} if "seconds" in metrics else {})


def _rank(row: dict[str, Any], ranked_by: str) -> tuple[float, float]:
    """What settings of the same images are sorted by."""
    part = ranked_by.partition("_")[0]
    auroc, loss = (row.get(f"{part}_{name}_mean", np.nan) for name in RANKING)
    return np.inf if np.isnan(auroc) else -round(auroc, DECIMALS), np.inf if np.isnan(loss) else loss
