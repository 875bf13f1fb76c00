"""The page of a comparison of runs: which is better than which, and whether chance explains it."""

from itertools import combinations

from defectcls.evaluation.comparison import Comparison
from defectcls.evaluation.metrics import METRICS
from defectcls.pages.blocks import Page, Table, section, text
from defectcls.pages.wording import difference, shown, span


def comparison_page(comparison: Comparison) -> Page:
    """The verdict first, then what the intervals mean, the differences, and the runs by themselves."""
    runs = list(comparison.values)
    left = [f"{count} of {run}" for run, count in comparison.left_out.items() if count]
    more = f"; left out, as they are not in all runs: {', '.join(left)}" if left else ""
    intervals = f"Paired bootstrap intervals of {100 * comparison.adjusted_level:.4g} % for each number"
    if comparison.pairs > 1:
        intervals += f", so that its {comparison.pairs} hold together at {100 * comparison.level:g} %"
    numbers = [
        (
            METRICS[of_runs[0]["metric"]].name,
            *(f"{shown(v['metric'], v['value'])} ({span(v['metric'], (v['low'], v['high']))})" for v in of_runs),
        )
        for of_runs in zip(*comparison.values.values(), strict=True)
    ]
    differences = [
        (
            METRICS[one.metric].name,
            f"{one.run} – {one.other}",
            difference(one.metric, one.difference, one.low, one.high),
            one.better or "not shown",
        )
        for one in comparison.differences
    ]
    blocks = [
        text(*_verdict(comparison), look="verdict", terminal=True),
        text(f"{comparison.images} images in common{more}.", f"{intervals}.", terminal=True),
        section("The differences", Table(differences, ["number", "runs", "difference", "better"], terminal=True)),
        section("The runs", Table(numbers, ["number", *runs], terminal=True)),
    ]
    return Page("Comparison", " · ".join(runs), blocks)


def _verdict(comparison: Comparison) -> list[str]:
    """For each pair of runs in what one is shown to be better, and in what no difference is shown."""
    said = []
    for pair in combinations(comparison.values, 2):
        of_pair = [one for one in comparison.differences if (one.run, one.other) == pair]
        for better in (*pair, ""):
            if names := [METRICS[one.metric].name for one in of_pair if one.better == better]:
                found = f"{better} is better" if better else "no difference is shown"
                said.append(f"{' and '.join(pair)}: {found} in {', '.join(names)}.")
    return said
