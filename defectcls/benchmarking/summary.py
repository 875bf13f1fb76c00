"""What the turns say: medians and spreads, ratios taken round by round; the table, the sentences and the picture."""

from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from defectcls.benchmarking.turns import Played, Turn
from defectcls.pages.pictures import INK, LOOK, QUIET, RIGHT, WRONG

WHAT = {  # contenders as a reader knows them, short enough for a table on a terminal
    "step": "bare step",  # bare: on one batch that stays in memory, no loader, no Trainer
    "input": "input pipeline",
    "end_to_end": "training",
    "plain": "plain recipe",
    "ultralytics": "Ultralytics",
    "forward": "bare forward",
    "evaluate": "evaluation",
    "decode": "bare decoding",
    "first_pass": "first pass",
    "probe": "probe",
    "probe_views": "probe, views",
    "plain_frozen": "plain, frozen",
    "start": "start-up",
}
RATIOS = (  # speed of the first over speed of the second
    ("end_to_end", "step"),
    ("end_to_end", "plain"),
    ("end_to_end", "ultralytics"),
    ("input", "step"),
    ("evaluate", "forward"),
    ("first_pass", "decode"),
    ("probe", "plain_frozen"),
    ("probe_views", "plain_frozen"),
)
CEILINGS, AGAINST = ("step", "forward", "decode"), ("plain", "plain_frozen", "ultralytics")

BEHIND = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # a number that stands on the ceiling's line


