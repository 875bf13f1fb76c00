from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from defectcls.evaluation.decision import Decision
from defectcls.evaluation.evaluate import evaluate
from defectcls.evaluation.metrics import compute_metrics
from defectcls.evaluation.predictions import predictions_table
from defectcls.pages.report import render_report
from defectcls.pages.wording import caveats, decision_words, number, percent, span, verdict

TWO = (["sound", "defective"], [False, True])
THREE = (["good", "<b>x</b>", "hole"], [False, True, True])


class Page(HTMLParser):
    """The page's texts, table rows and attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.rows: list[list[str]] = []
        self.texts: list[str] = []
        self.in_cell = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag == "tr":
            self.rows.append([])
        if tag in ("th", "td"):
            self.in_cell = True
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self.in_cell = self.in_cell and tag not in ("th", "td")

    def handle_data(self, data: str) -> None:
        if self.in_cell:
            self.rows[-1][-1] += data
        self.texts += [data.strip()] if data.strip() else []


def predictions_from(matrix: list[list[int]], classes: tuple[list[str], list[bool]], **columns) -> pd.DataFrame:
    """A predictions table that has this confusion matrix."""
    pairs = [pair for pair, count in np.ndenumerate(np.array(matrix)) for _ in range(count)]
    truth, prediction = (np.array(side, int) for side in zip(*pairs, strict=True))
    names, defective = np.array(classes[0]), np.array(classes[1])
    samples = pd.DataFrame({"path": "x.png", "label": names[truth], "defective": defective[truth], "split": "test"})
    return predictions_table(samples.assign(**columns), np.eye(len(names))[prediction] * 0.6 + 0.1, *classes)


def metrics_of(classes: tuple[list[str], list[bool]], **matrices: list[list[int]]) -> dict:
    splits = {key: compute_metrics(predictions_from(matrix, classes), *classes) for key, matrix in matrices.items()}
    return {"class_names": classes[0], "defective_classes": classes[1], **splits}


FULL_RUN = {
    "dataset": "mvtec/<screw>",
    "model": "resnet18",
    "seed": 0,
    "command": "python -m defectcls.train dataset=mvtec 'name=a & b'",
    "stages": [
        {"name": "head", "epochs": 2, "best": {"val/auroc": 0.97}, "rolled_back": False},
        {"name": "full", "epochs": 9, "best": {"val/auroc": None}, "rolled_back": True},
    ],
    "seconds": {"fit": 183.24, "test": 3.0},
    "images_per_second": {"fit": 64.25},
    "versions": {"torch": "2.11.0"},
    "commit": "1a2b3c",
    "hardware": "2 cores",
    "unreadable": [{"path": "a/<i>.png", "reason": "truncated"}, {"path": "b.png", "reason": "empty"}],
    "config": {"optim": {"lr": 0.001}},
}


def test_the_verdict_states_the_hand_worked_numbers():
    assert verdict(metrics_of(TWO, test=[[118, 2], [2, 36]])) == (
        "Of 38 defective images in the test set 36 were caught: recall 94.7 %, escape rate 5.3 %. "
        "Of 120 sound images 2 were rejected: overkill 1.7 %."
    )
    assert verdict(metrics_of(TWO, val=[[0, 1], [0, 1]])) == (
        "Of 1 defective image in the validation set 1 was caught: recall 100.0 %, escape rate 0.0 %. "
        "Of 1 sound image 1 was rejected: overkill 100.0 %."
    )
    assert verdict(metrics_of(THREE, test=[[8, 0, 2], [1, 5, 4], [0, 0, 10]])) == (
        "Of 20 defective images in the test set 19 were caught: recall 95.0 %, escape rate 5.0 %. "
        "Of 10 sound images 2 were rejected: overkill 20.0 %. "
        "Of all 30 images 23 were given the right class: accuracy 76.7 %."
    )
    assert verdict(metrics_of((["crack", "hole"], [True, True]), test=[[3, 1], [0, 4]])) == (
        "Of all 8 images 7 were given the right class: accuracy 87.5 %."
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.9473, "94.7 %"), (1, "100.0 %"), (0.9997, "99.97 %"), (0.0003, "0.03 %"), (0, "0.0 %"), (None, "–")],
)
def test_percent_never_calls_almost_all_all(value, text):
    assert percent(value) == text


def test_number_keeps_a_distance_from_one_but_not_from_rounding_noise():
    assert [number(value) for value in (0.99996, 1 - 1e-12, 2.6101, float("nan"))] == ["0.99996", "1.000", "2.610", "–"]


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
        "The validation set has no defective image: how many defects get through is not known, nor the AUROC.",
    ]
    assert caveats(
        metrics_of(TWO, test=[[60, 0], [0, 60]]) | {key: FULL_RUN[key] for key in ("unreadable", "stages")}
    ) == [
        "2 images could not be read and were left out; see the end.",
        "Stage “full” did not beat the stages before it on validation and was rolled back.",
    ]
    assert "no image of “hole”" in caveats(metrics_of(THREE, test=[[60, 0, 0], [0, 60, 0], [0, 0, 0]]))[0]
    never_called = caveats(metrics_of(THREE, test=[[60, 0, 0], [0, 60, 0], [9, 3, 0]]))
    assert never_called == ["No image is called “hole” (12); in brackets how many are."]
    diverged = metrics_of(TWO, test=[[60, 0], [0, 60]])
    diverged["test"]["loss"] = None
    assert "training has diverged" in caveats(diverged)[0]


def test_the_page_of_a_full_run():
    matrices = {"baseline": [[20, 40], [20, 40]], "train": [[60, 0], [0, 60]], "val": [[59, 1], [0, 60]]}
    metrics = metrics_of(TWO, **matrices, test=[[57, 3], [6, 54]]) | FULL_RUN
    categories = ["nut"] * 60 + ["cap"] * 60
    predictions = predictions_from([[57, 3], [6, 54]], TWO, category=categories, defect_type="same")
    _, metrics["test"] = evaluate(predictions, None, *TWO)
    text = render_report(metrics, {"curves": b"curve", "predictions": b"tiles"})
    page = Page(text)

    assert verdict(metrics) in page.texts
    assert [text for text in caveats(metrics) if text not in page.texts] == []
    assert ["", "test", "95 % interval", "validation", "train", "before training"] in page.rows
    assert ["images", "120", "", "120", "120", "120"] in page.rows
    rows = {row[0]: [row[1], *row[3:]] for row in page.rows if len(row) == 6}
    assert rows["recall (share of defects caught)"] == ["90.0 %", "100.0 %", "100.0 %", "66.7 %"]
    assert rows["escape rate (defects let through)"] == ["10.0 %", "0.0 %", "0.0 %", "33.3 %"]
    assert rows["overkill rate (sound images rejected)"] == ["5.0 %", "1.7 %", "0.0 %", "66.7 %"]
    assert rows["AUROC"] == ["0.925", "0.992", "1.000", "0.500"]
    interval = span(metrics["test"]["intervals"]["recall"])
    recall = next(row for row in page.rows if row[0] == "recall (share of defects caught)")
    assert recall[1:3] == ["90.0 %", interval]
    assert [row for row in page.rows if row[0] in ("nut", "cap")] == [
        ["cap", "60", "60", "90.0 %", interval, "–"],  # every defect is a cap
        ["nut", "60", "0", "–", "–", "5.0 %"],
    ]
    assert not any(text.startswith("By defect type") for text in page.texts)
    assert ["head", "2", "val/auroc 0.970", "kept"] in page.rows
    assert ["full", "9", "val/auroc –", "rolled back"] in page.rows
    assert ["fit", "183.2", "64.2"] in page.rows
    assert ["test", "3.0", "–"] in page.rows
    assert ["a/<i>.png", "truncated"] in page.rows
    assert page.texts[page.texts.index("seed") + 1] == "0"
    assert FULL_RUN["command"] in page.texts
    assert any('"lr": 0.001' in text for text in page.texts)


def test_the_page_stands_alone():
    text = render_report(metrics_of(TWO, test=[[1, 0], [0, 1]]) | FULL_RUN, {"confusion_matrix": b"\x89PNG"})
    page = Page(text)
    links = [value for name, value in page.attributes if name in ("src", "href", "srcset", "action", "data")]
    assert links == ["data:image/png;base64,iVBORw=="]
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert "url(" not in text and "@import" not in text and "http" not in text


def test_many_classes_and_names_that_look_like_html():
    matrix = [[8, 0, 2], [1, 5, 4], [0, 0, 10]]
    predictions = predictions_from(matrix, THREE).assign(defect_type=lambda rows: rows["label"])
    metrics = metrics_of(THREE, test=matrix) | {"dataset": "<img src=x>"}
    _, metrics["test"] = evaluate(predictions, None, *THREE)
    text = render_report(metrics, {})
    page = Page(text)
    assert "b" not in page.tags and "img" not in page.tags
    assert "<img src=x> · unnamed model" in page.texts
    classes = [row for row in page.rows if row[0] in THREE[0] and len(row) == 5]
    assert ["<b>x</b>", "10", "50.0 %", "100.0 %", "66.7 %"] in classes  # images, recall, precision, F1
    (by_type,) = [row for row in page.rows if len(row) == 6 and row[0] == "<b>x</b>"]
    assert by_type[1:4] + by_type[5:] == ["10", "10", "90.0 %", "–"]  # one of ten escapes as good
    assert [row[0] for row in classes][:3] == ["<b>x</b>", "good", "hole"]  # worst recall first
    rows = [row[:2] for row in page.rows]
    assert ["recall (share of defects caught)", "95.0 %"] in rows
    assert ["recall, mean over classes", "76.7 %"] in rows
    assert any(row[0] == "AUROC, defective against sound" for row in page.rows)


def test_evaluate_alone_has_neither_baseline_nor_making():
    page = Page(render_report(metrics_of(TWO, test=[[57, 3], [6, 54]]), {}))
    assert ["", "test", "95 % interval"] in page.rows
    assert "How it was made" not in page.texts and "How training went" not in page.texts
    assert not any("before training" in text.lower() for text in page.texts)


def test_a_dash_is_explained_only_where_there_is_one():
    for matrix, dashes in ([[60, 0], [60, 0]], True), ([[59, 1], [1, 59]], False):
        _, judged = evaluate(predictions_from(matrix, TWO), None, *TWO)
        page = Page(render_report(metrics_of(TWO) | {"test": judged}, {}))
        assert any("precision needs a rejected image" in text for text in page.texts) == dashes


PROMISE = {"rate": "escape_rate", "target": 0.05, "confidence": 0.95, "bound": 0.0494, "kept": True}
PROMISE |= {"independent": 59, "needed": 59, "grouped": False}
DECISION = {"policy": "recall>=0.95", "scale": 1.0, "shift": [], "prevalence": None, "prior": None}
DECISION |= {"accept_below": 0.25, "reject_from": 0.25}
DECISION |= {"evidence": {"defective": 59, "sound": 1, "escapes": 0, "false_rejects": 1}}
DECISION |= {"promises": [PROMISE]}


def test_a_decision_is_told_with_its_evidence_and_promise():
    assert decision_words(DECISION) == [
        "An image is rejected from a score of 0.2500 on (policy recall>=0.95). On the validation set this lets 0 of 59 "
        "defective images through and rejects 1 of 1 sound image.",
        "Promise: with 95.0 % confidence the escape rate on images like these is at most 5.0 % (Clopper-Pearson bound "
        "4.9 % from 59 defective validation images).",
        "That holds for validation images of no other use; these chose the weights too. Test images decide.",
    ]
    assert len(decision_words(DECISION, trained=False)) == 2
    assert decision_words(None)[0].startswith("The predictions are taken as they are")
    by_class = DECISION | {"accept_below": None, "reject_from": None, "evidence": None, "promises": []}
    assert decision_words(by_class | {"policy": "argmax"}) == [
        "An image is rejected when its most probable class is a defective one (policy argmax)."
    ]
    assert decision_words(by_class | {"policy": "balanced", "prior": [0.9, 0.08, 0.02]}) == [
        "An image is rejected when its most probable class, were all classes equally common, is a defective one "
        "(policy balanced)."
    ]
    assert decision_words(by_class | {"policy": "balanced"})[1] == (
        "Validation images of one kind do not tell how errors of both weigh."
    )
    balanced = DECISION | {"policy": "balanced", "shift": [0.0, -2.0], "prevalence": 0.25, "promises": []}
    assert decision_words(balanced)[0].startswith(
        "An image is rejected from a score of 0.2500 on: at this threshold both error rates weigh alike (policy "
        "balanced; scores assume that 25.0 % of the parts are defective). On"
    )
    cautious = balanced | {"accept_below": 0.2, "reject_from": 0.2}
    assert decision_words(cautious)[0].startswith(
        "An image is rejected from a score of 0.2000 on: at 0.2500 both error rates would weigh alike, and the network "
        "is more cautious (policy balanced"
    )
    band = decision_words(DECISION | {"reject_from": 0.75, "promises": []})
    assert band[0].startswith("An image is accepted below a score of 0.2500, rejected from 0.7500 on, and goes to a")


def test_beside_the_calibration_stands_for_which_prevalence_the_scores_are():
    metrics = metrics_of(TWO, test=[[60, 0], [0, 60]])
    for prevalence, told in ((0.01, True), (None, False)):
        page = Page(render_report(metrics | {"decision": DECISION | {"prevalence": prevalence}}, {"reliability": b""}))
        assert any(text.startswith("Scores are for 1.0 % of defects: where as many") for text in page.texts) == told


def test_promises_that_cannot_be_given_or_do_not_hold_are_caveats():
    good = metrics_of(TWO, test=[[60, 0], [0, 60]])
    unproven = PROMISE | {"kept": False, "independent": 40, "bound": 0.0722, "grouped": True}
    assert caveats(good | {"decision": DECISION | {"promises": [unproven]}}) == [
        "No promise: an escape rate of at most 5.0 % at 95.0 % confidence takes 59 independent defective validation "
        "images, not one of them misjudged. There are 40 groups of defective validation images, which prove an escape "
        "rate of at most 7.2 %."
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


def test_the_page_of_a_cross_validation_has_every_fold_and_their_mean():
    folds = [{"repeat": 0, "fold": 0, "auroc": 0.5, "recall": None}, {"repeat": 0, "fold": 1, "auroc": 1.0}]
    page = Page(render_report(metrics_of(TWO, test=[[60, 0], [0, 60]]) | {"folds": folds}, {}))
    found = {row[0]: row[-1] for row in page.rows if len(row) == 7}
    assert found == {
        "fold": "auroc",
        "0 of repeat 0": "0.500",
        "1 of repeat 0": "1.000",
        "mean": "0.750",
        "standard deviation": "0.354",
    }


def test_what_the_model_looks_at_is_told():
    looked = {"localisation": {"n": 7, "hit": 0.5, "energy": 0.25, "chance": 0.125}}
    page = Page(render_report(metrics_of(TWO, test=[[60, 0], [0, 60]]) | looked, {}))
    (words,) = [text for text in page.texts if text.startswith("Does the model look at the defect?")]
    assert "On 7 defective images" in words and "50.0 %" in words and "12.5 %" in words


def test_what_goes_to_a_person_is_told_in_a_table():
    predictions = predictions_from([[3, 1], [1, 2]], TWO)
    predictions["decision"] = ["accept", "accept", "accept", "review", "accept", "review", "reject"]
    _, judged = evaluate(predictions, None, *TWO)
    assert judged["handling"] == {
        "sound": {"accept": 3, "review": 1, "reject": 0},
        "defective": {"accept": 1, "review": 1, "reject": 1},
    }
    decision = DECISION | {"reject_from": 0.75, "promises": []}
    page = Page(render_report(metrics_of(TWO) | {"test": judged, "decision": decision}, {}))
    assert ["sound", "3", "1", "0"] in page.rows and ["defective", "1", "1", "1"] in page.rows
    assert "A person has to look at 28.6 % of the images." in verdict(metrics_of(TWO) | {"test": judged})


def test_a_light_disturbance_that_costs_much_is_a_caveat():
    rows = [{"corruption": "none", "strength": 0, "setting": "", "recall": 1.0, "overkill_rate": None}]
    for name, recall in (("blur", 0.95), ("jpeg", 0.85)):
        rows += [{"corruption": name, "strength": 1, "setting": "x", "recall": recall, "overkill_rate": 0.5}]
        rows += [{"corruption": name, "strength": 2, "setting": "y", "recall": 0.0, "overkill_rate": 0.5}]
    frail = metrics_of(TWO, test=[[60, 0], [0, 60]]) | {"robustness": rows, "robustness_images": 4}
    assert caveats(frail) == ["Frail: jpeg (x) brings recall from 100.0 % to 85.0 %, on 4 test images."]
    assert "blur: x, y; jpeg: x, y." in " ".join(Page(render_report(frail, {"robustness": b"p"})).texts)


def test_a_joined_head_says_what_it_weighs():
    head = {"name": "joined", "memory": 1.875, "classifier": 0.5, "bank": 10_000}
    page = render_report({**metrics_of(TWO, test=[[118, 2], [2, 36]]), "head": head}, {})
    assert "a memory of 10,000 sound patches joined with the classifier, 1.88 to 0.50 (log-odds" in page


def test_a_type_that_training_was_not_shown_has_a_sentence_of_its_own():
    predictions = predictions_from([[60, 0], [20, 40]], TWO)
    held_out = np.r_[np.full(60, "good"), np.full(15, "crack"), np.full(45, "dent")]  # 15 and 5 missed
    _, judged = evaluate(predictions.assign(defect_type=held_out), None, *TWO)
    config = {"dataset": {"split": {"hold_out_defect_type": "dent"}}}
    sentence = "Training was not shown “dent”: of 45 such images 40 were caught, recall 88.9 % (95 % interval "
    assert any(caveat.startswith(sentence) for caveat in caveats(metrics_of(TWO) | {"test": judged, "config": config}))
    assert not any("not shown" in caveat for caveat in caveats(metrics_of(TWO) | {"test": judged, "config": {}}))


def test_another_dataset_stands_beside_its_own():
    """Own: 36 of 40 caught, 2 of 100 rejected. Here: 10 of 40, 50 of 100."""
    _, own = evaluate(predictions_from([[98, 2], [4, 36]], TWO), None, *TWO)
    _, here = evaluate(predictions_from([[50, 50], [30, 10]], TWO), None, *TWO)
    metrics = metrics_of(TWO) | {"test": here}
    metrics["elsewhere"] = {"trained_on": "cracks", "judged_on": "<b>nuts</b>", "test": own}
    assert caveats(metrics)[0] == (
        "Another dataset: the model was trained on cracks and is judged on <b>nuts</b>. Here AUROC 0.375, recall "
        "25.0 %, overkill 50.0 %; on its own test images 0.940, 90.0 %, 2.0 %. Calling every image “sound” would "
        "be right more often (71.4 %) than this model (42.9 %)."
    )
    page = Page(render_report(metrics, {}))
    head = ["", "cracks, test part", "95 % interval", "<b>nuts</b>, these images", "95 % interval", "difference"]
    assert [*head, "95 % interval"] in page.rows
    rows = {row[0]: row for row in page.rows if len(row) == 7}
    (low, high), (below, above) = own["intervals"]["recall"], here["intervals"]["recall"]
    lower, upper = -0.65 - np.hypot(0.25 - below, high - 0.9), -0.65 + np.hypot(above - 0.25, 0.9 - low)
    assert rows["images"][1::2] == ["140", "140", ""]
    assert rows["recall"][1::2] == ["90.0 %", "25.0 %", "-65.0 points"]
    assert rows["recall"][6] == f"{100 * lower:+.1f} to {100 * upper:+.1f}"
    assert rows["overkill"][5] == "+48.0 points"
    assert rows["AUROC"][5] == "-0.565"

    unknown = metrics | {"elsewhere": metrics["elsewhere"] | {"test": {}}}
    assert "overkill 50.0 %; its numbers on its own test images are not known. Calling" in caveats(unknown)[0]
    better = metrics | {"test": evaluate(predictions_from([[90, 10], [30, 10]], TWO), None, *TWO)[1]}
    assert caveats(better)[0].endswith("90.0 %, 2.0 %.")
    assert not [row for row in Page(render_report(unknown, {})).rows if len(row) == 7]
    only_sound = evaluate(predictions_from([[50, 50], [0, 0]], TWO), None, *TWO)[1]
    assert caveats(metrics | {"test": only_sound})[0].endswith("Here overkill 50.0 %; on its own test images 2.0 %.")
    (auroc,) = [row for row in Page(render_report(metrics | {"test": only_sound}, {})).rows if row[0] == "AUROC"][:1]
    assert [auroc[1], *auroc[3:]] == ["0.940", "–", "–", "–", "–"]
