"""Pictures of numbers; every function returns a Figure and touches no file.

Colours are blue, vermilion and green of Okabe and Ito, and grey: distinct for colour-blind eyes, and in grey on paper.
"""

import io
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.special import logit

RIGHT, WRONG, THIRD, QUIET, INK = "#0072B2", "#D55E00", "#009E73", "#7A8089", "#22262B"
LOOK: Any = {"font.size": 9, "axes.grid": True, "grid.color": "#E6E8EB", "legend.frameon": False}
BESIDE: Any = {"loc": "center left", "bbox_to_anchor": (1, 0.5)}  # a legend that hides nothing
FURTHEST = 10.0  # log odds that the picture of the scores reaches to
SCORE_TICKS = (0.0001, 0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 0.9999)
SERIES = {  # panels of the curves, top to bottom: axis label -> column, colour and line style
    "loss (nats)": {"train/loss": (QUIET, "--"), "val/loss": (RIGHT, ":"), "val/calibrated_loss": (RIGHT, "-")},
    "accuracy, AUROC": {"train/accuracy": (QUIET, "--"), "val/accuracy": (RIGHT, "-"), "val/auroc": (THIRD, "-")},
    "learning rate": {"lr": (INK, "-")},
}


def png(figure: Figure, dots_per_inch: int = 130) -> bytes:
    """The figure as a PNG file's content."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dots_per_inch)
    return buffer.getvalue()


@matplotlib.rc_context(LOOK)
def plot_curves(history: pd.DataFrame) -> Figure:
    """Loss, accuracy, AUROC and learning rate against the epoch; a line begins each stage.

    `history` has `epoch`, `stage` and any of the columns in SERIES; NaN where a row has no such number, as the row of
    the probe has none from training.
    """
    history = history.sort_values("epoch", kind="stable").dropna(axis="columns", how="all")
    panels = {label: series for label, series in SERIES.items() if {*series} & {*history}}
    figure = Figure(figsize=(7.2, 1 + 1.9 * len(panels)), layout="constrained")
    grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    starts = history.drop_duplicates("stage")
    for axes, (label, series) in zip(grid, panels.items(), strict=True):
        for column, (colour, line) in series.items():
            if column in history:
                known = history[["epoch", column]].dropna()
                axes.plot(known["epoch"], known[column], line, marker="o", markersize=3.5, color=colour, label=column)
        for start, stage in zip(starts["epoch"] - 0.5, starts["stage"], strict=True):
            axes.axvline(start, color=QUIET, linewidth=0.8)
            if axes is grid[0]:  # turned, so that the names of short stages do not run into each other
                axes.text(start, 1.03, stage, rotation=20, transform=axes.get_xaxis_transform())
        axes.set_ylabel(label)
        axes.legend(**BESIDE)
    grid[-1].set_xlabel("epoch")
    grid[-1].xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    return figure


@matplotlib.rc_context(LOOK)
def plot_scores(predictions: pd.DataFrame, accept_below: float | None, reject_from: float | None) -> Figure:
    """How far the scores of sound and defective images lie apart, and what each threshold would cost.

    Above: how many images have which score, sound ones upwards, defective ones downwards. Below: escape and overkill
    rate against the threshold. The scale is that of log odds. Lines mark the decision.
    """
    places, defective = _log_odds(predictions["score"]), predictions["defective"].to_numpy(bool)
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    edges, thresholds = np.linspace(-FURTHEST, FURTHEST, 61), np.linspace(-FURTHEST, FURTHEST, 601)
    for name, chosen, colour, sign in (("sound", ~defective, RIGHT, 1), ("defective", defective, WRONG, -1)):
        counts = sign * np.histogram(places[chosen], edges)[0]
        above.stairs(counts, edges, fill=True, color=colour, label=f"{name} ({chosen.sum()})")
        if chosen.any():
            passed = np.searchsorted(np.sort(places[chosen]), thresholds) / chosen.sum()
            rate = ("overkill rate", 1 - passed) if name == "sound" else ("escape rate", passed)
            below.plot(thresholds, rate[1], color=colour, label=rate[0])
    above.axhline(0, color=INK, linewidth=0.8)
    above.yaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
    above.set_ylabel("images")
    below.yaxis.set_major_formatter("{x:.0%}")
    below.set_xlabel("score = probability of being defective; as a threshold: reject from here on")
    below.set_xticks(_log_odds(SCORE_TICKS), [f"{100 * tick:g} %" for tick in SCORE_TICKS])
    for axes in (above, below):
        axes.legend(**BESIDE)
        if accept_below is not None:
            for place in _log_odds((accept_below, reject_from)):
                axes.axvline(place, color=INK, linewidth=1, linestyle="--")
    return figure


def _log_odds(scores: Any) -> np.ndarray:
    return np.clip(logit(np.clip(np.asarray(scores, float), 0, 1)), -FURTHEST, FURTHEST)
