"""The page of a comparison of runs: which is better than which, and whether chance explains it."""

from itertools import combinations

from defectcls.evaluation.comparison import Comparison, Difference
from defectcls.evaluation.metrics import METRICS
from defectcls.pages.blocks import Page, Picture, Table, section, text
from defectcls.pages.pictures import Bar, plot_intervals, png
from defectcls.pages.wording import difference, shown, span


def comparison_page(comparison: Comparison) -> Page:
    """The verdict first, then what the intervals mean, the differences, and the runs by themselves."""
    level, runs = f"{100 * comparison.level:g} %", list(comparison.values)
    left = [f"{count} of {run}" for run, count in comparison.left_out.items() if count]
    more = f"; left out, as they are not in all runs: {', '.join(left)}" if left else ""
    adjustment = f"Paired bootstrap intervals of {level} for each number."
    if comparison.pairs > 1:
        adjustment = (
            f"Paired bootstrap intervals of {100 * comparison.adjusted_level:.4g} %, so that the {comparison.pairs} of "
            f"a number hold together at {level}."
        )
    numbers = [
        (
            METRICS[of_runs[0]["metric"]].name,
            *(f"{shown(v['metric'], v['value'])} ({span(v['metric'], (v['low'], v['high']))})" for v in of_runs),
        )
        for of_runs in zip(*comparison.values.values(), strict=True)
    ]
    differences = [
        (METRICS[one.metric].name, f"{one.run} – {one.other}", _signed(one), one.better or "not shown")
        for one in comparison.differences
    ]
    blocks = [
        text(*_verdict(comparison), look="verdict", terminal=True),
        text(f"{comparison.images} images in common{more}.", adjustment, terminal=True),
        section(
            "The differences",
            _picture(comparison),
            Table(differences, ["number", "runs", "difference", "better"]),
        ),
        section("The runs", Table(numbers, ["number", *runs], terminal=(99, 99))),
    ]
    return Page("Comparison", " · ".join(runs), blocks)


def _verdict(comparison: Comparison) -> list[str]:
    """Which run is better than which in what, and for each pair in what no difference is shown."""
    said = []
    for run, other in combinations(comparison.values, 2):
        of_pair = [one for one in comparison.differences if (one.run, one.other) == (run, other)]
        for one in of_pair:
            if one.better == other:  # said of the better run
                one = Difference(one.metric, other, run, -one.difference, -one.high, -one.low)
            if one.better:
                said.append(f"{one.run} is better than {one.other} in {METRICS[one.metric].name}: {_signed(one)}.")
        if alike := [METRICS[one.metric].name for one in of_pair if not one.better]:
            said.append(f"{run} and {other}: no difference shown in {', '.join(alike)}.")
    return said


def _signed(one: Difference) -> str:
    return f"{difference(one.metric, one.difference)} [{span(one.metric, (one.low, one.high), signed=True)}]"


def _picture(comparison: Comparison) -> Picture:
    """What the first run of each pair is ahead by, in points."""
    bars = []
    for one in comparison.differences:
        sign = -100 if METRICS[one.metric].less_is_better else 100
        pair = f": {one.run} – {one.other}" if comparison.pairs > 1 else ""
        name = METRICS[one.metric].name + pair
        bars.append(Bar(name, [sign * one.difference], sign * one.low, sign * one.high, bool(one.better)))
    ahead, behind = comparison.values if comparison.pairs == 1 else ("first named", "second named")
    label = f"← {behind} is better      difference in points      {ahead} is better →"
    return Picture(
        png(plot_intervals(bars, label, zero=True)), "compare", "Differences between the runs with their intervals"
    )
