import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from defectcls.evaluation.intervals import kappa


def test_kappa_and_its_interval_by_hand() -> None:
    """Of 50 photos 35 are alike: 20 yes and 15 no; chance 0.5 * 0.6 + 0.5 * 0.4 = 0.5, so (0.7 - 0.5) / 0.5."""
    first = np.array(["yes"] * 25 + ["no"] * 25)
    second = np.array(["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15)
    value, (low, high) = kappa(first, second)
    assert value == pytest.approx(0.4)
    # mid-p interval of 35 of 50, from tables: 0.5636 to 0.8136
    assert (low, high) == pytest.approx((2 * 0.5636 - 1, 2 * 0.8136 - 1), abs=2e-3)


def test_kappa_is_that_of_scikit_learn() -> None:
    drawn = np.random.default_rng(0)
    for classes, size in ((2, 40), (4, 200), (9, 1000)):
        first = drawn.integers(classes, size=size).astype(str)
        second = np.where(drawn.random(size) < 0.7, first, drawn.integers(classes, size=size).astype(str))
        assert kappa(first, second)[0] == pytest.approx(cohen_kappa_score(first, second))


def test_who_agrees_on_all_of_a_few_has_no_certainty() -> None:
    labels = np.array(["a", "b", "a", "b"])
    value, (low, high) = kappa(labels, labels)
    assert value == high == 1
    assert low == pytest.approx(2 * 0.05 ** (1 / 4) - 1)  # the rule of three
    for none in (labels[:0], labels[[0, 2]]):
        assert np.isnan([kappa(none, none)[0], *kappa(none, none)[1]]).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "share", "wrong"), [(20, 0.5, 0.1), (50, 0.2, 0.02), (100, 0.05, 0.1), (300, 0.2, 0.1)]
)
def test_the_interval_covers_the_truth(size: int, share: float, wrong: float) -> None:
    """Two people who each err on so many photos: simulated, against the kappa that the chances have."""
    says = np.array([[1 - wrong, wrong], [wrong, 1 - wrong]])  # of a sound and of a defective photo
    joint = sum(part * np.outer(one, one) for part, one in zip((1 - share, share), says, strict=True))
    alike, chance = np.trace(joint), joint.sum(0) @ joint.sum(1)
    drawn, covered = np.random.default_rng(1), []
    for _ in range(1000):
        both = drawn.choice(4, size, p=joint.ravel())
        low, high = kappa(both // 2, both % 2)[1]
        covered.append(np.isnan(low) or low <= (alike - chance) / (1 - chance) <= high)
    assert 0.93 <= np.mean(covered) <= 1
