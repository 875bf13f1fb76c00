"""Pictures of a run. Every function returns a Figure and touches no file but the images it shows.

Colours are blue, vermilion and green of Okabe and Ito, and grey: distinct for colour-blind eyes, and in grey on paper.
"""

import io
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from PIL import Image
from scipy.special import logit

from defectcls.data.images import Depth, UnreadableImageError, upright_pixels
from defectcls.evaluation.intervals import proportion_interval
from defectcls.evaluation.predictions import PROBABILITY, verdicts
from defectcls.pages.wording import percent

RIGHT, WRONG, THIRD, QUIET, INK = "#0072B2", "#D55E00", "#009E73", "#7A8089", "#22262B"
LOOK: Any = {  # Any: matplotlib 3.11 types the keys, older ones do not
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,  # a class may be called "$5"
    "axes.edgecolor": "#C5C9CF",
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E6E8EB",
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.frameon": False,
    "legend.fontsize": 8,
}
FURTHEST = 10.0  # log odds that the picture of the scores reaches to
SCORE_TICKS = (0.0001, 0.001, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 0.9999)
SERIES = {  # panels of the curves, top to bottom: axis label -> column, line style
    "loss (nats)": {
        "train/loss": (QUIET, "--"),
        "val/loss": (RIGHT, ":"),
        "val/calibrated_loss": (RIGHT, "-"),
    },
    "accuracy, AUROC": {
        "train/accuracy": (QUIET, "--"),
        "val/accuracy": (RIGHT, "-"),
        "val/auroc": (THIRD, "-"),
    },
    "learning rate": {"lr": (INK, "-")},
}


