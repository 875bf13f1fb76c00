import pytest
from scipy.stats import binomtest

from defectcls.evaluation.promises import images_needed, upper_bound


@pytest.mark.parametrize(("misses", "count"), [(0, 59), (1, 93), (3, 200), (20, 21)])
def test_bound_is_the_exact_one(misses: int, count: int) -> None:
    exact = binomtest(misses, count, alternative="less").proportion_ci(0.95, method="exact").high
    assert upper_bound(misses, count, 0.95) == pytest.approx(exact, abs=1e-12)


def test_nothing_is_known_where_there_is_no_image_or_all_are_misjudged() -> None:
    assert upper_bound(30, 30, 0.95) == upper_bound(0, 0, 0.95) == 1


@pytest.mark.parametrize(("rate", "needed"), [(0.05, 59), (0.01, 299), (0.5, 5)])  # 0.95^59 = 0.0485, 0.99^299 = 0.0495
def test_images_needed_for_a_promise(rate: float, needed: int) -> None:
    assert images_needed(rate, 0.95) == needed
    assert upper_bound(0, needed, 0.95) <= rate
    assert upper_bound(0, needed - 1, 0.95) > rate
