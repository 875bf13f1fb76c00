"""Several predictions tables of the same images, and which of their differences chance does not explain.

A difference is paired: all tables are judged on one resample of the groups at a time, so that images which are hard for
all of them cancel out. Its variance is that of the bootstrap, with as many degrees of freedom as there are groups on
which the number rests; to a share one group is added that speaks for each side (Bonett and Price, Journal of
Educational and Behavioral Statistics 37, 2012), or else a few images on which all differ would prove anything. Of
`pairs` pairs each has an interval at the level 1 - (1 - level) / pairs (Bonferroni): that one of the intervals of a
metric misses the truth is then as rare as it is for a single one. Nothing is adjusted for the number of metrics.
"""

from dataclasses import dataclass
from itertools import combinations, product
from math import comb
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy.stats import t as student

from defectcls.errors import UserError
from defectcls.evaluation.intervals import Interval, metric_intervals
from defectcls.evaluation.metrics import METRICS, RANKINGS, compute_metrics, defect_numbers
from defectcls.evaluation.predictions import class_names_of, classes_of_table, groups_of
from defectcls.evaluation.resampling import ALL, DEFECT, Answers, Numbers, bootstrap


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
    values = {}
    for run, table in common.items():
        intervals = metric_intervals(table, classes, level, resamples, seed)
        found = defect_numbers(compute_metrics(table, classes) | {"intervals": intervals})
        ends = {metric: found["intervals"].get(metric) or (None, None) for metric in metrics}
        values[run] = [
            {"run": run, "metric": metric, "value": found.get(metric), "low": ends[metric][0], "high": ends[metric][1]}
            for metric in metrics
        ]
    comparison = Comparison(
        len(first), {run: len(table) - len(first) for run, table in tables.items()}, level, values, []
    )

    answers = {run: Answers(table, classes, each_class=False) for run, table in common.items()}

    def numbers(weights: np.ndarray) -> Numbers:
        of_runs = ((run, one.weighted(weights)) for run, one in answers.items())
        return {(name, run): value for run, found in of_runs for (name, _), value in found.items() if name in metrics}

    stated, drawn = numbers(np.ones((1, len(first)))), bootstrap(groups, numbers, resamples, seed)
    for metric, (run, other) in product(metrics, combinations(common, 2)):
        if (metric, run) not in stated or not np.isfinite(ahead := stated[metric, run] - stated[metric, other])[0]:
            continue
        spread = float(np.nanstd(drawn[metric, run] - drawn[metric, other]))
        if share := metric not in RANKINGS:
            side = ALL if metric == "accuracy" else DEFECT
            members = answers[run].shares[metric, side].members | answers[other].shares[metric, side].members
            units = len(np.unique(groups[members]))
        else:
            units = answers[run].units(DEFECT)
        limits = _paired_interval(float(ahead[0]), spread, units, comparison.adjusted_level, share)
        comparison.differences.append(Difference(metric, run, other, float(ahead[0]), *limits))
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
