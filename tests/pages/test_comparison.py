import io
import re

import numpy as np
import pytest
from PIL import Image

from defectcls.evaluation.comparison import Comparison, Difference, Value, compare_predictions
from defectcls.pages.comparison import (
    adjustment,
    images_in_common,
    plot_differences,
    render_comparison,
    sentences,
    value_words,
)
from defectcls.pages.pictures import QUIET, RIGHT, png
from tests.evaluation.test_comparison import ALL, runs


def comparison_of(*differences: Difference, **changes) -> Comparison:
    names = dict.fromkeys(name for one in differences for name in (one.run, one.other))
    given = {"images": 9, "left_out": dict.fromkeys(names, 0), "level": 0.95, "values": {name: [] for name in names}}
    return Comparison(**given | changes, differences=list(differences))


def test_better_is_said_only_where_it_is_shown_and_less_overkill_is_better():
    comparison = comparison_of(
        Difference("recall", "A", "B", 0.021, 0.004, 0.039),
        Difference("overkill_rate", "A", "B", 0.03, 0.01, 0.05),
        Difference("precision", "A", "B", 0.01, -0.02, 0.04),
        Difference("auroc", "A", "B", -0.0312, -0.05, -0.0101),
        Difference("f1", "A", "B", 0, 0, 0),
    )
    assert sentences(comparison) == [
        "A is better than B in recall: +2.1 points [0.4, 3.9].",
        "B is better than A in overkill rate: -3.0 points [-5.0, -1.0].",
        "B is better than A in AUROC: +0.031 [0.010, 0.050].",
        "A and B: no difference shown in precision, F1.",
    ]


def test_picture_points_right_where_the_first_is_ahead():
    comparison = comparison_of(
        Difference("recall", "A", "B", 0.02, 0.01, 0.04),
        Difference("overkill_rate", "A", "B", 0.03, 0.01, 0.05),
        Difference("f1", "A", "B", 0.01, -0.02, 0.05),
    )
    figure = plot_differences(comparison)
    (axes,) = figure.axes
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    assert [dot.get_xdata()[0] for dot in dots] == pytest.approx([2, -3, 1])
    assert [dot.get_color() for dot in dots] == [RIGHT, RIGHT, QUIET]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["recall", "overkill rate", "F1"]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # recall on top
    assert axes.get_xlabel().startswith("← B is better") and axes.get_xlabel().endswith("A is better →")
    assert np.asarray(Image.open(io.BytesIO(png(figure)))).std() > 5


def test_page_says_first_what_was_found():
    tables = runs(7, skills=(4, 0.5))
    tables = {"a <new>": tables["run 0"], "b": tables["run 1"]}
    comparison = compare_predictions(tables, ALL, resamples=200)
    page = render_comparison(comparison, b"PNG")
    assert "<new>" not in page
    found = sentences(comparison)
    places = [page.index(part) for part in ("a &lt;new&gt; is better than b in recall", "<img", "<table", "The runs")]
    assert places == sorted(places)
    assert re.sub("[<>]", "", found[0]).split(" in ")[1] in page
    assert all(value_words(value) in page for values in comparison.values.values() for value in values)


def test_what_a_run_cannot_state_and_what_was_left_out_is_said():
    assert value_words(Value("A", "precision", None, None, None)) == "– (–)"
    three = comparison_of(Difference("f1", "A", "B", 0, 0, 0), values={"A": [], "B": [], "C": []}, left_out={"A": 20})
    assert images_in_common(three) == "9 images in common; left out, as they are not in all runs: 20 of A."
    assert "98.33 %, so that the 3 of a number hold together at 95 %" in adjustment(three)
