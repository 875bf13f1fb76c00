import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
import torchmetrics.functional.classification as reference
from sklearn import metrics as sk

from defectcls.evaluation.intervals import metric_intervals
from defectcls.evaluation.metrics import Share, compute_metrics, defect_counts, defect_numbers, ranking
from defectcls.evaluation.predictions import predictions_table

TWO = {"sound": False, "defective": True}
THREE = {"good": False, "crack": True, "hole": True}


def table(truth: list[int], probabilities: np.ndarray | list, classes: dict[str, bool], **columns):
    names, defective = np.array([*classes]), np.array([*classes.values()])
    samples = pd.DataFrame({"label": names[truth], "defective": defective[truth], **columns})
    return predictions_table(samples, np.asarray(probabilities, float), classes)


def two_class_table(truth: list[int], scores: list[float], **columns) -> pd.DataFrame:
    return table(truth, np.column_stack([1 - np.array(scores), scores]), TWO, **columns)


def test_two_classes_worked_by_hand():
    scores = [0.9, 0.8, 0.6, 0.3, 0.7, 0.4, 0.3, 0.2, 0.1, 0.1]
    metrics = compute_metrics(two_class_table([1] * 4 + [0] * 6, scores), TWO)
    assert metrics["confusion_matrix"] == [[5, 1], [1, 3]]
    expected = {
        "n": 10,
        "accuracy": 8 / 10,
        "precision": 3 / 4,
        "recall": 3 / 4,
        "f1": 3 / 4,
        "f1_macro": (3 / 4 + 10 / 12) / 2,
        "escape_rate": 1 / 4,
        "overkill_rate": 1 / 6,
        "auroc": (6 + 6 + 5 + 3.5) / 24,  # pairs that each defective image wins; the tie at 0.3 counts half
        "average_precision": (1 + 1 + 3 / 4 + 4 / 7) / 4,
        "loss": -sum(map(math.log, [0.9, 0.8, 0.6, 0.3, 0.3, 0.6, 0.7, 0.8, 0.9, 0.9])) / 10,
    }
    assert set(metrics) == {*expected, "confusion_matrix"}
    assert {key: metrics[key] for key in expected} == pytest.approx(expected)


def test_three_classes_worked_by_hand():
    certain = np.full((3, 3), 0.1) + 0.7 * np.eye(3)
    truth, prediction = [0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 2, 0]
    metrics = compute_metrics(table(truth, certain[prediction], THREE), THREE)
    assert metrics["confusion_matrix"] == [[2, 1, 0], [0, 1, 1], [1, 0, 0]]
    assert metrics["per_class"] == {
        "good": {"n": 3, "precision": 2 / 3, "recall": 2 / 3, "f1": 2 / 3},
        "crack": {"n": 2, "precision": 1 / 2, "recall": 1 / 2, "f1": 1 / 2},
        "hole": {"n": 1, "precision": 0.0, "recall": 0.0, "f1": 0.0},
    }
    assert metrics["recall_macro"] == pytest.approx(7 / 18)
    assert metrics["loss"] == pytest.approx(-(3 * math.log(0.8) + 3 * math.log(0.1)) / 6)
    # crack taken for hole is still a defect caught; good taken for crack is overkill; hole taken for good an escape
    defect = {key: metrics["defect"][key] for key in ("precision", "recall", "f1", "escape_rate", "overkill_rate")}
    assert defect == {
        "precision": 2 / 3,
        "recall": 2 / 3,
        "f1": 2 / 3,
        "escape_rate": pytest.approx(1 / 3),
        "overkill_rate": 1 / 3,
    }
    # scores: good 0.2, 0.2, 0.9; crack 0.9, 0.9; hole 0.2: of nine pairs four are won, and four are ties
    assert metrics["defect"]["auroc"] == pytest.approx((4 + 4 / 2) / 9)
    found = defect_numbers(
        metrics | {"intervals": {"auroc": [0, 1], "accuracy": [0, 1], "defect": {"auroc": [0.4, 0.9]}}}
    )
    assert (found["auroc"], found["recall"], found["accuracy"]) == (pytest.approx(6 / 9), 2 / 3, 0.5)
    assert (found["intervals"]["auroc"], found["intervals"]["accuracy"]) == ([0.4, 0.9], [0, 1])
    assert defect_numbers({"auroc": 0.5}) == {"auroc": 0.5, "intervals": {}}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("ties", [False, True])
