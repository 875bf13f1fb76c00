"""The jobs of a sweep as one table: what each setting reached over its seeds, best first, and what chance explains.

Jobs that differ in nothing but their seed are of one setting. Settings are ranked by validation numbers: of many test
numbers the best flatters. Intervals are Student's. A difference to the best is taken seed by seed, as one seed deals
both settings the same split; as the best is partly the luckiest, its interval holds for all pairs (Bonferroni), and
worse is what it tells from zero. Settings of other images (another dataset, other categories) are not compared.
"""

import shlex
from dataclasses import dataclass
from math import comb
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import t as student

from defectcls.evaluation.metrics import METRICS, defect_numbers

RANKING = ("auroc", "loss")  # more is better, and of equal ones less
SHOWN = ("auroc", "recall", "overkill_rate", "precision", "f1", "accuracy", "f1_macro")  # of the test part
DECIMALS = 4  # in which two numbers are equal
ROUNDING = 1e-9  # smaller spreads are none
OTHER_IMAGES = ("dataset", "target", "folds")  # settings that differ in these are not compared …
SAME_IMAGES = ("dataset.cache",)  # … but for this


class Job(NamedTuple):
    """One job of a sweep; `metrics` is the metrics.json of a finished run with one, `exit_status` the verb's own."""

    number: int
    overrides: tuple[str, ...]
    status: str
    error: str | None
    metrics: dict[str, Any] | None
    exit_status: int = 0


@dataclass(frozen=True)
class Sweep:
    """All jobs and settings, as jobs.csv and sweep.csv have them.

    A row of `settings` holds its name, the value of each key that differs between jobs, the number of jobs, and
    <column>_mean, _std, _low, _high and _n over seeds for each of `columns`. Where settings are compared, the best is
    first, and of the others there are the same of how far they are `behind` it, and the verdict.
    """

    name: str
    other_images: list[str]  # the keys by which settings are of other images, or other classes
    columns: list[str]  # of the numbers: <part>_<number>, and seconds
    ranked_by: str  # one of them; "" where no job has a number
    jobs: pd.DataFrame
    settings: pd.DataFrame
    out_of_fold: bool = False  # `val` is judged so, and where nothing is tested it is all that there is


def summarise_sweep(name: str, jobs: list[Job]) -> Sweep:
    """Settings by validation AUROC, by test AUROC where nothing was validated. A seed that ran twice counts once."""
    typed = [{override.partition("=")[0].lstrip("+"): override for override in job.overrides} for job in jobs]
    keys = dict.fromkeys(key for one in typed for key in one if key != "seed")
    varying = [key for key in keys if len({one.get(key) for one in typed}) > 1]
    other = [key for key in varying if key.partition(".")[0] in OTHER_IMAGES and not key.startswith(SAME_IMAGES)]
    folded = {bool(job.metrics.get("out_of_fold")) for job in jobs if job.metrics and "val" in job.metrics}
    other += ["evaluation"] * (len(folded) > 1)
    rows: list[dict[str, Any]] = []
    for job, one in zip(jobs, typed, strict=True):
        metrics = job.metrics or {}
        setting = ", ".join(one[key] for key in varying if key in one) or ("defaults" if varying else "all jobs")
        seed = str(metrics.get("seed", one.get("seed", "").partition("=")[2]))
        rows.append({"job": job.number, "status": job.status, "setting": setting, "seed": seed} | _numbers(metrics))
    table = pd.DataFrame(rows)
    columns = [str(column) for column in table.columns[4:]]
    table = table.astype(dict.fromkeys(columns, float))
    table["overrides"] = [shlex.join(job.overrides) for job in jobs]
    table["error"] = [job.error or "" for job in jobs]
    ranked_by = next((one for one in columns if one.endswith(RANKING) and table[one].notna().any()), "")

    rows = []
    finished = table["status"] == "finished"
    seeds = table[finished].drop_duplicates(["setting", "seed"])
    for typed_for, of_setting in table.groupby("setting", sort=False):
        one = typed[of_setting.index[0]]
        row = {"setting": typed_for} | {key: one.get(key, "").partition("=")[2] for key in varying}
        row |= {"jobs": len(of_setting), "finished": finished[of_setting.index].sum()}
        for column in columns:
            row |= over_seeds(column, seeds.loc[seeds["setting"] == typed_for, column])
        rows.append(row)
    settings = pd.DataFrame(rows)
    if ranked_by and not other:
        settings = _compared(settings, seeds, ranked_by)
    return Sweep(name, other, columns, ranked_by, table, settings, folded == {True})


def over_seeds(name: str, values: pd.Series, level: float = 0.95) -> dict[str, float]:
    """Mean, standard deviation and interval of the mean over the seeds that have a value, and how many these are.

    The interval of a share ends where the share can.
    """
    mean, std, n = values.mean(), values.std(), values.count()
    reach = student.ppf((1 + level) / 2, n - 1) * std / np.sqrt(n) if std > ROUNDING else np.nan
    ends = (-np.inf, np.inf) if name.endswith(("loss", "seconds", "behind")) else (0, 1)
    low, high = np.clip((mean - reach, mean + reach), *ends)
    parts = {"mean": mean, "std": std, "low": low, "high": high, "n": n}
    return {f"{name}_{part}": value for part, value in parts.items()}


def _compared(settings: pd.DataFrame, seeds: pd.DataFrame, ranked_by: str) -> pd.DataFrame:
    """The best first, and how far each of the others is behind it over the seeds in common."""
    part, _, metric = ranked_by.partition("_")
    by = {f"{part}_{name}_mean": name == "loss" for name in RANKING if f"{part}_{name}_mean" in settings}
    settings = settings.sort_values([*by], ascending=[*by.values()], key=lambda column: column.round(DECIMALS))
    settings = settings.set_index("setting", drop=False)
    best, *others = settings.index[settings[f"{ranked_by}_n"] > 0]
    reached = seeds.pivot(index="seed", columns="setting", values=ranked_by)
    behind = {}
    for one in others:
        difference = (reached[one] - reached[best]) * (1 if METRICS[metric].less_is_better else -1)
        found = over_seeds("behind", difference, level=1 - 0.05 / comb(len(others) + 1, 2))
        if np.isnan(found["behind_low"]):  # of one seed, or of seeds that all say the same
            verdict = "equal" if abs(found["behind_mean"]) < ROUNDING else "chance unknown"
        else:
            verdict = "worse" if found["behind_low"] > 0 else "within chance"
        behind[one] = found | {"verdict": verdict if found["behind_n"] else ""}
    settings = settings.join(pd.DataFrame.from_dict(behind, orient="index")).fillna({"verdict": ""})
    return settings.reset_index(drop=True)


def _numbers(metrics: dict[str, Any]) -> dict[str, float]:
    """Of metrics.json, by <part>_<number>: what ranks, and what is shown of the part that the verdict is on."""
    found: dict[str, float] = {}
    twice = len(metrics.get("out_of_fold", {})) > 1  # `val` and `test` are the same
    for part, names in [("val", (*SHOWN, "loss"))] if twice else [("val", RANKING), ("test", SHOWN)]:
        values = defect_numbers(metrics.get(part, {}))
        stated = [name for name in names if name in values and (name != "f1_macro" or "per_class" in values)]
        found |= {f"{part}_{name}": values[name] for name in stated}
    return found | ({"seconds": sum(metrics["seconds"].values())} if "seconds" in metrics else {})
