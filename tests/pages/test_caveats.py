import pytest

from defectcls.pages.wording import caveats
from tests.pages.test_report import FULL_RUN, THREE, TWO, metrics_of
from tests.pages.test_wording import DECISION, PROMISE


def test_a_large_good_run_has_no_caveats():
    assert caveats(metrics_of(TWO, test=[[98, 2], [1, 99]])) == []


@pytest.mark.parametrize(
    ("matrix", "collapsed"),
    [
        ([[42, 4], [13, 0]], True),  # a published recipe on bottles
        ([[72, 0], [24, 0]], True),
        ([[97, 3], [19, 1]], True),  # 5 % caught, 3 % rejected
        ([[1000, 0], [5, 0]], True),
        ([[1000, 0], [4, 0]], False),  # four defects are too few to say so
        ([[300, 0], [27, 10]], False),  # 97 % are called sound, and what is not is defective
        ([[300, 0], [1, 9]], False),
        ([[80, 20], [20, 0]], False),  # useless, but not alike: 83 %
        ([[60, 0], [0, 0]], False),
    ],
)
def test_collapse_onto_one_class(matrix, collapsed):
    for turned in (matrix, [row[::-1] for row in matrix[::-1]]):
        assert any("Collapse" in said for said in caveats(metrics_of(TWO, test=turned))) == collapsed


def test_collapse_in_words():
    (said,) = (one for one in caveats(metrics_of(TWO, test=[[42, 4], [13, 0]])) if "Collapse" in one)
    assert said == (
        "Collapse onto one class: 55 of 59 images are called “sound”, and 13 of the 13 others are wrong. To call every "
        "image so has an accuracy of 78.0 %."
    )
    many = metrics_of(THREE, test=[[80, 0, 0], [9, 1, 0], [10, 0, 0]])
    many["test"]["intervals"] = {"defect": {"auroc": [0.6, 0.9]}}
    assert caveats(many)[0].startswith("Collapse onto one class: 99 of 100 images are called “good”, and 19 of")
    assert caveats(many)[0].endswith(
        "The scores rank better than chance, and decision=f1 takes a threshold that uses them."
    )


def test_scores_that_may_be_those_of_chance():
    metrics = metrics_of(TWO, test=[[25, 21], [7, 6]])
    metrics["test"] |= {"auroc": 0.421, "intervals": {"auroc": [0.2234, 0.6484]}}
    assert caveats(metrics)[0] == "Not surely better than chance: AUROC 0.421, 95 % interval 0.223 to 0.648."
    metrics["test"]["intervals"] = {"auroc": [0.501, 0.9]}
    assert not any("chance" in said for said in caveats(metrics))


def test_what_a_person_looks_at_is_no_collapse():
    metrics = metrics_of(TWO, test=[[0, 60], [0, 60]])
    metrics["test"]["review_rate"] = 1.0
    assert caveats(metrics) == []


def test_caveats_in_words():
    few = caveats(metrics_of(TWO, test=[[99, 1], [0, 8]]))
    assert few == ["Few images: 8 defective images and 100 sound."]
    classes = metrics_of(THREE, test=[[60, 0, 0], [0, 57, 0], [0, 2, 2]])
    assert caveats(classes) == ["Fewer than 5 images of a class, whose numbers say nothing: “hole” (4)."]
    assert caveats(metrics_of(THREE, test=[[60, 0, 0], [0, 57, 0], [0, 2, 3]])) == []
    none_defective = caveats(metrics_of(TWO, val=[[60, 0], [0, 0]]))
    assert none_defective == [
        "No test set: the verdict is on validation images, which helped to make the model.",
        "Few images: 0 defective images and 60 sound.",
    ]
    assert caveats(metrics_of(TWO, test=[[60, 0], [0, 60]]) | {"unreadable": FULL_RUN["unreadable"]}) == [
        "Left out as it could not be read: 2 images; see the end."
    ]
    diverged = metrics_of(TWO, test=[[60, 0], [0, 60]])
    diverged["test"]["loss"] = None
    assert "training has diverged" in caveats(diverged)[0]


def test_promises_that_cannot_be_given_or_do_not_hold_are_caveats():
    good = metrics_of(TWO, test=[[60, 0], [0, 60]])
    unproven = PROMISE | {"kept": False, "independent": 40, "bound": 0.0722, "grouped": True}
    assert caveats(good | {"decision": DECISION | {"promises": [unproven]}}) == [
        "No promise: an escape rate of at most 5.0 % at 95.0 % confidence takes 59 independent defective images, not "
        "one of them misjudged. There are 40 groups of defective images, which prove at most 7.2 %, one-sided."
    ]
    bad = metrics_of(TWO, test=[[60, 0], [20, 40]])
    bad["test"]["intervals"] = {"escape_rate": [0.23, 0.46]}
    (caveat,) = caveats(bad | {"decision": DECISION})
    assert caveat.startswith(
        "The promise of an escape rate of at most 5.0 % does not hold on this set, where it is 23.0"
    )
    assert caveats(good | {"decision": DECISION}) == []