def test_two_classes_as_torchmetrics(seed, ties):
    generator = np.random.default_rng(seed)
    truth = generator.integers(0, 2, 60)
    scores = (truth + generator.normal(0.3, 1, 60)).clip(-1, 2) / 3 + 1 / 3
    scores = scores.round(1) if ties else scores
    metrics = compute_metrics(two_class_table(truth.tolist(), scores), TWO)
    score, target = torch.tensor(scores), torch.tensor(truth)
    for key, function in {
        "accuracy": reference.binary_accuracy,
        "precision": reference.binary_precision,
        "recall": reference.binary_recall,
        "f1": reference.binary_f1_score,
        "auroc": reference.binary_auroc,
        "average_precision": reference.binary_average_precision,
    }.items():
        assert metrics[key] == pytest.approx(function(score, target).item(), abs=1e-6), key
    assert metrics["overkill_rate"] == pytest.approx(1 - reference.binary_specificity(score, target).item(), abs=1e-6)
    assert metrics["escape_rate"] == pytest.approx(1 - metrics["recall"])
    assert metrics["confusion_matrix"] == reference.binary_confusion_matrix(score, target).tolist()
    assert metrics["loss"] == pytest.approx(sk.log_loss(truth, np.column_stack([1 - scores, scores])))


@pytest.mark.parametrize("kind", ["random", "ties", "constant", "certain", "one class"])
def test_two_classes_as_scikit_learn_to_a_billionth(kind):
    """In degenerate cases None stands where scikit-learn warns, raises or says 0 for want of a number."""
    generator = np.random.default_rng(0)
    truth, scores = generator.integers(0, 2, 200), generator.random(200)
    scores = {"ties": scores.round(1), "constant": scores * 0 + 0.3, "certain": scores.round()}.get(kind, scores)
    truth = np.ones(200, int) if kind == "one class" else truth
    metrics, flagged = compute_metrics(two_class_table(truth.tolist(), scores), TWO), scores > 0.5
    expected = {
        "accuracy": sk.accuracy_score(truth, flagged),
        "precision": sk.precision_score(truth, flagged) if flagged.any() else None,
        "recall": sk.recall_score(truth, flagged),
        "f1": sk.f1_score(truth, flagged),
        "f1_macro": sk.f1_score(truth, flagged, average="macro"),
        "loss": sk.log_loss(truth, np.column_stack([1 - scores, scores]), labels=[0, 1]),
        "auroc": None if kind == "one class" else sk.roc_auc_score(truth, scores),
        "average_precision": None if kind == "one class" else sk.average_precision_score(truth, scores),
    }
    for name, value in expected.items():
        assert metrics[name] == (value if value is None else pytest.approx(value, abs=1e-9, rel=0)), name


@pytest.mark.parametrize("missing", [False, True])
def test_many_classes_as_scikit_learn_to_a_billionth(missing):
    generator = np.random.default_rng(1)
    truth = generator.integers(0, 3 if missing else 4, 300)
    probabilities = generator.dirichlet(np.ones(4), 300)
    probabilities[:, 3] = probabilities[:, 3] / 10 if missing else probabilities[:, 3]
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    names, answer = list("abcd"), probabilities.argmax(1)
    classes = dict(zip(names, [False, True, True, True], strict=True))
    metrics = compute_metrics(table(truth.tolist(), probabilities, classes), classes)
    present = sorted(set(truth))
    for name, function in {"recall": sk.recall_score, "precision": sk.precision_score, "f1": sk.f1_score}.items():
        each = function(truth, answer, labels=range(4), average=None, zero_division=np.nan)
        for value, c in zip(each, names, strict=True):
            expected = None if np.isnan(value) else pytest.approx(value, abs=1e-9, rel=0)
            assert metrics["per_class"][c][name] == expected
        assert metrics[f"{name}_macro"] == pytest.approx(np.nanmean(each), abs=1e-9, rel=0)
    for name, function in {"auroc": sk.roc_auc_score, "average_precision": sk.average_precision_score}.items():
        each = [function(truth == c, probabilities[:, c]) for c in present]
        assert metrics[name] == pytest.approx(np.mean(each), abs=1e-9, rel=0)
    assert metrics["loss"] == pytest.approx(sk.log_loss(truth, probabilities, labels=range(4)), abs=1e-9, rel=0)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("classes", [3, 7])
