import hashlib

import numpy as np
import pytest
from scipy.stats import binom

from defectcls.evaluation.audited import chances, drawn, share_interval
from defectcls.evaluation.intervals import proportion_interval


def test_the_nearer_to_the_threshold_the_likelier():
    assert chances(np.array([0, 0.1, 0.2]), 0.2, 0.02) == pytest.approx([0.02, 0.11, 0.2])
    assert chances(np.array([0.1, 0.2]), 0.2, 0.5) == pytest.approx([1, 1])
    assert chances(np.array([0.1, 0.4]), None, 0.02) == pytest.approx([0.02, 0.02])


def test_a_digest_is_drawn_by_its_first_digits():
    photos = ["00000000ff", "7fffffff00", "8000000000", "ffffffff00"]
    assert drawn(photos, np.array([0.5, 0.5, 0.5, 1.0])).tolist() == [True, True, False, True]
    many = [hashlib.blake2b(bytes([n % 256, n // 256]), digest_size=16).hexdigest() for n in range(10_000)]
    assert abs(drawn(many, np.full(10_000, 0.02)).sum() - 200) < 5 * np.sqrt(200)


@pytest.mark.parametrize(("hits", "size"), [(0, 300), (1, 300), (7, 40), (40, 40)])
def test_of_equal_chances_the_interval_is_that_of_a_share(hits, size):
    share, limits = share_interval(np.full(hits, 50.0), 50.0, size - hits, 50.0)
    assert share == pytest.approx(hits / size)
    assert limits == pytest.approx(proportion_interval(np.arange(size) < hits), abs=1e-9)
    if 0 < hits < size:
        low, high = limits
        assert binom.cdf(hits - 1, size, high) + binom.pmf(hits, size, high) / 2 == pytest.approx(0.025)
        assert binom.sf(hits, size, low) + binom.pmf(hits, size, low) / 2 == pytest.approx(0.025)


def test_none_of_300_is_at_most_one_in_a_hundred():
    share, (low, high) = share_interval(np.array([]), 50.0, 300, 50.0)
    assert (share, low) == (0, 0) and 0.0099 < high < 0.01
    # 300 photos of which half are drawn ten times as often: as if the 165 of full weight were all.
    _, (_, unequal) = share_interval(np.array([]), 50.0, 300, 27.5)
    assert unequal == pytest.approx(1 - 0.05 ** (1 / 165), rel=0.02)


def test_no_photo_tells_nothing():
    share, limits = share_interval(np.array([]), 1.0, 0)
    assert np.isnan([share, *limits]).all()
