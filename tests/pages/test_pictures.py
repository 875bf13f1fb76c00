import subprocess
import sys

import matplotlib
import numpy as np
import pandas as pd
import pytest

from defectcls.evaluation.predictions import predictions_table
from defectcls.pages.pictures import plot_curves, plot_scores, png

TWO = {"sound": False, "defective": True}


def predictions_of(truth: list[int], scores: list[float], **columns) -> pd.DataFrame:
    samples = pd.DataFrame(
        {
            "path": [f"{index}.png" for index in range(len(truth))],
            "label": np.array([*TWO])[truth],
            "defective": np.array(truth, bool),
            **columns,
        }
    )
    return predictions_table(samples, np.column_stack([1 - np.array(scores), scores]), TWO)


def test_curves_draw_each_series_where_it_has_numbers():
    nan = np.nan
    history = pd.DataFrame(
        {
            "epoch": [0, 1, 2, 3],
            "stage": ["probe", "head", "full", "full"],
            "train/loss": [nan, 0.6, 0.4, 0.3],
            "val/loss": [0.5, 0.45, 0.4, 0.35],
            "train/accuracy": [nan] * 4,
            "val/accuracy": [0.7, 0.8, 0.85, 0.9],
            "lr": [nan, 1e-3, 1e-4, 5e-5],
        }
    )
    figure = plot_curves(history)
    drawn = {line.get_label(): line.get_xydata().tolist() for axes in figure.axes for line in axes.get_lines()}
    assert drawn["train/loss"] == [[1, 0.6], [2, 0.4], [3, 0.3]]
    assert drawn["val/loss"][0] == [0, 0.5]
    assert drawn["val/accuracy"] == [[0, 0.7], [1, 0.8], [2, 0.85], [3, 0.9]]
    assert "train/accuracy" not in drawn and "val/auroc" not in drawn
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss (nats)", "accuracy, AUROC", "learning rate"]
    names = [(text.get_text(), text.get_position()[0]) for text in figure.axes[0].texts]
    assert names == [("probe", -0.5), ("head", 0.5), ("full", 1.5)]
    assert png(figure, 40).startswith(b"\x89PNG")


def test_curves_of_the_probe_alone():
    figure = plot_curves(pd.DataFrame({"epoch": [0], "stage": ["probe"], "val/loss": [0.5], "train/loss": [np.nan]}))
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["val/loss"]
    left, right = axes.get_xlim()
    assert [tick for tick in axes.get_xticks() if left <= tick <= right] == [0]
    assert png(figure, 40).startswith(b"\x89PNG")


def test_the_look_stays_inside():
    before = dict(matplotlib.rcParams)
    plot_scores(predictions_of([0, 1], [0.2, 0.9]), None, None)
    assert dict(matplotlib.rcParams) == before


def test_evaluation_needs_neither_torch_nor_pyplot():
    code = (
        "import sys, defectcls.pages.report, defectcls.pages.pictures;"
        "print(sorted({'torch', 'hydra', 'matplotlib.pyplot'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def test_scores_are_counted_on_both_sides_of_the_thresholds():
    predictions = predictions_of([0, 0, 0, 1, 1], [0.1, 0.2, 0.6, 0.4, 0.9])
    figure = plot_scores(predictions, 0.3, 0.5)
    above, below = figure.axes
    sound, defective = (patch.get_data().values for patch in above.patches[:2])
    assert (sound.sum(), defective.sum()) == (3, -2)  # defective ones downwards
    rates = {line.get_label(): line.get_xydata() for line in below.lines}
    escape, overkill = rates["escape rate"], rates["overkill rate"]

    def at(line, score):
        return line[np.searchsorted(line[:, 0], np.log(score / (1 - score))), 1]

    assert [at(escape, score) for score in (0.3, 0.5, 0.95)] == [0, 0.5, 1]
    assert [at(overkill, score) for score in (0.05, 0.15, 0.5, 0.7)] == pytest.approx([1, 2 / 3, 1 / 3, 0])
    marks = sorted(line.get_xdata()[0] for line in above.lines[1:])
    assert marks == pytest.approx([np.log(3 / 7), 0])


def test_scores_of_one_kind_without_a_decision():
    assert len(plot_scores(predictions_of([0, 0], [0.0, 1.0]), None, None).axes[1].lines) == 1