def test_many_classes_as_torchmetrics(seed, classes):
    generator = np.random.default_rng(seed)
    truth = np.concatenate([np.arange(classes), generator.integers(0, classes, 80)])
    probabilities = generator.dirichlet(np.ones(classes), len(truth)).round(2)  # rounded: ties
    probabilities[np.arange(len(truth)), truth] += 0.25
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    named = {f"class {index}": index > 0 for index in range(classes)}
    predictions = table(truth.tolist(), probabilities, named)
    metrics = compute_metrics(predictions, named)
    scores, target = torch.tensor(probabilities), torch.tensor(truth)
    for key, function in {
        "precision_macro": reference.multiclass_precision,
        "recall_macro": reference.multiclass_recall,
        "f1_macro": reference.multiclass_f1_score,
        "auroc": reference.multiclass_auroc,
        "average_precision": reference.multiclass_average_precision,
    }.items():
        expected = function(scores, target, num_classes=classes, average="macro").item()
        assert metrics[key] == pytest.approx(expected, abs=1e-6), key
    assert metrics["accuracy"] == pytest.approx((probabilities.argmax(1) == truth).mean())
    assert metrics["confusion_matrix"] == reference.multiclass_confusion_matrix(scores, target, classes).tolist()
    assert metrics["loss"] == pytest.approx(sk.log_loss(truth, probabilities))
    score, defect = torch.tensor(predictions["score"]), (target > 0).long()
    assert metrics["defect"]["auroc"] == pytest.approx(reference.binary_auroc(score, defect).item(), abs=1e-6)
    caught = reference.binary_recall((scores.argmax(1) > 0).long(), defect).item()
    assert metrics["defect"]["recall"] == pytest.approx(caught, abs=1e-6)


def test_only_sound_images_leave_undefined_what_needs_a_defect():
    metrics = compute_metrics(two_class_table([0, 0], [0.2, 0.4]), TWO)
    undefined = {key for key, value in metrics.items() if value is None}
    assert undefined == {"precision", "recall", "f1", "escape_rate", "auroc", "average_precision"}
    assert (metrics["accuracy"], metrics["overkill_rate"], metrics["f1_macro"]) == (1, 0, 1)


def test_a_sound_image_that_is_rejected_tells_nothing_of_defects():
    """Of one rejected image none is a defect, but there was none to reject: a precision of 0 would be made up."""
    rejected = two_class_table([0, 0, 0], [0.2, 0.4, 0.9])
    metrics = compute_metrics(rejected, TWO)
    assert (metrics["precision"], metrics["f1"], metrics["overkill_rate"]) == (None, None, 1 / 3)
    assert metrics["f1_macro"] == sk.f1_score([0, 0, 0], [0, 0, 1], average="macro")
    limits = metric_intervals(rejected, TWO, resamples=20)
    assert (limits["precision"], limits["f1"]) == (None, None) and limits["overkill_rate"][0] < 1 / 3
    many = compute_metrics(table([0, 1], [[0.1, 0.1, 0.8], [0.2, 0.7, 0.1]], THREE), THREE)
    assert many["per_class"]["hole"] == {"n": 0, "precision": None, "recall": None, "f1": None}
    assert many["precision_macro"] == 0.5  # of crack and hole, as scikit-learn has it


