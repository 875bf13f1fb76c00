import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from defectcls.errors import UserError
from defectcls.evaluation.decision import Decision, _Side, choose_decision, decide, images_needed, upper_bound
from defectcls.evaluation.metrics import compute_metrics
from defectcls.evaluation.predictions import predictions_table
from defectcls.settings import DecisionSettings

TWO = (["sound", "defective"], [False, True])


def settings(policy: str, **changes: Any) -> DecisionSettings:
    plain = {"target": 0.8, "escape_cost": 10, "overkill_cost": 1, "escape_rate": 0.1, "overkill_rate": 0.1}
    return DecisionSettings(policy=policy, **(plain | {"confidence": 0.95, "calibrate": False} | changes))


def table(sound: np.ndarray | list, defective: np.ndarray | list, group: list[str] | None = None) -> pd.DataFrame:
    scores = np.concatenate([sound, defective]).astype(float)
    truth = np.arange(len(scores)) >= len(sound)
    samples = pd.DataFrame({"path": np.arange(len(scores)).astype(str), "defective": truth})
    samples["label"] = np.where(truth, "defective", "sound")
    if group is not None:
        samples["group"] = group
    return predictions_table(samples, np.column_stack([1 - scores, scores]), *TWO)


def rates(decision: Decision, predictions: pd.DataFrame) -> tuple[float, float]:
    metrics = compute_metrics(decide(predictions, decision, *TWO), *TWO)
    return metrics["escape_rate"], metrics["overkill_rate"]


def test_argmax_takes_the_most_probable_class() -> None:
    predictions = table([0.1, 0.6], [0.4, 0.9])
    decision = choose_decision(settings("argmax"), predictions, *TWO)
    assert (decision.policy, decision.accept_below, decision.reject_from) == ("argmax", None, None)
    decided = decide(predictions, decision, *TWO)
    assert decided["prediction"].tolist() == ["sound", "defective", "sound", "defective"]
    assert decided["decision"].tolist() == ["accept", "reject", "accept", "reject"]


def test_f1_is_the_best_of_all_thresholds() -> None:
    generator = np.random.default_rng(0)
    predictions = table(generator.beta(2, 4, 60), generator.beta(3, 2, 40))
    decision = choose_decision(settings("f1"), predictions, *TWO)
    truth, scores = predictions["defective"].to_numpy(), predictions["score"].to_numpy()

    def f1(threshold: float) -> float:
        flagged = scores >= threshold
        return 2 * (flagged & truth).sum() / (flagged.sum() + truth.sum())

    assert decision.reject_from is not None
    assert f1(decision.reject_from) == max(map(f1, scores))


def test_cost_weighs_an_escape_against_false_rejects() -> None:
    # thresholds between the scores cost, from the lowest: 3 rejects; 2; 1; one escape and 1; one escape; two escapes
    predictions = table([0.1, 0.2, 0.6], [0.5, 0.9])
    dear = choose_decision(settings("cost", escape_cost=10), predictions, *TWO)
    assert dear.reject_from == pytest.approx((0.2 + 0.5) / 2)
    cheap = choose_decision(settings("cost", escape_cost=0.5), predictions, *TWO)
    assert cheap.reject_from == pytest.approx((0.6 + 0.9) / 2)
    assert (dear.evidence or {})["false_rejects"] == 1
    assert (cheap.evidence or {})["escapes"] == 1


def test_precision_is_reached_with_the_most_recall() -> None:
    predictions = table([0.1, 0.2, 0.55, 0.8], [0.3, 0.5, 0.6, 0.7, 0.9])
    # from 0.9 down: 1/1, 1/2, 2/3, 3/4, 3/5, 4/6, 5/7
    decision = choose_decision(settings("precision", target=0.75), predictions, *TWO)
    assert decision.reject_from == pytest.approx((0.55 + 0.6) / 2)
    beyond = choose_decision(settings("precision", target=0.7), predictions, *TWO)
    assert beyond.reject_from == pytest.approx((0.2 + 0.3) / 2)


@pytest.mark.parametrize(("misses", "count"), [(0, 59), (1, 93), (3, 200), (20, 21)])
def test_bound_is_the_exact_one(misses: int, count: int) -> None:
    exact = binomtest(misses, count, alternative="less").proportion_ci(0.95, method="exact").high
    assert upper_bound(misses, count, 0.95, grouped=False) == pytest.approx(exact, abs=1e-12)


def test_bound_of_groups_is_never_below_the_exact_one() -> None:
    for misses, count in [(0, 30), (2, 30), (10, 40)]:
        assert upper_bound(misses, count, 0.95, grouped=True) >= upper_bound(misses, count, 0.95, grouped=False) - 1e-9
    assert upper_bound(30, 30, 0.95, grouped=True) == 1
    assert upper_bound(0, 0, 0.95, grouped=True) == 1