def png(figure: Figure, dots_per_inch: int = 130) -> bytes:
    """The figure as a PNG file's content."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dots_per_inch)
    return buffer.getvalue()


@matplotlib.rc_context(LOOK)
def plot_confusion_matrix(matrix: np.ndarray | list[list[int]], class_names: list[str]) -> Figure:
    """Counts (classes, classes), rows = truth, each with its share of the row; hits blue, errors vermilion."""
    counts = np.asarray(matrix)
    totals = counts.sum(axis=1, keepdims=True)
    share = counts / np.maximum(totals, 1)
    size = len(class_names)
    blues, reds = (LinearSegmentedColormap.from_list("", ["white", colour]) for colour in (RIGHT, WRONG))
    tint = np.where(np.eye(size, dtype=bool), share, np.sqrt(share))  # the root, so that a rare error is seen at all
    tiles = np.where(np.eye(size, dtype=bool)[..., None], blues(tint), reds(tint))

    cell = 1.25 if size <= 3 else 0.85 if size <= 8 else 0.62  # inches
    figure = Figure(figsize=(cell * size + 2.2, cell * size + 0.7 + 0.5 * (size > 3)), layout="constrained")
    axes = figure.subplots()
    axes.imshow(tiles)
    names = [_shorten(name, 24) for name in class_names]
    axes.set_xticks(range(size), names, rotation=0 if size <= 3 else 45, ha="center" if size <= 3 else "right")
    axes.set_xticks(np.arange(size + 1) - 0.5, minor=True)
    axes.set_yticks(range(size), [f"{name}  (n = {total})" for name, total in zip(names, totals[:, 0], strict=True)])
    axes.set_yticks(np.arange(size + 1) - 0.5, minor=True)
    axes.grid(False)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("prediction")
    axes.set_ylabel("truth")
    digits = 1 if size <= 3 else 0
    for row, column in np.ndindex(size, size):
        count, part = counts[row, column], share[row, column]
        text = f"{count}\n{100 * part:.{digits}f} %" if count else "0"
        colour = "white" if tint[row, column] > 0.65 else INK if count else QUIET
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8 + 2.4 * (cell > 1))
    return figure


@matplotlib.rc_context(LOOK)
def plot_curves(history: pd.DataFrame) -> Figure:
    """Loss, accuracy, AUROC and learning rate against the epoch, with the stages shaded.

    `history` has `epoch`, `stage` and any of the columns in SERIES; NaN where a row has no such number, as the row of
    the probe has none from training.
    """
    history = history.sort_values("epoch", kind="stable")
    panels = {
        label: {
            column: style for column, style in series.items() if column in history and history[column].notna().any()
        }
        for label, series in SERIES.items()
    }
    panels = {label: series for label, series in panels.items() if series}
    heights = [0.9 if label == "learning rate" else 2.1 for label in panels]
    figure = Figure(figsize=(7.2, sum(heights) + 0.8), layout="constrained")
    grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=heights)
    for axes, (label, series) in zip(grid[:, 0], panels.items(), strict=True):
        for column, (colour, line) in series.items():
            known = history[["epoch", column]].dropna()
            axes.plot(known["epoch"], known[column], line, marker="o", markersize=3.5, color=colour, label=column)
        axes.set_ylabel(label)
        if label == "learning rate":
            axes.set_ylim(0, 1.15 * history["lr"].max() or 1)
            axes.yaxis.set_major_formatter("{x:g}")
        else:
            axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
        _shade_stages(axes, history, named=axes is grid[0, 0])
    grid[-1, 0].set_xlabel("epoch")
    grid[-1, 0].xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    figure.align_ylabels()
    return figure


def _shade_stages(axes: Axes, history: pd.DataFrame, named: bool) -> None:
    first, last = history["epoch"].min() - 0.5, history["epoch"].max() + 0.5
    axes.set_xlim(first, last)
    runs = history.groupby((history["stage"] != history["stage"].shift()).cumsum())
    for number, (_, rows) in enumerate(runs):
        start = rows["epoch"].min() - 0.5
        axes.axvspan(
            start, rows["epoch"].max() + 0.5, color="#EEF1F5" if number % 2 else "white", zorder=0, linewidth=0
        )
        if number:
            axes.axvline(start, color="#C5C9CF", linewidth=0.8)
        if named:  # on two lines in turn, so that the names of short stages do not run into each other
            place = (start, 1.03 + 0.09 * (number % 2))
            axes.text(*place, rows["stage"].iloc[0], transform=axes.get_xaxis_transform(), color=INK, fontsize=8)


@matplotlib.rc_context(LOOK)
def plot_scores(predictions: pd.DataFrame, accept_below: float | None, reject_from: float | None) -> Figure:
    """How far the scores of sound and defective images lie apart, and what each threshold would cost.

    Above: how many images have which score, sound ones upwards, defective ones downwards. Below: escape and overkill
    rate against the threshold. The scale is that of log odds. Lines mark the decision, and a band what goes to review.
    """
    scores, defective = predictions["score"].to_numpy(), predictions["defective"].to_numpy(bool)
    places = _log_odds(scores)
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    edges = np.linspace(-FURTHEST, FURTHEST, 61)
    for chosen, colour, sign, name in ((~defective, RIGHT, 1, "sound"), (defective, WRONG, -1, "defective")):
        counts = np.histogram(places[chosen], edges)[0]
        above.stairs(sign * counts, edges, fill=True, color=colour, label=f"{name} ({chosen.sum()})")
    above.axhline(0, color=INK, linewidth=0.8)
    above.yaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
    above.set_ylabel("images")
    above.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    thresholds = np.linspace(-FURTHEST, FURTHEST, 601)
    for chosen, colour, rate in ((defective, WRONG, "escape rate"), (~defective, RIGHT, "overkill rate")):
        if chosen.any():
            let_through = np.searchsorted(np.sort(places[chosen]), thresholds) / chosen.sum()
            below.plot(thresholds, let_through if rate == "escape rate" else 1 - let_through, color=colour, label=rate)
    below.yaxis.set_major_formatter("{x:.0%}")
    below.set_xlabel("score = probability of being defective; as a threshold: reject from here on")
    below.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    below.set_xticks(_log_odds(np.array(SCORE_TICKS)), [f"{100 * tick:g} %" for tick in SCORE_TICKS])
    if accept_below is not None and reject_from is not None:
        low, high = _log_odds(np.array([accept_below, reject_from]))
        for axes in (above, below):
            axes.axvspan(low, high, color="#EEF1F5", zorder=0)
            for place in (low, high):
                axes.axvline(place, color=INK, linewidth=1, linestyle="--")
    figure.align_ylabels()
    return figure


@matplotlib.rc_context(LOOK)
def plot_reliability(scores: dict[str, np.ndarray], defective: np.ndarray) -> Figure:
    """Share of defective images against the probability of being defective, in ten bins, with 95 % intervals.

    Args:
        scores: by name, such as before and after calibration, each (images,); the last one is drawn strongest.
    """
    figure = Figure(figsize=(4.6, 4.2), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=QUIET, linewidth=0.8)
    for (name, values), colour in zip(reversed(scores.items()), (RIGHT, QUIET), strict=False):
        bins = np.minimum((values * 10).astype(int), 9)
        known = [number for number in range(10) if (bins == number).any()]
        x, y = ([column[bins == number].mean() for number in known] for column in (values, defective))
        reach = np.array([proportion_interval(defective[bins == number], None) for number in known]).reshape(-1, 2).T
        errors = np.abs(reach - y)
        marker = "o" if colour == RIGHT else "s"
        axes.errorbar(x, y, errors, fmt=marker, color=colour, label=name, markersize=4, linewidth=1.2, capsize=2)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    axes.set_xlabel("probability of being defective")
    axes.set_ylabel("share that is defective")
    axes.legend(loc="lower right")
    return figure


def _log_odds(scores: np.ndarray) -> np.ndarray:
    return np.clip(logit(np.clip(scores, 0, 1)), -FURTHEST, FURTHEST)


def worth_seeing(predictions: pd.DataFrame, class_names: list[str], limit: int = 24) -> pd.DataFrame:
    """Up to `limit` rows, of the test split where there is one: wrong ones first, then by rising p of the truth."""
    if "split" in predictions and (predictions["split"] == "test").any():
        predictions = predictions[predictions["split"] == "test"]
    probabilities = predictions[[PROBABILITY + name for name in class_names]].to_numpy()
    truth = probabilities[
        np.arange(len(predictions)), pd.Index(class_names).get_indexer(pd.Index(predictions["label"]))
    ]
    wrong = (predictions["prediction"] != predictions["label"]).to_numpy()
    return predictions.iloc[np.lexsort((truth, ~wrong))[:limit]]


@matplotlib.rc_context(LOOK)
def plot_predictions(predictions: pd.DataFrame, root: Path, class_names: list[str], depth: Depth) -> Figure:
    """A grid of the predictions `worth_seeing`: truth → prediction with its probability, wrong ones framed vermilion.

    Images are read from `root`. One that cannot be read leaves an empty tile with its name.
    """
    shown = worth_seeing(predictions, class_names)
    columns = min(6, max(3, len(shown)))
    rows = max(1, -(-len(shown) // columns))
    figure = Figure(figsize=(1.6 * columns, 1.95 * rows), layout="constrained")
    tiles = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in tiles:
        axes.set_axis_off()
    for axes, sample in zip(tiles, shown.to_dict("records"), strict=False):
        right = sample["prediction"] == sample["label"]
        colour = RIGHT if right else WRONG
        axes.set_axis_on()
        axes.set(xticks=[], yticks=[], xlim=(0, 1), ylim=(0, 1), aspect="equal")
        axes.grid(False)
        axes.spines[:].set(visible=True, color=colour, linewidth=2.5)
        probability = sample[PROBABILITY + sample["prediction"]]
        names = [_shorten(sample[column], 22) for column in ("label", "prediction")]
        answer = f"{names[0]}\n→ {names[1]}" if sum(map(len, names)) > 18 else " → ".join(names)
        axes.set_title(f"{answer}\n{'✓' if right else '✗'} {probability:.0%}", color=colour, fontsize=8)
        try:
            image = thumbnail(root / sample["path"], 220, depth)
        except UnreadableImageError as reason:
            text = f"{_shorten(Path(sample['path']).name, 22)}\n{_shorten(str(reason), 30)}"
            axes.text(0.5, 0.5, text, ha="center", va="center", fontsize=7)
        else:
            axes.imshow(image, extent=_centred(image.width, image.height))
            axes.set(xlim=(0, 1), ylim=(0, 1))
    return figure


def worst_errors(
    predictions: pd.DataFrame, class_names: list[str], defective_classes: list[bool], limit: int = 12
) -> dict[str, pd.DataFrame]:
    """Up to `limit` escapes and as many false rejects, the most confident first."""
    flagged, rejected = verdicts(predictions, class_names, defective_classes)
    defective = predictions["defective"].to_numpy(bool)
    return {
        "escapes": predictions[defective & ~flagged].sort_values("score", kind="stable").head(limit),
        "false rejects": predictions[~defective & rejected]
        .sort_values("score", ascending=False, kind="stable")
        .head(limit),
    }


@matplotlib.rc_context(LOOK)
def plot_errors(errors: dict[str, pd.DataFrame], root: Path, heat: dict[str, np.ndarray], depth: Depth) -> Figure:
    """A block of photos a kind of error, each with its score, and beside it what speaks for a defect.

    Args:
        errors: rows of the predictions table by the name of the kind.
        heat: of paths, (side, side) from 0 to 1; a photo without stands alone.
    """
    width = 2 if heat else 1
    columns = 6 // width
    rows = {name: -(-len(table) // columns) for name, table in errors.items() if len(table)}
    figure = Figure(figsize=(9.6, 1.9 * sum(rows.values()) + 0.35 * len(rows)), layout="constrained")
    blocks = figure.subfigures(len(rows), 1, squeeze=False, height_ratios=list(rows.values()))[:, 0]
    for block, (name, count) in zip(blocks, rows.items(), strict=True):
        block.suptitle(f"{name} ({len(errors[name])} shown)", x=0.01, ha="left", fontsize=10, weight="bold")
        tiles = block.subplots(count, columns * width, squeeze=False).reshape(-1, width)
        for axes in tiles.ravel():
            axes.set_axis_off()
        for axes, sample in zip(tiles, errors[name].to_dict("records"), strict=False):
            try:
                image = thumbnail(root / sample["path"], 220, depth)
            except UnreadableImageError as reason:
                axes[0].text(0.5, 0.5, _shorten(str(reason), 30), ha="center", va="center", fontsize=7)
                continue
            axes[0].imshow(image)
            title = f"{_shorten(Path(sample['path']).name, 20)}\n{sample['label']}, score {sample['score']:.2g}"
            axes[0].set_title(title, fontsize=7, loc="left")
            if sample["path"] in heat:
                axes[1].imshow(overlay(image, heat[sample["path"]]))
    return figure


def thumbnail(path: Path, side: int, depth: Depth) -> Image.Image:
    """The image in RGB, upright, within `side` x `side` pixels, as dark as the network of that depth sees it.

    Raises:
        UnreadableImageError: see `defectcls.data.images.decode`.
    """
    image = Image.fromarray(upright_pixels(path, side, depth))
    image.thumbnail((side, side))
    return image.convert("RGB")


def thumbnail_files(path: Path, side: int, depth: Depth, heat: np.ndarray | None = None) -> list[bytes]:
    """JPEG files' content: the thumbnail and, with heat, its `overlay`; none of what cannot be read."""
    try:
        image = thumbnail(path, side, depth)
    except UnreadableImageError:
        return []
    return [_jpeg(each) for each in ([image] if heat is None else [image, overlay(image, heat)])]


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=80)
    return buffer.getvalue()


