"""What the page of a comparison says, and that it says it first."""

from typing import Any

from defectcls.evaluation.comparison import compare_predictions
from defectcls.pages.blocks import Table
from defectcls.pages.comparison import comparison_page
from defectcls.pages.render import render_html
from tests.evaluation.test_comparison import ALL, runs


def comparison_of(*differences: tuple[str, str, str, float, float, float, str], **changes: Any) -> dict[str, Any]:
    names = ("metric", "run", "other", "difference", "low", "high", "better")
    runs = dict.fromkeys(run for one in differences for run in one[1:3])
    given = {"images": 9, "left_out": dict.fromkeys(runs, 0), "level": 0.95, "adjusted_level": 0.95, "values": []}
    return given | {"differences": [dict(zip(names, one, strict=True)) for one in differences]} | changes


def test_in_what_a_run_is_better_is_said_and_in_what_none_is():
    comparison = comparison_of(
        ("recall", "A", "B", 0.021, 0.004, 0.039, "A"),
        ("overkill_rate", "A", "B", 0.03, 0.01, 0.05, "B"),
        ("precision", "A", "B", 0.01, -0.02, 0.04, ""),
        ("auroc", "A", "B", -0.0312, -0.05, -0.0101, "B"),
        ("f1", "A", "B", 0, 0, 0, ""),
    )
    page = comparison_page(comparison)
    assert page.said("verdict") == [
        "A and B: A is better in recall.",
        "A and B: B is better in overkill rate, AUROC.",
        "A and B: no difference is shown in precision, F1.",
    ]
    differences, *_ = (block for block in page.all_blocks() if isinstance(block, Table))
    assert [cell.text for cell in differences.rows[0]] == ["recall", "A – B", "+2.1 points [+0.4 to +3.9]", "A"]
    assert [row[3].text for row in differences.rows] == ["A", "B", "not shown", "B", "not shown"]
    assert page.said("plain") == ["9 images in common.", "Paired bootstrap intervals of 95 % for each number."]


def test_what_is_left_out_and_how_the_intervals_are_adjusted_is_told():
    three = [("recall", *pair, 0, -0.1, 0.1, "") for pair in ("AB", "AC", "BC")]
    given = {"left_out": {"A": 20, "B": 0, "C": 3}, "adjusted_level": 1 - 0.05 / 3}
    assert comparison_page(comparison_of(*three, **given)).said("plain") == [
        "9 images in common; left out, as they are not in all runs: 20 of A, 3 of C.",
        "Paired bootstrap intervals of 98.33 % for each number, so that its 3 hold together at 95 %.",
    ]


def test_page_says_first_what_was_found():
    tables = runs(7, skills=(4, 0.5))
    comparison = compare_predictions({"a <new>": tables["run 0"], "b": tables["run 1"]}, ALL, resamples=200)
    page = render_html(comparison_page(comparison))
    assert "<new>" not in page
    places = [page.index(part) for part in ("a &lt;new&gt; is better in ", "<table", "The runs")]
    assert places == sorted(places)


def test_a_number_that_a_run_cannot_state_is_a_dash():
    tables = runs(6, n=60)
    nothing = tables["run 1"].assign(prediction="sound", score=0.1, p_defective=0.1, p_sound=0.9)
    page = comparison_page(compare_predictions({"a": tables["run 0"], "b": nothing}, ALL, resamples=100))
    *_, numbers = [block for block in page.all_blocks() if isinstance(block, Table)]
    assert {row[0].text: row[2].text for row in numbers.rows}["precision"] == "– (–)"
