import pytest

from defectcls.pages.wording import (
    caveats,
    decision_words,
    difference,
    number,
    part_name,
    percent,
    shown,
    span,
    verdict,
)
from tests.pages.test_report import THREE, TWO, metrics_of

PROMISE = {"rate": "escape_rate", "target": 0.05, "confidence": 0.95, "bound": 0.0494, "kept": True}
PROMISE |= {"independent": 59, "needed": 59, "grouped": False}
DECISION = {"policy": "recall>=0.95", "scale": 1.0, "shift": [], "prevalence": None, "prior": None}
DECISION |= {"accept_below": 0.25, "reject_from": 0.25}
DECISION |= {"evidence": {"defective": 59, "sound": 1, "escapes": 0, "false_rejects": 1}}
DECISION |= {"promises": [PROMISE]}


def test_the_verdict_states_the_hand_worked_numbers():
    assert " ".join(verdict(metrics_of(TWO, test=[[118, 2], [2, 36]]))) == (
        "Caught: 36 of 38 defective images, recall 94.7 %, escape rate 5.3 %. "
        "Rejected: 2 of 120 sound images, overkill 1.7 %."
    )
    assert " ".join(verdict(metrics_of(TWO, val=[[0, 1], [0, 1]]))) == (
        "Caught: 1 of 1 defective image, recall 100.0 %, escape rate 0.0 %. "
        "Rejected: 1 of 1 sound image, overkill 100.0 %."
    )
    assert " ".join(verdict(metrics_of(THREE, test=[[8, 0, 2], [1, 5, 4], [0, 0, 10]]))) == (
        "Caught: 19 of 20 defective images, recall 95.0 %, escape rate 5.0 %. "
        "Rejected: 2 of 10 sound images, overkill 20.0 %. "
        "Right class: 23 of 30 images, accuracy 76.7 %."
    )
    assert " ".join(verdict(metrics_of({"crack": True, "hole": True}, test=[[3, 1], [0, 4]]))) == (
        "Right class: 7 of 8 images, accuracy 87.5 %."
    )


def test_what_is_judged_out_of_fold_is_said_to_be():
    matrix = [[118, 2], [2, 36]]
    alone = metrics_of(TWO, val=matrix, test=matrix) | {"out_of_fold": {"val": 5, "test": 5}}
    assert verdict(alone) == [
        "Caught: 36 of 38 defective images, recall 94.7 %, escape rate 5.3 %.",
        "Rejected: 2 of 120 sound images, overkill 1.7 %.",
        "Each photo was judged by one of 5 models that had not seen it or its like; the model that is kept is their "
        "mean and has learned from all 158. What decides was chosen on the same scores.",
    ]
    assert caveats(alone) == ["Few images: 38 defective images and 120 sound."]
    beside = metrics_of(TWO, val=matrix, test=[[10, 0], [0, 10]]) | {"out_of_fold": {"val": 5}}
    said = verdict(beside)
    assert said[0].startswith("Caught: 10 of 10 defective images")
    assert said[2].startswith("Out of fold each photo was judged by one of 5 models")
    assert said[2].endswith("has learned from all 158. What decides was chosen on the same scores.")
    assert [part_name(beside, part) for part in ("val", "test")] == ["out of fold", "test"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.9473, "94.7 %"), (1, "100.0 %"), (0.9997, "99.97 %"), (0.0003, "0.03 %"), (0, "0.0 %"), (None, "–")],
)
def test_percent_never_calls_almost_all_all(value, text):
    assert percent(value) == text


def test_number_keeps_a_distance_from_one_but_not_from_rounding_noise():
    assert [number(value) for value in (0.99996, 1 - 1e-12, 2.6101, float("nan"))] == ["0.99996", "1.000", "2.610", "–"]


def test_a_decision_is_told_with_its_evidence_and_promise():
    assert decision_words(DECISION) == [
        "An image is rejected from a score of 0.2500 on (policy recall>=0.95). On the images that it was chosen on "
        "this lets 0 of 59 defective images through and rejects 1 of 1 sound image.",
        "Promise: with 95.0 % confidence the escape rate on images like these is at most 5.0 % (one-sided "
        "Clopper-Pearson bound 4.9 % from 59 defective images).",
    ]
    assert decision_words(None)[0].startswith("The predictions are taken as they are")
    by_class = DECISION | {"accept_below": None, "reject_from": None, "evidence": None, "promises": []}
    assert decision_words(by_class | {"policy": "argmax"}) == [
        "An image is rejected when its most probable class is a defective one (policy argmax)."
    ]
    assert decision_words(by_class | {"policy": "balanced", "prior": [0.9, 0.08, 0.02]}) == [
        "An image is rejected when its most probable class, were all classes equally common, is a defective one "
        "(policy balanced)."
    ]
    balanced = DECISION | {"policy": "balanced", "shift": [0.0, -2.0], "prevalence": 0.25, "promises": []}
    assert decision_words(balanced)[0].startswith(
        "An image is rejected from a score of 0.2500 on (policy balanced; scores assume that 25.0 % of the parts are "
        "defective, so that equal weight to both kinds rejects from about that share on). On"
    )
    assert decision_words(balanced | {"policy": "f1"})[0].startswith(
        "An image is rejected from a score of 0.2500 on (policy f1; scores assume that 25.0 % of the parts are "
        "defective). On"
    )
    band = decision_words(DECISION | {"reject_from": 0.75, "promises": []})
    assert band[0].startswith("An image is rejected from a score of 0.7500 on, accepted below 0.2500, and goes to a")


def test_each_number_is_shown_as_its_table_says():
    assert [shown(name, 0.5) for name in ("recall", "auroc")] == ["50.0 %", "0.500"]
    assert [span(name, (0.5, 1)) for name in ("recall", "auroc")] == ["50.0 to 100.0 %", "0.500 to 1.000"]
    assert [span("recall", None), span("recall", (0.5, None))] == ["–"] * 2
    assert difference("recall", -0.5, -0.75, 0.25) == "-50.0 points [-75.0 to +25.0]"
    assert difference("auroc", -0.5, -0.75, 0.25) == "-0.500 [-0.750 to +0.250]"
