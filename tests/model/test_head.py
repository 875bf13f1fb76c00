"""The probe against scikit-learn on the same data."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import expit, softmax
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from defectcls.errors import UserError
from defectcls.evaluation.calibration import calibrated_loss
from defectcls.model import head as heads
from defectcls.model.head import Head, fit_members, fit_probe

Part = tuple[np.ndarray, np.ndarray]


def blobs(classes: int, count: int = 150, features: int = 8, seed: int = 0) -> Part:
    """Overlapping classes; every feature has its own mean and spread."""
    rng = np.random.default_rng(seed)
    targets = np.arange(count) % classes
    centres = np.random.default_rng(99).normal(0, 1, (classes, features))
    scales = np.logspace(-0.3, 0.3, features)
    return ((centres[targets] + rng.normal(0, 1.5, (count, features))) * scales + 5 * scales).astype(
        np.float32
    ), targets


def reference(train: Part, c: float, class_weights: list[float] | None) -> tuple[StandardScaler, LogisticRegression]:
    scaler = StandardScaler().fit(train[0].astype(np.float64))
    weights = None if class_weights is None else dict(enumerate(class_weights))
    model = LogisticRegression(C=c, class_weight=weights, max_iter=1000)
    return scaler, model.fit(scaler.transform(train[0]), train[1])


@pytest.mark.parametrize("class_weights", [None, "balanced"])
@pytest.mark.parametrize("classes", [2, 3, 5])
def test_probabilities_are_scikit_learns(classes: int, class_weights: str | None) -> None:
    train, val = blobs(classes), blobs(classes, seed=1)
    weights = [1.0 + 2 * number for number in range(classes)] if class_weights else None
    scaler, model = reference(train, 0.1, weights)
    head = fit_probe(train, val, [0.1], weights)
    expected = model.predict_proba(scaler.transform(val[0]))
    assert softmax(head.logits(val[0]), axis=1) == pytest.approx(expected, abs=2e-3)


def test_two_classes_are_a_sigmoid_shared_by_two_logits() -> None:
    train = blobs(2)
    scaler, model = reference(train, 0.1, None)
    head = fit_probe(train, train, [0.1], None)
    logits = head.logits(train[0])
    assert logits[:, 0] == pytest.approx(-logits[:, 1])
    assert softmax(logits, axis=1)[:, 1] == pytest.approx(
        expit(model.decision_function(scaler.transform(train[0]))), abs=2e-3
    )
    assert (logits.argmax(1) == train[1]).mean() > 0.7


def test_standardisation_is_folded_into_the_head() -> None:
    """The same features in other units give the same logits."""
    train, val = blobs(3), blobs(3, seed=1)
    plain = fit_probe(train, val, [0.01], None)
    moved = fit_probe((train[0] * 7 + 3, train[1]), (val[0] * 7 + 3, val[1]), [0.01], None)
    assert moved.logits(val[0] * 7 + 3) == pytest.approx(plain.logits(val[0]), abs=5e-3)
    assert plain.mean == pytest.approx(train[0].mean(0), rel=1e-4)
    assert plain.logits(val[0]) == pytest.approx((val[0] - plain.mean) / plain.std @ plain.weight.T + plain.bias)


def test_features_that_never_change_say_nothing_and_blow_nothing_up() -> None:
    """Dead ReLU channels: constant in training, and a little alive in validation."""
    train, val = blobs(2), blobs(2, seed=1)
    without = fit_probe(train, val, [0.1], None)

    def with_dead(part: Part, value: float) -> Part:
        dead = np.full((len(part[0]), 3), value, np.float32)
        return np.concatenate([part[0], dead], 1), part[1]

    head = fit_probe(with_dead(train, 0.0), with_dead(val, 0.0), [0.1], None)
    assert all(np.isfinite(value).all() for value in head[:4])
    assert (head.std > 0).all()
    alive = head.logits(with_dead(val, 0.01)[0])
    assert np.isfinite(alive).all()
    assert np.abs(alive - without.logits(val[0])).max() < 1


def test_features_of_which_not_one_moves_give_the_same_answer_for_all() -> None:
    part = np.full((20, 4), 7, np.float32), np.arange(20) % 2
    logits = fit_probe(part, part, [0.1], None).logits(part[0])
    assert logits == pytest.approx(np.zeros((20, 2)), abs=1e-4)


def test_views_share_the_weight_of_one_image() -> None:
    """Three equal copies of every image say no more than the image, also against the penalty."""
    train, val = blobs(3), blobs(3, seed=1)
    once = fit_probe(train, val, [0.01], None)
    thrice = fit_probe((np.tile(train[0], (3, 1)), np.tile(train[1], 3)), val, [0.01], None, views=2)
    assert thrice.logits(val[0]) == pytest.approx(once.logits(val[0]), abs=5e-3)
    assert thrice.c == 0.01


def test_the_penalty_is_chosen_by_what_chooses_the_checkpoint() -> None:
    train, val = blobs(3, count=60, features=30), blobs(3, count=300, features=30, seed=1)
    candidates = [1e-4, 1e-3, 1e-2, 1e-1, 1.0, 100.0]
    losses = {}
    for c in candidates:
        probabilities = softmax(fit_probe(train, val, [c], None).logits(val[0]), axis=1)
        losses[c] = calibrated_loss(probabilities.astype(np.float64), val[1])
    best = min(losses, key=losses.__getitem__)
    assert best not in (candidates[0], candidates[-1])  # else the data would not tell
    assert fit_probe(train, val, candidates, None).c == best
    assert fit_probe(train, val, candidates[::-1], None).c == best
    assert fit_probe(train, train, candidates, None).c == 100.0  # judged on training data, no penalty is best
    nobody = val[0], np.zeros(len(val[0]), int) + 1  # of one class: by the loss as it is
    assert fit_probe(train, nobody, candidates, None).c in candidates


def test_of_penalties_that_do_equally_well_the_strongest_is_taken() -> None:
    """Of one feature every penalty gives the same scores but for their scale, which is fitted anyway."""
    train, val = blobs(2, features=1), blobs(2, features=1, seed=1)
    losses = [
        calibrated_loss(softmax(fit_probe(train, val, [c], None).logits(val[0]).astype(float), axis=1), val[1])
        for c in (0.001, 1.0)
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-9)


def test_a_class_that_validation_lacks_is_no_obstacle() -> None:
    train, val = blobs(3), blobs(3, seed=1)
    some = val[1] != 2
    assert fit_probe(train, (val[0][some], val[1][some]), [0.01, 0.1], None).weight.shape == (3, 8)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_features_that_are_not_finite_are_an_error_with_a_way_out(value: float) -> None:
    features, targets = blobs(2)
    features[3, 2] = value
    with pytest.raises(UserError, match=r"features are not finite: try trainer.precision=32"):
        fit_probe((features, targets), blobs(2), [0.1], None)


@pytest.mark.parametrize("class_weights", [None, [1.0, 4.0, 2.0]])
@pytest.mark.parametrize("classes", [2, 3])
def test_fewer_images_than_features_are_solved_in_their_own_space(
    classes: int, class_weights: list[float] | None
) -> None:
    train, val = blobs(classes, count=60, features=200), blobs(classes, features=200, seed=1)
    weights = None if class_weights is None else class_weights[:classes]
    for c in (0.001, 0.1, 1):
        scaler, model = reference(train, c, weights)
        head = fit_probe(train, val, [c], weights)
        assert head.weight.shape == (classes, 200)
        expected = model.predict_proba(scaler.transform(val[0]))
        assert softmax(head.logits(val[0]), axis=1) == pytest.approx(expected, abs=5e-3)


# --- members ----------------------------------------------------------------------------------------------------------


def photos(defects: int, views: int = 0) -> tuple[Part, np.ndarray]:
    """Features whose first is the number of the image, of copies too; 40 images in five folds, the last are defects."""
    targets = (np.arange(40) >= 40 - defects).astype(np.int64)
    noise = np.random.default_rng(0).normal(size=(40 * (1 + views), 3))
    features = np.column_stack([np.tile(np.arange(40), 1 + views), noise]).astype(np.float32)
    return (features, np.tile(targets, 1 + views)), np.arange(40) // 2 % 5


@pytest.mark.parametrize("views", [0, 2])
@pytest.mark.parametrize("defects", [2, 3, 9])
def test_no_member_has_seen_what_it_judges(defects: int, views: int, monkeypatch: pytest.MonkeyPatch) -> None:
    (features, targets), folds = photos(defects, views)
    solve, seen = heads._solve, []

    def recorded(features: np.ndarray, targets: np.ndarray, *options: Any) -> Any:
        assert options == ([0.1], [1.0, 3.0], views)
        assert set(targets) == {0, 1}
        seen.append(features[:, 0])
        return solve(features, targets, *options)

    monkeypatch.setattr(heads, "_solve", recorded)
    members, logits = fit_members((features, targets), features[:40], folds, [0.1], [1.0, 3.0], views)
    alone = [38, 39] if defects == 2 else []  # all defects there are, in one fold: its member has to learn from them
    assert np.isnan(logits).any(1).nonzero()[0].tolist() == alone
    for fold, images in enumerate(seen):
        kept = np.flatnonzero((folds != fold) | np.isin(np.arange(40), alone))
        assert images.tolist() == np.tile(kept, 1 + views).tolist()  # each with all of its copies
        judged = (folds == fold) & ~np.isin(np.arange(40), alone)
        assert logits[judged] == pytest.approx(members[fold].logits(features[:40][judged]))
    assert len(members) == len(seen) == 5


def test_members_are_scikit_learns_probes_of_the_other_folds() -> None:
    (features, targets), folds = blobs(3), np.arange(150) // 7 % 5
    weights = [1.0, 2.0, 3.0]
    tested = features + np.float32(0.1)
    _, logits = fit_members((features, targets), tested, folds, [0.1], weights)
    for fold in range(5):
        own = folds == fold
        scaler, model = reference((features[~own], targets[~own]), 0.1, weights)
        expected = model.predict_proba(scaler.transform(tested[own]))
        assert softmax(logits[own], axis=1) == pytest.approx(expected, abs=2e-3)


def test_a_member_does_not_know_the_labels_nor_the_features_of_its_fold() -> None:
    (features, targets), folds = blobs(2), np.arange(150) % 5
    members, _ = fit_members((features, targets), features, folds, [0.1], None)
    own = folds == 3
    others = np.where(own[:, None], features.max() + 1 - features, features), np.where(own, 1 - targets, targets)
    changed, _ = fit_members(others, others[0], folds, [0.1], None)
    same = [all(np.array_equal(a, b) for a, b in zip(*two, strict=True)) for two in zip(members, changed, strict=True)]
    assert same == [False, False, False, True, False]


def test_members_have_one_penalty_the_best_for_all_images_out_of_fold() -> None:
    """Fold 0 has the labels that a member with the weakest penalty gives it, which others would not choose."""
    features, targets = blobs(2, count=200, features=60)
    folds, candidates = np.arange(200) // 2 % 5, [1e-4, 1e-3, 1e-1, 10.0]
    others = features[folds != 0], targets[folds != 0]
    targets = np.where(folds == 0, fit_probe(others, others, [10.0], None).logits(features).argmax(1), targets)
    members, logits = fit_members((features, targets), features, folds, candidates, None)
    said = np.stack([fit_members((features, targets), features, folds, [c], None)[1] for c in candidates])

    def best(judging: np.ndarray) -> int:
        losses = [calibrated_loss(softmax(one[judging], axis=1), targets[judging]) for one in said]
        return losses.index(min(losses))

    assert len({best(folds != fold) for fold in range(5)}) > 1  # else the data would not tell
    assert {member.c for member in members} == {candidates[best(folds >= 0)]}
    assert np.array_equal(logits, said[best(folds >= 0)])


def test_members_rank_as_probes_of_all_other_images_do() -> None:
    rng = np.random.default_rng(1)
    targets = (np.arange(100) >= 60).astype(np.int64)
    features = (rng.normal(size=(100, 4)) + targets[:, None]).astype(np.float32)
    _, logits = fit_members((features, targets), features, np.arange(100) % 5, [0.1], None)
    found, alone = logits[:, 1] - logits[:, 0], np.empty(100)
    for image in range(100):
        kept = np.arange(100) != image
        seen = features[kept], targets[kept]
        alone[image] = np.diff(fit_probe(seen, seen, [0.1], None).logits(features[image : image + 1]))[0, 0]
    assert np.corrcoef(found, alone)[0, 1] > 0.97
    whole = np.diff(fit_probe((features, targets), (features, targets), [0.1], None).logits(features))[:, 0]
    gap = found[targets == 1].mean() - found[targets == 0].mean()
    assert gap < whole[targets == 1].mean() - whole[targets == 0].mean()  # what it has seen it knows better


def test_a_head_gives_the_logits_of_each_of_its_members() -> None:
    (features, targets), folds = blobs(3), np.arange(150) % 5
    members, logits = fit_members((features, targets), features, folds, [0.1], None)
    head = Head(8, 3, 5).eval()
    head.load(*members)
    with torch.no_grad():
        found = head(torch.from_numpy(features)).unflatten(1, (5, 3)).numpy()
    for number, member in enumerate(members):
        assert found[:, number] == pytest.approx(member.logits(features), abs=1e-4)
    assert found[np.arange(150), folds] == pytest.approx(logits, abs=1e-4)
    alone = Head(8, 3).eval()
    alone.load(members[1])
    assert alone.mean.numpy() == pytest.approx(members[1].mean)
    with torch.no_grad():
        assert alone(torch.from_numpy(features)).numpy() == pytest.approx(found[:, 1], abs=1e-4)


def test_the_member_of_an_empty_fold_has_seen_all() -> None:
    (features, targets), folds = blobs(2), np.arange(150) % 3
    members, logits = fit_members((features, targets), features, folds, [0.1], None)
    assert np.isfinite(logits).all()
    expected = fit_probe((features, targets), (features, targets), [0.1], None)
    for member in members[3:]:
        assert member.logits(features) == pytest.approx(expected.logits(features))
    assert len(members) == 5