def test_only_defective_images_all_missed():
    metrics = compute_metrics(two_class_table([1, 1], [0.2, 0.4]), TWO)
    undefined = {key for key, value in metrics.items() if value is None}
    assert undefined == {"precision", "overkill_rate", "auroc", "average_precision"}
    assert (metrics["recall"], metrics["f1"], metrics["escape_rate"]) == (0, 0, 1)


def test_constant_scores_rank_nothing():
    metrics = compute_metrics(two_class_table([1, 0, 0, 0], [0.3] * 4), TWO)
    assert (metrics["auroc"], metrics["average_precision"]) == (0.5, 0.25)
    assert (metrics["precision"], metrics["recall"], metrics["accuracy"]) == (None, 0, 0.75)


def test_a_class_without_images_is_undefined_and_outside_the_mean():
    metrics = compute_metrics(table([0, 1], [[0.8, 0.1, 0.1], [0.7, 0.2, 0.1]], THREE), THREE)
    assert metrics["per_class"]["hole"] == {"n": 0, "precision": None, "recall": None, "f1": None}
    assert metrics["per_class"]["crack"] == {"n": 1, "precision": None, "recall": 0, "f1": 0}
    assert metrics["recall_macro"] == 0.5
    assert metrics["precision_macro"] == 0.5
    assert metrics["f1_macro"] == pytest.approx((2 / 3 + 0) / 2)
    assert metrics["auroc"] == 1


def test_two_defective_classes_have_no_sound_side():
    classes = {"crack": True, "hole": True}
    metrics = compute_metrics(table([0, 1, 1], [[0.9, 0.1], [0.4, 0.6], [0.7, 0.3]], classes), classes)
    assert "defect" not in metrics and "escape_rate" not in metrics
    assert metrics["per_class"]["hole"]["recall"] == 0.5


@pytest.mark.parametrize("truth", [[], [1, 0, 0]])
def test_every_number_is_json_even_without_images_or_probabilities(truth):
    metrics = compute_metrics(two_class_table(truth, [np.nan] * len(truth)), TWO)
    assert (metrics["loss"], metrics["auroc"]) == (None, None)
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics


def test_certain_and_wrong_costs_much_but_not_infinitely():
    assert compute_metrics(two_class_table([1], [0.0]), TWO)["loss"] == pytest.approx(36.04, abs=0.01)
    assert str(compute_metrics(two_class_table([1], [1.0]), TWO)["loss"]) == "0.0"


def test_defect_counts_of_several_classes():
    counts = defect_counts([[1, 2, 4], [8, 16, 32], [64, 128, 256]], [False, False, True])
    assert counts == (64 + 128 + 256, 256, 1 + 2 + 4 + 8 + 16 + 32)


def test_of_folds_auroc_is_the_mean_within_as_scores_of_different_models_rank_nothing():
    """Each fold ranks its images without a fault, but the second's scores are all lower: pooled, they seem to err."""
    truth = [0, 0, 0, 1, 1, 0, 0, 0, 1, 1]
    score = np.array([0.5, 0.6, 0.7, 0.8, 0.9, 0.1, 0.2, 0.3, 0.4, 0.45])
    predictions = table(truth, np.column_stack([1 - score, score]), TWO)
    folded = predictions.assign(repeat=0, fold=[0] * 5 + [1] * 5)
    found = compute_metrics(folded, TWO)
    assert (found["auroc"], found["average_precision"]) == (1, 1)
    # by hand: of 24 pairs the two low defects lose to three sound parts each
    assert compute_metrics(predictions, TWO)["auroc"] == pytest.approx(18 / 24) == sk.roc_auc_score(truth, score)
    repeated = pd.concat([folded, folded.assign(repeat=1, fold=0)])  # the second repeat's one fold errs as above
    assert compute_metrics(repeated, TWO)["auroc"] == pytest.approx((1 + 1 + 18 / 24) / 3)
    one_kind = folded.assign(fold=[0] * 8 + [1] * 2)  # cannot state a number
    assert compute_metrics(one_kind, TWO)["auroc"] == pytest.approx(sk.roc_auc_score(truth[:8], score[:8]))


