import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from defectcls.evaluation import intervals
from defectcls.evaluation.intervals import bootstrap
from defectcls.evaluation.metrics import Share, ranking

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
        assert ranked["auroc"][row] == pytest.approx(roc_auc_score(positive[rows], scores[rows]), abs=1e-12)
        expected = average_precision_score(positive[rows], scores[rows])
        assert ranked["average_precision"][row] == pytest.approx(expected, abs=1e-12)
        assert f1[row] == pytest.approx(f1_score(positive[rows], answer[rows]), abs=1e-12)
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
        for name, number in {"auroc": roc_auc_score, "average_precision": average_precision_score}.items():
            expected = [number(positive[rows], scores[rows]) for rows in within if len(set(positive[rows])) == 2]
            assert ranked[name][row] == pytest.approx(np.mean(expected), abs=1e-12)


def test_resamples_hold_whole_groups_and_as_many_as_there_are(monkeypatch):
    monkeypatch.setattr(intervals, "CHUNK", 5 * 30)  # several parts, the last one smaller
    groups = np.array([0, 1, 1, 2, 2])
    drawn = bootstrap(groups, lambda weights: dict(enumerate(weights.T)), resamples=1000)
    weights = np.stack([drawn[image] for image in range(5)], axis=1)
    assert weights.shape == (1000, 5)
    assert (weights[:, 1] == weights[:, 2]).all() and (weights[:, 3] == weights[:, 4]).all()
    assert (weights[:, [0, 1, 3]].sum(axis=1) == 3).all()
    # of three groups one is left out with the probability (2/3)^3, and has a variance of 3 * 1/3 * 2/3
    assert (weights[:, 0] == 0).mean() == pytest.approx(8 / 27, abs=0.05)
    assert weights[:, 0].var() == pytest.approx(2 / 3, abs=0.1)