def _centred(width: int, height: int) -> tuple[float, float, float, float]:
    """(left, right, bottom, top) of an image of this shape in a tile of 1 x 1."""
    across, up = 0.5 * width / max(width, height), 0.5 * height / max(width, height)
    return 0.5 - across, 0.5 + across, 0.5 - up, 0.5 + up


def _shorten(name: str, length: int) -> str:
    return name if len(name) <= length else f"{name[: length - 8]}…{name[-7:]}"


def overlay(image: Image.Image, heat: np.ndarray) -> Image.Image:
    """The photo in grey under a tint, viridis, that grows with the heat: RGB, of the photo's size.

    Args:
        heat: (height, width) from 0 to 1, of the whole frame; stretched to the photo's shape.
    """
    heat = np.asarray(Image.fromarray(heat.astype(np.float32)).resize(image.size, Image.Resampling.BILINEAR))
    grey = np.asarray(image.convert("L"), np.float64)[..., None]
    tint = 255 * matplotlib.colormaps["viridis"](heat)[..., :3]
    share = 0.6 * heat[..., None]  # so that the photo is still seen where it is hottest
    return Image.fromarray(((1 - share) * grey + share * tint).round().astype(np.uint8))


@matplotlib.rc_context(LOOK)
def plot_robustness(table: pd.DataFrame) -> Figure:
    """Recall and overkill rate of every corruption by strength, as two tables that redden with the errors.

    `table` has rows {corruption, strength, recall, overkill_rate}; strength 0 is the clean images.
    """
    clean, corrupted = table[table["strength"] == 0].iloc[0], table[table["strength"] > 0]
    names = list(corrupted["corruption"].unique())
    figure = Figure(figsize=(4.4, 0.3 * len(names) + 0.9), layout="constrained")
    reds = LinearSegmentedColormap.from_list("", ["white", WRONG])
    panels = figure.subplots(1, 2, sharey=True)
    for axes, rate, title in zip(panels, ("recall", "overkill_rate"), ("recall", "overkill rate"), strict=True):
        rates = corrupted.pivot(index="corruption", columns="strength", values=rate).loc[names].to_numpy()
        errors = np.sqrt(1 - rates if rate == "recall" else rates)  # the root, so that a rare error is seen at all
        axes.imshow(reds(np.nan_to_num(errors)), aspect="auto")
        for (row, column), value in np.ndenumerate(rates):
            colour = "white" if errors[row, column] > 0.8 else INK
            axes.text(column, row, percent(value), ha="center", va="center", fontsize=7, color=colour)
        axes.set_title(f"{title}\nclean: {percent(clean[rate])}", fontsize=9)
        axes.set_xticks(range(rates.shape[1]), sorted(corrupted["strength"].unique()))
        axes.set_yticks(range(len(names)), names)
        axes.set_xlabel("strength")
        axes.grid(False)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    return figure
