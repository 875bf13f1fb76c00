"""A comparison of runs as sentences, a picture and a page."""

from itertools import combinations

from matplotlib import rc_context
from matplotlib.figure import Figure

from defectcls.evaluation.comparison import Comparison, Difference, Value
from defectcls.evaluation.metrics import METRICS
from defectcls.pages.page import render_page
from defectcls.pages.pictures import INK, LOOK, QUIET, RIGHT
from defectcls.pages.wording import number, percent, span


def value_words(one: Value) -> str:
    """The number and its interval."""
    plain = not METRICS[one.metric].percent
    return f"{(number if plain else percent)(one.value)} ({span((one.low, one.high), plain)})"


def difference_words(one: Difference) -> str:
    """With its sign; of shares in percentage points."""
    if METRICS[one.metric].percent:
        return f"{100 * one.difference:+.1f} points [{100 * one.low:.1f}, {100 * one.high:.1f}]"
    return f"{one.difference:+.3f} [{one.low:.3f}, {one.high:.3f}]"


def sentences(comparison: Comparison) -> list[str]:
    """Which run is better than which in what, and for each pair in what no difference is shown."""
    said = []
    for run, other in combinations(comparison.values, 2):
        of_pair = [one for one in comparison.differences if (one.run, one.other) == (run, other)]
        for one in of_pair:
            if one.better:
                told = one if one.better == run else one.reversed()
                said.append(
                    f"{told.run} is better than {told.other} in {METRICS[told.metric].name}: {difference_words(told)}."
                )
        if alike := [METRICS[one.metric].name for one in of_pair if not one.better]:
            said.append(f"{run} and {other}: no difference shown in {', '.join(alike)}.")
    return said


def adjustment(comparison: Comparison) -> str:
    """How the intervals are to be read."""
    level = f"{100 * comparison.level:g} %"
    if comparison.pairs == 1:
        return f"Paired bootstrap intervals of {level} for each number."
    each = f"{100 * comparison.adjusted_level:.4g} %"
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
        sign = -100 if METRICS[one.metric].less_is_better else 100
        colour = RIGHT if one.better else QUIET
        axes.plot([sign * one.low, sign * one.high], [height, height], color=colour, linewidth=2)
        axes.plot(sign * one.difference, height, "o", color=colour, markersize=5)
        pair = f": {one.run} – {one.other}" if comparison.pairs > 1 else ""
        labels.append(METRICS[one.metric].name + pair)
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
        numbers=[
            (METRICS[one[0].metric].name, *map(value_words, one))
            for one in zip(*comparison.values.values(), strict=True)
        ],
        differences=[
            (METRICS[one.metric].name, f"{one.run} – {one.other}", difference_words(one), one.better or "not shown")
            for one in comparison.differences
        ],
    )
