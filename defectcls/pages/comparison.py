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
from matplotlib import rc_context
from matplotlib.figure import Figure
from scipy.stats import t as student

from defectcls.errors import UserError
from defectcls.evaluation.intervals import metric_intervals
from defectcls.evaluation.metrics import compute_metrics, defect_numbers
from defectcls.evaluation.predictions import class_names_of, classes_of_table, folds_of, groups_of
from defectcls.evaluation.resampling import Numbers, Share, bootstrap, defect_shares, ranking
from defectcls.pages.page import render_page
from defectcls.pages.pictures import INK, LOOK, QUIET, RIGHT
from defectcls.pages.wording import number, percent, span

METRICS = {  # name in sentences
    "recall": "recall",
    "overkill_rate": "overkill rate",
    "precision": "precision",
    "f1": "F1",
    "accuracy": "accuracy",
    "auroc": "AUROC",
    "average_precision": "average precision",
}
RANKINGS = ("auroc", "average_precision")
LESS_IS_BETTER = ("overkill_rate",)

Classes = tuple[list[str], list[bool]]  # names, and which of them are defective


class Value(NamedTuple):
    """One number of one run, with its own interval at the level asked for; None where it is undefined."""

    run: str
    metric: str
    value: float | None
    low: float | None
    high: float | None

    def __str__(self) -> str:
        plain = self.metric in RANKINGS
        shown = number(self.value) if plain else percent(self.value)
        return f"{shown} ({span((self.low, self.high), plain)})"


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
        ahead, behind = (self.other, self.run) if self.metric in LESS_IS_BETTER else (self.run, self.other)
        return ahead if self.low > 0 else behind if self.high < 0 else ""

    def reversed(self) -> "Difference":
        """The same, of `other` less `run`."""
        return Difference(self.metric, self.other, self.run, -self.difference, -self.high, -self.low)

    def __str__(self) -> str:
        if self.metric in RANKINGS:
            return f"{self.difference:+.3f} [{self.low:.3f}, {self.high:.3f}]"
        return f"{100 * self.difference:+.1f} points [{100 * self.low:.1f}, {100 * self.high:.1f}]"


@dataclass(frozen=True)
class Comparison:
    """What was found on the `images` that all runs have in common; `left_out` counts those that a run has besides."""

    images: int
    left_out: dict[str, int]
    level: float
    values: dict[str, list[Value]]  # of each run, in the order of the metrics
    differences: list[Difference]  # metric by metric, and pair by pair where both runs can state the number

    @property
    def pairs(self) -> int:
        """How many pairs of runs there are."""
        return comb(len(self.values), 2)


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
    judged = {run: _Judged(table, classes, metrics) for run, table in common.items()}

    def numbers(weights: np.ndarray) -> Numbers:
        return {(run, name): value for run, one in judged.items() for name, value in one.numbers(weights).items()}

    point = {key: value[0] for key, value in numbers(np.ones((1, len(groups)))).items()}
    drawn = bootstrap(groups, numbers, resamples, seed)
    pairs = list(combinations(common, 2))
    adjusted = 1 - (1 - level) / len(pairs)
    differences = []
    for metric, (run, other) in product(metrics, pairs):
        difference = point.get((run, metric), np.nan) - point.get((other, metric), np.nan)
        if np.isfinite(difference):
            spread = np.nanstd(drawn[run, metric] - drawn[other, metric])
            units = judged[run].units(metric, judged[other], groups)
            interval = _difference_interval(difference, spread, units, adjusted, metric not in RANKINGS)
            differences.append(Difference(metric, run, other, float(difference), *interval))
    return Comparison(
        images=len(first),
        left_out={run: len(table) - len(first) for run, table in tables.items()},
        level=level,
        values={run: _values(run, table, classes, metrics, level, resamples, seed) for run, table in common.items()},
        differences=differences,
    )


