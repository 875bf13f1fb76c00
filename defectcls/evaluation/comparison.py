"""Several predictions tables of the same images, and which of their differences chance does not explain.

A difference is paired: all tables are judged on one resample of the groups at a time, so that images which are hard for
all of them cancel out. Its variance is that of the bootstrap; to a share one group is added that speaks for each side
(Bonett and Price, Journal of Educational and Behavioral Statistics 37, 2012), or else a few images on which all differ
would prove anything. Of several pairs each has an interval at the level 1 - (1 - level) / pairs (Bonferroni).
"""

from dataclasses import dataclass
from itertools import combinations, product
from math import comb
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import t as student

from defectcls.errors import UserError
from defectcls.evaluation.intervals import NOTHING, Interval, bootstrap, intervals_of
from defectcls.evaluation.metrics import ALL, DEFECT, METRICS, Answers, plain
from defectcls.evaluation.predictions import class_names_of, classes_of_table, groups_of


class Difference(NamedTuple):
    """The number of `run` less that of `other`, and its interval, adjusted for the number of pairs."""

    metric: str
    run: str
    other: str
    difference: float
    low: float
    high: float

    @property
    def better(self) -> str:
        """The run that is shown to be better, "" where none is."""
        ahead, behind = (self.other, self.run) if METRICS[self.metric].less_is_better else (self.run, self.other)
        return ahead if self.low > 0 else behind if self.high < 0 else ""


@dataclass(frozen=True)
class Comparison:
    """What was found on the `images` that all runs have in common; `left_out` counts those that a run has besides."""

    images: int
    left_out: dict[str, int]
    level: float
    values: dict[str, list[dict[str, Any]]]  # of each run, metric by metric; `low` to `high` at `level`, None undefined
    differences: list[Difference]  # metric by metric, and pair by pair where both runs can state the number

    @property
    def pairs(self) -> int:
        """How many pairs of runs there are."""
        return comb(len(self.values), 2)

    @property
    def adjusted_level(self) -> float:
        """Of each interval, so that all pairs of one number hold together at `level`."""
        return 1 - (1 - self.level) / self.pairs


def compare_predictions(
    tables: dict[str, pd.DataFrame], metrics: list[str], level: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Comparison:
    """Compare every pair of runs on the images they share.

    Args:
        tables: predictions table of each run, by the run's name.
        metrics: of METRICS; of more than two classes all defective ones count as one, but for the accuracy.

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
    sides = {metric: ALL if metric == "accuracy" else DEFECT for metric in metrics}
    values: dict[str, list[dict[str, Any]]] = {}
    for run, one in answers.items():
        limits = intervals_of(one, drawn[run], level)
        values[run] = []
        for key in sides.items():
            (low, high), value = limits.get(key, NOTHING), stated[run].get(key)
            values[run].append(plain({"run": run, "metric": key[0], "value": value, "low": low, "high": high}))
    left_out = {run: len(table) - len(first) for run, table in tables.items()}
    comparison = Comparison(len(first), left_out, level, values, [])

    for key, (run, other) in product(sides.items(), combinations(common, 2)):
        ahead = stated[run].get(key, np.nan) - stated[other].get(key, np.nan)
        if np.isnan(ahead):
            continue
        spread, share = np.nanstd(drawn[run][key] - drawn[other][key]), key in answers[run].shares
        if share:
            members = answers[run].shares[key].members | answers[other].shares[key].members
            units = len(np.unique(groups[members]))
        else:
            units = answers[run].units[DEFECT]
        ends = _paired_interval(float(ahead), float(spread), units, comparison.adjusted_level, share)
        comparison.differences.append(Difference(key[0], run, other, float(ahead), *ends))
    return comparison


def common_images(tables: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """The rows of the images that all tables have, joined on `path`, in the order of the first.

    Raises:
        UserError: there are none, or the classes or the truth differ.
    """
    (first_run, first), *_ = tables.items()
    paths = first["path"]
    for table in tables.values():
        paths = paths[paths.isin(table["path"])]
    if paths.empty:
        raise UserError(f"no image stands in all of {', '.join(tables)}: compare runs on the same test images")
    common = {
        run: table.set_index("path", drop=False).loc[paths].reset_index(drop=True) for run, table in tables.items()
    }
    truth = ["label", "defective"]
    for run, table in common.items():
        same_classes = {*class_names_of(table)} == {*class_names_of(first)}
        if not same_classes or (table[truth] != common[first_run][truth]).to_numpy().any():
            raise UserError(f"the images that {run} and {first_run} share have other classes in one than in the other")
    return common


def _paired_interval(ahead: float, spread: float, units: int, level: float, share: bool) -> Interval:
    """Of a difference that rests on `units` groups and has the standard deviation `spread` in the bootstrap."""
    if units < 2:
        return -1.0, 1.0
    centre, variance = ahead, spread**2 * units / (units - 1)
    if share:
        centre = ahead * units / (units + 2)
        variance = ((units * (units * spread**2 + ahead**2) + 2) / (units + 2) - centre**2) / (units + 2)
    reach = student.ppf((1 + level) / 2, units - 1) * np.sqrt(variance)
    return max(-1.0, centre - reach), min(1.0, centre + reach)
