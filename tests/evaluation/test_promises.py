import numpy as np
import pytest
from scipy.stats import binomtest

from defectcls.evaluation.promises import images_needed, misjudged_first, upper_bound


def test_images_of_a_group_share_the_weight_of_one() -> None:
    """Three defects of one photo, the hardest ones, count as a third each; the others, of their own photos, as one."""
    scores = np.array([0.9, 0.8, 0.1, 0.2, 0.3, 0.99])
    photo = np.array([0, 1, 2, 2, 2, 3])
    hardest, misjudged, independent = misjudged_first(scores, photo, escapes=True)
    assert misjudged == pytest.approx([1 / 3, 2 / 3, 1, 2, 3, 4])
    assert (hardest.tolist(), independent) == ([0.1, 0.2, 0.3, 0.8, 0.9, 0.99], 4)
    assert misjudged_first(1 - scores, photo, escapes=False)[1] == pytest.approx(misjudged)


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