def common_images(tables: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """The rows of the images that all tables have, joined on `path`, in the order of the first.

    Raises:
        UserError: there are none, one stands in a table twice, or the classes or the truth differ.
    """
    (first_run, first), *others = tables.items()
    paths, names = first["path"], class_names_of(first)
    for run, table in tables.items():
        if (twice := table["path"][table["path"].duplicated()]).size:
            raise UserError(f"{run} has '{twice.iloc[0]}' more than once: give one prediction an image")
    for run, table in others:
        if set(class_names_of(table)) != set(names):
            theirs = ", ".join(class_names_of(table))
            raise UserError(
                f"{run} tells {theirs} apart and {first_run} {', '.join(names)}: the classes must be the same"
            )
        if not first["path"].isin(table["path"]).any():
            raise UserError(
                f"{run} has no image in common with {first_run}: its paths are such as '{_first(table['path'])}', "
                f"those of {first_run} such as '{_first(first['path'])}'"
            )
        paths = paths[paths.isin(table["path"])]
    if paths.empty:
        raise UserError(f"no image stands in all of {', '.join(tables)}: compare fewer of them")
    common = {
        run: table.set_index("path", drop=False).loc[paths].reset_index(drop=True) for run, table in tables.items()
    }
    reference = common[first_run]
    for run, table in common.items():
        differs = (table["label"] != reference["label"]) | (table["defective"] != reference["defective"])
        if differs.any():
            row = int(differs.to_numpy().argmax())
            raise UserError(
                f"'{table['path'][row]}' is {table['label'][row]} in {run} and {reference['label'][row]} in "
                f"{first_run}: the truth must be the same"
            )
    return common


def sentences(comparison: Comparison) -> list[str]:
    """Which run is better than which in what, and for each pair in what no difference is shown."""
    said = []
    for run, other in combinations(comparison.values, 2):
        of_pair = [one for one in comparison.differences if (one.run, one.other) == (run, other)]
        for one in of_pair:
            if one.better:
                told = one if one.better == run else one.reversed()
                said.append(f"{told.run} is better than {told.other} in {METRICS[told.metric]}: {told}.")
        if alike := [METRICS[one.metric] for one in of_pair if not one.better]:
            said.append(f"{run} and {other}: no difference shown in {', '.join(alike)}.")
    return said


def adjustment(comparison: Comparison) -> str:
    """How the intervals are to be read."""
    level = f"{100 * comparison.level:g} %"
    if comparison.pairs == 1:
        return f"Paired bootstrap intervals of {level} for each number."
    each = f"{100 * (1 - (1 - comparison.level) / comparison.pairs):.4g} %"
    return f"Paired bootstrap intervals of {each}, so that the {comparison.pairs} of a number hold together at {level}."


def images_in_common(comparison: Comparison) -> str:
    """On how many images the runs were compared, and how many were left out."""
    left = [f"{count} of {run}" for run, count in comparison.left_out.items() if count]
    more = f"; left out, as they are not in all runs: {', '.join(left)}" if left else ""
    return f"{comparison.images} images in common{more}."


@rc_context(LOOK)
def plot_differences(comparison: Comparison) -> Figure:
    """Forest plot: what the first run of each pair is ahead by, in points, with the interval; blue if shown."""
    figure = Figure(figsize=(7.2, 0.9 + 0.27 * len(comparison.differences)), layout="constrained")
    axes = figure.subplots()
    labels = []
    for height, one in enumerate(comparison.differences):
        sign = -100 if one.metric in LESS_IS_BETTER else 100
        colour = RIGHT if one.better else QUIET
        axes.plot([sign * one.low, sign * one.high], [height, height], color=colour, linewidth=2)
        axes.plot(sign * one.difference, height, "o", color=colour, markersize=5)
        pair = f": {one.run} – {one.other}" if comparison.pairs > 1 else ""
        labels.append(METRICS[one.metric] + pair)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)  # the first on top
    axes.grid(axis="y", visible=False)
    ahead, behind = comparison.values if comparison.pairs == 1 else ("first named", "second named")
    axes.set_xlabel(f"← {behind} is better      difference in points      {ahead} is better →")
    return figure


def render_comparison(comparison: Comparison, picture: bytes) -> str:
    """The page as text; `picture` is the PNG file of `plot_differences`."""
    return render_page(
        "comparison",
        {"differences": picture},
        images=images_in_common(comparison),
        sentences=sentences(comparison),
        adjustment=adjustment(comparison),
        level=f"{100 * comparison.level:g} %",
        runs=list(comparison.values),
        numbers=[(METRICS[one[0].metric], *one) for one in zip(*comparison.values.values(), strict=True)],
        differences=[
            (METRICS[one.metric], f"{one.run} – {one.other}", one, one.better or "not shown")
            for one in comparison.differences
        ],
    )


class _Judged:
    """One run's answers, ready to be weighted."""

    def __init__(self, table: pd.DataFrame, classes: Classes, metrics: list[str]) -> None:
        right = (table["label"] == table["prediction"]).to_numpy()
        shares = {"accuracy": Share(right, np.ones(len(right), bool))}
        self.defective = table["defective"].to_numpy(bool)
        self.rank = None
        if 0 < sum(classes[1]) < len(classes[1]):
            shares |= defect_shares(table, *classes)
            if {*RANKINGS} & {*metrics}:
                self.rank = ranking(self.defective, table["score"].to_numpy(), folds_of(table))
        self.shares = {name: share for name, share in shares.items() if name in metrics}

    def numbers(self, weights: np.ndarray) -> Numbers:
        """Every metric that the table can state, under the weights."""
        return {name: share.weighted(weights) for name, share in self.shares.items()} | (
            self.rank(weights) if self.rank else {}
        )

    def units(self, metric: str, other: "_Judged", groups: np.ndarray) -> int:
        """On how many groups the difference to another run rests; of a ranking, those of the rarer class."""
        if metric in RANKINGS:
            return min(len(np.unique(groups[side])) for side in (self.defective, ~self.defective))
        return len(np.unique(groups[self.shares[metric].members | other.shares[metric].members]))


def _difference_interval(
    difference: float, spread: float, units: int, level: float, share: bool
) -> tuple[float, float]:
    """Of a difference that rests on `units` groups and has the standard deviation `spread` in the bootstrap."""
    if units < 2:
        return -1.0, 1.0
    centre, variance = difference, spread**2 * units / (units - 1)
    if share:
        centre = difference * units / (units + 2)
        variance = ((units * (units * spread**2 + difference**2) + 2) / (units + 2) - centre**2) / (units + 2)
    reach = student.ppf((1 + level) / 2, units - 1) * np.sqrt(variance)
    return max(-1.0, centre - reach), min(1.0, centre + reach)


def _values(run: str, table: pd.DataFrame, classes: Classes, metrics: list[str], *chance: Any) -> list[Value]:
    intervals = {"intervals": metric_intervals(table, *classes, *chance)}
    found = defect_numbers(compute_metrics(table, *classes) | intervals)
    limits = [found["intervals"].get(metric) or (None, None) for metric in metrics]
    return [Value(run, metric, found.get(metric), *ends) for metric, ends in zip(metrics, limits, strict=True)]


def _first(paths: pd.Series) -> str:
    return paths.iloc[0] if len(paths) else ""