@pytest.mark.parametrize(("rate", "needed"), [(0.05, 59), (0.01, 299), (0.5, 5)])  # 0.95^59 = 0.0485, 0.99^299 = 0.0495
def test_images_needed_for_a_promise(rate: float, needed: int) -> None:
    assert images_needed(rate, 0.95) == needed
    assert upper_bound(0, needed, 0.95, grouped=False) <= rate
    assert upper_bound(0, needed - 1, 0.95, grouped=False) > rate


def test_promise_allows_as_many_misses_as_the_bound() -> None:
    """93 images with one miss prove 5 %, with two they do not: the second lowest defect sets the threshold."""
    defects = np.linspace(0.3, 0.99, 93)
    decision = choose_decision(settings("recall", target=0.95), table([0.1, 0.305], defects), *TWO)
    assert decision.reject_from == pytest.approx((0.305 + defects[1]) / 2)
    (promise,) = decision.promises
    assert promise.kept
    assert promise.bound == pytest.approx(upper_bound(1, 93, 0.95, grouped=False))
    assert promise.bound <= 0.05 < upper_bound(2, 93, 0.95, grouped=False)
    assert (decision.evidence or {})["escapes"] == 1


def test_promise_that_cannot_be_kept_says_what_it_takes() -> None:
    decision = choose_decision(settings("recall", target=0.99), table([0.1, 0.2], [0.25, 0.8, 0.9]), *TWO)
    assert 0.2 < decision.reject_from < 0.2 + 1e-9  # not in the middle: the lowest that rejects no sound image
    (promise,) = decision.promises
    assert (promise.kept, promise.independent, promise.needed) == (False, 3, 299)
    assert promise.bound == pytest.approx(1 - 0.05 ** (1 / 3))
    overkill = choose_decision(settings("fpr", target=0.01), table([0.1, 0.2], [0.25, 0.8, 0.9]), *TWO)
    assert overkill.reject_from == 0.25  # the highest that lets no defective image through
    alone = choose_decision(settings("fpr", target=0.01), table([0.1, 0.2], []), *TWO)
    assert alone.reject_from == pytest.approx((0.2 + 1) / 2)  # no score says how far to go


def test_images_of_a_group_share_the_weight_of_one() -> None:
    """Three defects of one photo, the hardest ones, count as a third each; the others, of their own photos, as one."""
    scores = np.array([0.9, 0.8, 0.1, 0.2, 0.3, 0.99])
    photo = np.array([0, 1, 2, 2, 2, 3])
    side = _Side(scores, np.ones(6, bool), photo, -1)
    assert side.misjudged == pytest.approx([1 / 3, 2 / 3, 1, 2, 3, 4])
    assert (side.independent, side.grouped) == (4, True)
    assert _Side(1 - scores, np.zeros(6, bool), photo, 1).misjudged == pytest.approx(side.misjudged)


def test_false_positive_rate_is_promised_from_the_other_side() -> None:
    sound = np.linspace(0.01, 0.7, 93)
    decision = choose_decision(settings("fpr", target=0.05), table(sound, [0.695, 0.9]), *TWO)
    assert decision.reject_from == pytest.approx((sound[-2] + 0.695) / 2)  # only the highest sound one is rejected
    assert decision.promises[0].rate == "overkill_rate"
    assert decision.promises[0].kept


def test_review_lies_between_both_promises() -> None:
    sound, defective = np.linspace(0.01, 0.6, 93), np.linspace(0.4, 0.99, 93)
    predictions = table(sound, defective)
    decision = choose_decision(settings("review", escape_rate=0.05, overkill_rate=0.05), predictions, *TWO)
    assert decision.accept_below is not None and decision.reject_from is not None
    assert defective[0] < decision.accept_below <= defective[1] < sound[-2] < decision.reject_from <= sound[-1]
    decided = decide(predictions, decision, *TWO)
    assert set(decided["decision"]) == {"accept", "review", "reject"}
    metrics = compute_metrics(decided, *TWO)
    assert metrics["escape_rate"] == pytest.approx(1 / 93)
    assert metrics["overkill_rate"] == pytest.approx(1 / 93)
    assert metrics["recall"] == pytest.approx(92 / 93)  # a defect that goes to review is not let through
    assert metrics["review_rate"] == pytest.approx((decided["decision"] == "review").mean())


def test_review_is_empty_where_one_threshold_keeps_both_promises() -> None:
    predictions = table(np.linspace(0.01, 0.4, 60), np.linspace(0.6, 0.99, 60))
    decision = choose_decision(settings("review"), predictions, *TWO)
    assert decision.accept_below == decision.reject_from
    assert rates(decision, predictions) == (0, 0) or max(rates(decision, predictions)) <= 0.1


def test_score_decides_between_sound_and_defective_whatever_the_most_probable_class() -> None:
    names, defective = ["good", "dent", "hole"], [False, True, True]
    samples = pd.DataFrame({"path": list("abc"), "label": ["good", "dent", "hole"], "defective": [False, True, True]})
    predictions = predictions_table(
        samples, np.array([[0.4, 0.35, 0.25], [0.45, 0.3, 0.25], [0.9, 0, 0.1]]), names, defective
    )
    decided = decide(predictions, Decision("f1", 1.0, 0.5, 0.5), names, defective)
    assert decided["prediction"].tolist() == ["dent", "dent", "good"]
    assert decided["decision"].tolist() == ["reject", "reject", "accept"]


