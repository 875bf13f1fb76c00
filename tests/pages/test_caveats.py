import pytest

from defectcls.evaluation.decision import Decision
from defectcls.pages.caveats import caveats
from defectcls.pages.wording import decision_words
from tests.pages.test_report import FULL_RUN, TWO, metrics_of
from tests.pages.test_wording import DECISION, PROMISE


def test_a_large_good_run_has_no_caveats():
    assert caveats(metrics_of(TWO, baseline=[[50, 50], [50, 50]], test=[[98, 2], [1, 99]])) == []


def test_scores_that_rank_no_better_than_chance_on_validation_are_a_caveat():
    metrics = metrics_of(TWO, val=[[80, 20], [20, 80]], test=[[98, 2], [1, 99]])
    metrics["val"]["auroc"] = 0.31
    assert caveats(metrics) == [
        "On validation the scores rank no better than chance (AUROC 0.310): no threshold helps."
    ]


@pytest.mark.parametrize(("defective", "sound", "few"), [(4, 90, True), (40, 9, True), (20, 20, False)])
def test_a_threshold_that_rests_on_few_images_is_a_caveat(defective, sound, few):
    evidence = {"defective": defective, "sound": sound, "escapes": 0, "false_rejects": 0}
    metrics = metrics_of(TWO, test=[[98, 2], [1, 99]])
    metrics["decision"] = Decision("balanced", accept_below=0.2, reject_from=0.2, evidence=evidence).plain()
    rests = f"The threshold rests on {defective} defective images and {sound} sound of the validation set"
    assert caveats(metrics) == ([f"{rests}: others would have moved it."] if few else [])


def test_caveats_in_words():
    few = caveats(metrics_of(TWO, test=[[99, 1], [0, 8]]))
    assert few == [
        "The test set is small: with 8 defective images, a single one moves the escape rate by 12.5 percentage points."
    ]
    unimproved = caveats(metrics_of(TWO, baseline=[[90, 10], [50, 50]], test=[[99, 1], [99, 1]]))
    assert unimproved == ["No improvement over the network before training: AUROC 0.500, before 0.700."]
    none_defective = caveats(metrics_of(TWO, val=[[60, 0], [0, 0]]))
    assert none_defective == [
        "No test set: the verdict is on validation images, which helped to make the model. Expect worse.",
        "The validation set has no defective image: the escape rate is not known, nor the AUROC.",
    ]
    assert caveats(
        metrics_of(TWO, test=[[60, 0], [0, 60]]) | {key: FULL_RUN[key] for key in ("unreadable", "stages")}
    ) == [
        "2 images could not be read and were left out; see the end.",
        "Stage “full” did not beat the stages before it on validation and was rolled back.",
    ]
    diverged = metrics_of(TWO, test=[[60, 0], [0, 60]])
    diverged["test"]["loss"] = None
    assert "training has diverged" in caveats(diverged)[0]


def test_promises_that_cannot_be_given_or_do_not_hold_are_caveats():
    good = metrics_of(TWO, test=[[60, 0], [0, 60]])
    unproven = PROMISE | {"kept": False, "independent": 40, "bound": 0.0722, "grouped": True}
    assert caveats(good | {"decision": DECISION | {"promises": [unproven]}}) == [
        "No promise: an escape rate of at most 5.0 % at 95.0 % confidence takes 59 independent defective validation "
        "images, not one of them misjudged. There are 40 groups of defective validation images, which prove at most "
        "7.2 %."
    ]
    (told,) = decision_words(DECISION | {"promises": [unproven]})
    cautious = "this is the most cautious threshold that costs nothing on validation)"
    assert f"; the rate cannot be promised, {cautious}" in told
    bad = metrics_of(TWO, test=[[60, 0], [20, 40]])
    bad["test"]["intervals"] = {"escape_rate": [0.23, 0.46]}
    (caveat,) = caveats(bad | {"decision": DECISION})
    assert caveat.startswith(
        "The promise of an escape rate of at most 5.0 % does not hold on this set, where it is 23.0"
    )
    assert caveats(good | {"decision": DECISION}) == []