class Spread(NamedTuple):
    """Median, least and most over the rounds."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{number(self.median)} ({number(self.low)} to {number(self.high)})"


def spread(values: list[float]) -> Spread:
    return Spread(float(np.median(values)), min(values), max(values))


def number(value: float) -> str:
    """Three digits, or all before the point; thousands from ten on."""
    if value >= 10_000:
        return f"{value / 1000:,.0f}k"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def speed(turn: Turn) -> float:
    """Images a second; of work that is not counted in images, pieces a second."""
    return (turn["images"] or 1) / turn["seconds"]


def ratios(one: list[Turn], other: list[Turn]) -> list[float]:
    """How many times as fast one was in each round: what slows the machine meanwhile slows both."""
    return [speed(a) / speed(b) for a, b in zip(one, other, strict=True)]


def summarise(played: dict[str, Played]) -> dict[str, Any]:
    """The part of benchmark.json that the turns give."""
    complete = {name: rival for name, rival in played.items() if rival.error is None}
    found: dict[str, Any] = {"contenders": {}, "ratios": {}}
    for name, rival in played.items():
        entry: dict[str, Any] = {"what": WHAT[name], "error": rival.error, **rival.about, "rounds": rival.turns}
        if name in complete:
            entry["seconds"] = spread([turn["seconds"] for turn in rival.turns])._asdict()
            if rival.turns[0]["images"] is not None:
                entry["images_per_second"] = spread([speed(turn) for turn in rival.turns])._asdict()
        found["contenders"][name] = entry
    for one, other in RATIOS:
        if one in complete and other in complete:
            rounds = ratios(complete[one].turns, complete[other].turns)
            found["ratios"][f"{one}/{other}"] = {**spread(rounds)._asdict(), "rounds": rounds}
    if "step" in complete:
        shares = [turn["augment_seconds"] / turn["seconds"] for turn in complete["step"].turns]
        found["augmentation_share"] = {**spread(shares)._asdict(), "rounds": shares}
    return found


def measured(entry: dict[str, Any]) -> tuple[Spread, str] | None:
    """Images a second, or seconds, of a contender; None of one that failed."""
    for key, unit in (("images_per_second", "img/s"), ("seconds", "s")):
        if key in entry:
            return Spread(**entry[key]), unit
    return None


def table_rows(found: dict[str, Any]) -> list[tuple[str, ...]]:
    """A row a contender: what, median, spread, ratio, peak MiB."""
    rows: list[tuple[str, ...]] = []
    for name, entry in found["contenders"].items():
        result = measured(entry)
        if result is None:
            rows.append((entry["what"], "failed", "", "", ""))
            continue
        value, unit = result
        of = [
            f"{number(ratio['median'])} × {WHAT[key.partition('/')[2]]}"
            for key, ratio in found["ratios"].items()
            if key.startswith(f"{name}/")
        ]
        peaks = [entry.get("peak_mib"), entry.get("gpu_peak_mib")]
        peak = " + GPU ".join(number(mib) for mib in peaks if mib)
        between = f"{number(value.low)} to {number(value.high)}" if len(entry["rounds"]) > 1 else "once"
        rows.append((entry["what"], f"{number(value.median)} {unit}", between, "\n".join(of), peak))
    return rows


def sentences(found: dict[str, Any]) -> list[str]:
    """What the table does not say."""
    lines = [f"{WHAT[name]}: {entry['error']}" for name, entry in found["contenders"].items() if entry["error"]]
    if "augmentation_share" in found:
        share = found["augmentation_share"]
        on = ", ".join(name.replace("_", " ") for name, value in found["augment"].items() if value) or "nothing"
        median, low, high = (f"{100 * share[end]:.1f}" for end in ("median", "low", "high"))
        lines.append(f"augmentation ({on}) takes {median} % of the bare step ({low} to {high})")
    aurocs = {
        entry["what"]: entry["rounds"][0]["auroc"]
        for entry in found["contenders"].values()
        if entry["rounds"] and "auroc" in entry["rounds"][0]
    }
    if aurocs:
        lines.append("test AUROC: " + "; ".join(f"{what} {value:.4f}" for what, value in aurocs.items()))
    return lines


def print_benchmark(found: dict[str, Any], folder: Path) -> None:
    """The table, the sentences and where the files lie, on stdout."""
    table = Table(title=title(found))
    for column in ("", "median", "least to most", "speed", "peak MiB"):
        table.add_column(column, no_wrap=column != "speed")
    for row in table_rows(found):
        table.add_row(*row)
    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(table)
    for line in (*sentences(found), f"every round: {folder / 'benchmark.json'}"):
        console.print(line)


def title(found: dict[str, Any]) -> str:
    """What was measured, and how it was computed."""
    computed = next((e for e in found["contenders"].values() if "precision" in e), None)
    how = ""
    if computed is not None:
        layout = "channels last" if computed["channels_last"] else "channels first"
        compiled = ", compiled" if computed["compiled"] else ""
        how = f" · {computed['precision']}, {layout}{compiled}, threads: {computed['threads']}"
    return f"{found['dataset']} · {found['model']} · {found['image_size']} px, batch {found['batch_size']}{how}"


@matplotlib.rc_context(LOOK)
def plot_benchmark(found: dict[str, Any]) -> Figure:
    """A panel a section and unit: a bar a contender, from least to most as a line, the ceiling dashed.

    A bar more than twice as long as the ceiling is cut off, and its number tells.
    """
    panels = panels_of(found)
    counts = [len(bars) for _, bars in panels]
    figure = Figure(figsize=(7.6, 0.36 * sum(counts) + 0.75 * len(panels) + 0.5), layout="constrained")
    figure.suptitle(f"{title(found)}\n{found['hardware']}", fontsize=9, x=0.01, ha="left")
    grid = figure.subplots(len(panels), 1, squeeze=False, height_ratios=[count + 0.8 for count in counts])[:, 0]
    for axes, (unit, bars) in zip(grid, panels, strict=True):
        ceiling = next((value.median for name, value in bars.items() if name in CEILINGS), None)
        longest = max(value.high for value in bars.values())
        limit = longest if ceiling is None else min(longest, 2 * ceiling)
        for place, (name, value) in enumerate(bars.items()):
            colour = QUIET if name in CEILINGS else WRONG if name in AGAINST else RIGHT
            axes.barh(place, min(value.median, limit), color=colour, height=0.62)
            if value.high <= limit:
                axes.plot([value.low, value.high], [place, place], color=INK, linewidth=1.4)
            end = min(value.high, limit)
            text = f" {value}" if value.low < value.high else f" {number(value.median)}"
            text = text if value.high <= limit else f" …{text}"
            axes.text(end, place, text, va="center", fontsize=8, zorder=3, bbox=BEHIND)
        if ceiling is not None:
            axes.axvline(ceiling, color=INK, linewidth=1, linestyle="--")
        axes.set_yticks(range(len(bars)), [WHAT[name] for name in bars])
        axes.invert_yaxis()
        axes.set_xlim(0, 1.32 * limit)
        axes.set_xlabel(unit)
        axes.grid(axis="y", visible=False)
        axes.set_axisbelow(True)
    return figure


def panels_of(found: dict[str, Any]) -> list[tuple[str, dict[str, Spread]]]:
    """The bars that share a scale: axis label, and the contenders that were measured."""
    panels: list[tuple[str, dict[str, Spread]]] = []
    for section in found["sections"]:
        bars: dict[str, Spread] = {}
        label = ""
        for name in section:
            if (result := measured(found["contenders"][name])) is not None:
                bars[name], unit = result
                label = "images a second" if unit == "img/s" else "seconds; shorter is better"
        if bars:
            panels.append((label, bars))
    return panels