def test_temperature_is_fitted_and_applied() -> None:
    generator = np.random.default_rng(0)
    honest = generator.random(4000)
    truth = generator.random(4000) < honest
    sharp = honest**3 / (honest**3 + (1 - honest) ** 3)
    predictions = table(sharp[~truth], sharp[truth])
    decision = choose_decision(settings("argmax", calibrate=True), predictions, *TWO)
    assert decision.temperature == pytest.approx(3, rel=0.1)
    calibrated = decide(predictions, decision, *TWO)
    np.testing.assert_allclose(calibrated["score"], np.concatenate([honest[~truth], honest[truth]]), atol=0.03)
    assert compute_metrics(calibrated, *TWO)["loss"] < compute_metrics(predictions, *TWO)["loss"]


def test_decision_survives_json() -> None:
    decision = choose_decision(settings("review"), table([0.1, 0.7], [0.4, 0.9]), *TWO)
    assert Decision.from_plain(json.loads(json.dumps(decision.plain()))) == decision


def test_tied_scores_are_decided_alike_and_cautiously() -> None:
    predictions = table([0.5] * 100, [0.5] * 100)
    escape = choose_decision(settings("recall", target=0.9), predictions, *TWO)
    assert rates(escape, predictions) == (0, 1)
    overkill = choose_decision(settings("fpr", target=0.1), predictions, *TWO)
    assert rates(overkill, predictions) == (1, 0)
    adjacent = table([np.nextafter(0.5, 0)], [0.5])
    assert rates(choose_decision(settings("f1"), adjacent, *TWO), adjacent) == (0, 0)


def test_a_kind_that_is_missing() -> None:
    with pytest.raises(UserError, match="decision=f1 needs defective validation images, and there are none"):
        choose_decision(settings("f1"), table([0.1], []), *TWO)
    with pytest.raises(UserError, match="decision=recall needs sound validation images, and there are none"):
        choose_decision(settings("recall"), table([], [0.1]), *TWO)
    with pytest.raises(UserError, match="decision=fpr needs sound validation images, and there are none"):
        choose_decision(settings("fpr"), table([], [0.1]), *TWO)


def test_false_rejects_are_promised_without_defective_images() -> None:
    sound = np.linspace(0.01, 0.99, 99)
    with_defects = choose_decision(settings("fpr", target=0.1), table(sound, [0.995]), *TWO)
    alone = choose_decision(settings("fpr", target=0.1), table(sound, []), *TWO)
    assert alone.promises == with_defects.promises
    assert alone.promises[0].kept
    assert alone.reject_from == pytest.approx(with_defects.reject_from)
    assert alone.evidence == {"defective": 0, "sound": 99, "escapes": 0, "false_rejects": 4}
    assert choose_decision(settings("argmax", calibrate=True), table([0.2, 0.3], []), *TWO) == Decision("argmax")


def test_scores_that_are_no_numbers_leave_the_most_probable_class() -> None:
    assert choose_decision(settings("f1"), table([0.1, np.nan], [0.4]), *TWO).policy == "argmax"


@pytest.mark.slow
@pytest.mark.parametrize("target", [0.05, 0.2])
@pytest.mark.parametrize("grouped", [False, True])
def test_promised_rates_are_broken_no_more_often_than_stated(target: float, grouped: bool) -> None:
    """The true rates are known: of independent images from the score's distribution, of groups by drawing many."""
    generator = np.random.default_rng(1)
    trials, groups, size = 400, 150, 4 if grouped else 1

    def scores(count: int, mean: float) -> np.ndarray:
        each = generator.normal(mean, 1, (count, 1)) + generator.normal(0, 0.5, (count, size))
        return 1 / (1 + np.exp(-each.ravel()))

    names = np.repeat(np.arange(groups), size)
    group = [f"s{n}" for n in names] + [f"d{n}" for n in names]
    population = {mean: np.sort(scores(200_000, mean)) for mean in (-1, 1)}
    broken = np.zeros(2)
    for _ in range(trials):
        predictions = table(scores(groups, -1), scores(groups, 1), group)
        wanted = settings("review", escape_rate=target, overkill_rate=target)
        decision = choose_decision(wanted, predictions, *TWO)
        assert all(promise.kept and promise.grouped == grouped for promise in decision.promises)
        escape = np.searchsorted(population[1], decision.accept_below) / len(population[1])
        overkill = 1 - np.searchsorted(population[-1], decision.reject_from) / len(population[-1])
        broken += (escape > target, overkill > target)
    # 5 % of 400 trials are 20; three standard deviations more are 33
    assert (broken <= 33).all(), broken
    if not grouped:
        assert (broken >= 1).all(), "a bound that is never broken is no exact one"