def test_of_folds_and_many_classes_each_number_is_the_mean_within():
    generator = np.random.default_rng(0)
    probabilities, truth = generator.dirichlet(np.ones(3), 90), generator.integers(3, size=90)
    predictions = table(truth, probabilities, THREE).assign(fold=np.arange(90) % 2)
    found, halves = compute_metrics(predictions, THREE), [slice(0, None, 2), slice(1, None, 2)]
    rest = [[sk.roc_auc_score(truth[half] == one, probabilities[half, one]) for half in halves] for one in range(3)]
    assert found["auroc"] == pytest.approx(np.mean(rest))
    sides = [sk.roc_auc_score(truth[half] > 0, 1 - probabilities[half, 0]) for half in halves]
    assert found["defect"]["auroc"] == pytest.approx(np.mean(sides))


# --- under weights ----------------------------------------------------------------------------------------------------

ONE = np.zeros(60, int)  # model that judged all images


@pytest.mark.parametrize("digits", [1, 8], ids=["ties", "no ties"])
@pytest.mark.parametrize("seed", range(5))
def test_weights_count_as_repeated_rows(digits, seed):
    generator = np.random.default_rng(seed)
    positive, scores = generator.random(60) < 0.3, generator.random(60).round(digits)
    answer = scores > 0.6
    weights = np.vstack([np.ones(60, int), generator.integers(0, 4, (20, 60))])
    ranked = ranking(positive, scores, ONE, weights.astype(float))
    shares = Share(answer & positive, answer | positive, f1=True), Share(answer, positive)
    f1, recall = (share.weighted(weights.astype(float)) for share in shares)
    for row, times in enumerate(weights):
        rows = np.repeat(np.arange(60), times)
        assert ranked["auroc"][row] == pytest.approx(sk.roc_auc_score(positive[rows], scores[rows]), abs=1e-12)
        expected = sk.average_precision_score(positive[rows], scores[rows])
        assert ranked["average_precision"][row] == pytest.approx(expected, abs=1e-12)
        assert f1[row] == pytest.approx(sk.f1_score(positive[rows], answer[rows]), abs=1e-12)
        assert recall[row] == pytest.approx(answer[rows][positive[rows]].mean(), abs=1e-12)


def test_ranking_is_undefined_where_a_resample_holds_one_kind():
    ranked = ranking(np.array([True, False]), np.array([0.9, 0.1]), ONE[:2], np.array([[1.0, 0], [0, 1], [1, 1]]))
    assert np.isnan(ranked["auroc"]).tolist() == np.isnan(ranked["average_precision"]).tolist() == [True, True, False]
    assert np.isnan(ranking(np.array([True, False]), np.array([np.nan, 0.1]), ONE[:2], np.ones((1, 2)))["auroc"])


def test_of_folds_the_mean_of_those_that_can_be_stated_is_taken():
    generator = np.random.default_rng(0)
    positive, scores, folds = generator.random(60) < 0.4, generator.random(60).round(1), np.arange(60) % 3
    weights = np.vstack([np.ones(60, int), generator.integers(0, 3, (20, 60)), (folds != 1) | positive])
    ranked = ranking(positive, scores, folds, weights.astype(float))
    for row, times in enumerate(weights):
        within = [np.repeat(np.arange(60), times * (folds == fold)) for fold in range(3)]
        assert len(set(positive[within[1]])) == (1 if row == 21 else 2)
        stated = [rows for rows in within if len(set(positive[rows])) == 2]
        for name, number in {"auroc": sk.roc_auc_score, "average_precision": sk.average_precision_score}.items():
            expected = [number(positive[rows], scores[rows]) for rows in stated]
            assert ranked[name][row] == pytest.approx(np.mean(expected), abs=1e-12)
