"""The page of a comparison of runs: which is better than which, and whether chance explains it."""

from itertools import combinations
from math import comb
from typing import Any

from defectcls.evaluation.intervals import Interval
from defectcls.evaluation.metrics import METRICS
from defectcls.pages.blocks import Page, Section, Table, Text
from defectcls.pages.wording import difference, plural, shown, span


def comparison_page(found: dict[str, Any]) -> Page:
    """Of what `compare_predictions` found: the verdict, what the intervals mean, the differences, and the runs."""
    runs = list(found["left_out"])
    left = [f"{count} of {run}" for run, count in found["left_out"].items() if count]
    more = f"; left out, as they are not in all runs: {', '.join(left)}" if left else ""
    if seen := found.get("seen"):
        more += f"; {plural(seen, 'photo')} left out that one of them has learned from"
    if changed := found.get("relabelled"):
        more += f"; {changed} have another label in a later table, the first one's holds"
    intervals = f"Paired bootstrap intervals of {100 * found['adjusted_level']:.4g} % for each number"
    if (pairs := comb(len(runs), 2)) > 1:
        intervals += f", so that its {pairs} hold together at {100 * found['level']:g} %"
    numbers: dict[str, list[str]] = {}
    for one in found["values"]:
        said = f"{shown(one['metric'], one['value'])} ({span(one['metric'], (one['low'], one['high']))})"
        numbers.setdefault(one["metric"], [METRICS[one["metric"]].name]).append(said)
    differences = []
    for one in found["differences"]:
        ahead = difference(one["metric"], one["difference"], one["low"], one["high"])
        pair = f"{one['run']} – {one['other']}"
        differences.append((METRICS[one["metric"]].name, pair, ahead, one["better"] or "not shown"))
    blocks = [
        Text(*_verdict(runs, found["differences"]), look="verdict", terminal=True),
        Text(f"{found['images']} images in common{more}.", f"{intervals}.", terminal=True),
        Section("The differences", Table(differences, ["number", "runs", "difference", "better"], terminal=True)),
        Section("The runs", Table([*numbers.values()], ["number", *runs], terminal=True)),
    ]
    return Page("Comparison", " · ".join(runs), blocks)


def promotion_words(found: dict[str, Any], worse: list[str], guesses: Interval | None) -> str:
    """What speaks for or against a run beside the model at work: in which numbers it is worse, and its AUROC's interval
    where that may be mere chance."""
    said = f"Worse beyond chance in {', '.join(METRICS[name].name for name in worse)}. " if worse else ""
    said += f"Not surely better than chance: its AUROC is {span('auroc', guesses)}. " if guesses else ""
    changed = f", of which it calls {found['relabelled']} otherwise" if found["relabelled"] else ""
    verdict = " ".join(_verdict([*found["left_out"]], found["differences"]))
    return f"{said}On {found['images']} photos that neither had learned from{changed}: {verdict}"


def _verdict(runs: list[str], differences: list[dict[str, Any]]) -> list[str]:
    """For each pair of runs in what one is shown to be better, and in what no difference is shown."""
    said = []
    for pair in combinations(runs, 2):
        of_pair = [one for one in differences if (one["run"], one["other"]) == pair]
        for better in (*pair, ""):
            if names := [METRICS[one["metric"]].name for one in of_pair if one["better"] == better]:
                found = f"{better} is better" if better else "no difference is shown"
                said.append(f"{' and '.join(pair)}: {found} in {', '.join(names)}.")
    return said
