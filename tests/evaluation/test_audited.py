import hashlib

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binom

from defectcls.evaluation.audited import audit, chances, drawn
from defectcls.evaluation.intervals import proportion_interval, share_interval


def test_the_nearer_to_the_threshold_the_likelier():
    assert chances(np.array([0, 0.1, 0.2]), 0.2, 0.02) == pytest.approx([0.02, 0.11, 0.2])
    assert chances(np.array([0.1, 0.2]), 0.2, 0.5) == pytest.approx([1, 1])
    assert chances(np.array([0.1, 0.4]), None, 0.02) == pytest.approx([0.02, 0.02])


def test_a_digest_is_drawn_by_its_first_digits():
    photos = ["00000000ff", "7fffffff00", "8000000000", "ffffffff00"]
    assert drawn(photos, np.array([0.5, 0.5, 0.5, 1.0])).tolist() == [True, True, False, True]
    many = [hashlib.blake2b(bytes([n % 256, n // 256]), digest_size=16).hexdigest() for n in range(10_000)]
    assert abs(drawn(many, np.full(10_000, 0.02)).sum() - 200) < 5 * np.sqrt(200)


def interval(hits: int, misses: int, weight: float = 50.0, heaviest: float = 50.0) -> tuple[float, float]:
    return share_interval(hits * weight, hits * weight**2, heaviest, misses, weight)


@pytest.mark.parametrize(("hits", "size"), [(0, 300), (1, 300), (7, 40), (40, 40)])
def test_of_equal_chances_the_interval_is_that_of_a_share(hits, size):
    low, high = interval(hits, size - hits)
    assert (low, high) == pytest.approx(proportion_interval(np.arange(size) < hits), abs=1e-9)
    if 0 < hits < size:
        assert binom.cdf(hits - 1, size, high) + binom.pmf(hits, size, high) / 2 == pytest.approx(0.025)
        assert binom.sf(hits, size, low) + binom.pmf(hits, size, low) / 2 == pytest.approx(0.025)


def test_none_of_300_is_at_most_one_in_a_hundred():
    low, high = interval(0, 300)
    assert low == 0 and 0.0099 < high < 0.01
    # 300 photos of which half are drawn ten times as often: as if the 165 of full weight were all.
    _, unequal = interval(0, 300, 27.5)
    assert unequal == pytest.approx(1 - 0.05 ** (1 / 165), rel=0.02)


def test_a_light_escape_does_not_hide_a_heavy_one():
    """One was found near the threshold, where ten times as many are looked at as elsewhere, of 200 photos each."""
    _, high = share_interval(5, 25, 50, 399, 27.5)
    assert high > interval(0, 200)[1] / 2  # what 200 of weight 50 leave open, among twice as many


def test_no_photo_tells_nothing():
    assert np.isnan(interval(0, 0)).all()


def decided(accepted: int, rejected: int) -> pd.DataFrame:
    """Photos, none of which was looked at; the scores of the accepted rise to the threshold, 0.2."""
    photos = [
        hashlib.blake2b(bytes([n % 256, n // 256]), digest_size=16).hexdigest() for n in range(accepted + rejected)
    ]
    scores = [*np.linspace(0, 0.2, accepted), *np.full(rejected, 0.9)]
    kinds = ["accept"] * accepted + ["reject"] * rejected
    return pd.DataFrame({"photo": photos, "decision": kinds, "score": scores, "defective": None, "chance": np.nan})


def test_audited_photos_weigh_the_inverse_of_their_chance():
    table = decided(1000, 20)
    seen = [*range(0, 500, 5), *range(500, 1000, 2), *range(1000, 1010)]
    table.loc[seen, "defective"] = False
    table.loc[[0, 500, *range(1000, 1008)], "defective"] = True
    table["score"] = np.nan
    table.loc[[*range(0, 500, 5)], "chance"], table.loc[[*range(500, 1000, 2)], "chance"] = 0.2, 0.5
    found, plan = audit(table, 0.2, 0.01, None)
    assert (found["accepted"], found["looked_at"], found["escapes"]) == (1000, 350, 2)
    assert found["share"] == pytest.approx((5 + 2) / 1000)
    assert found["caught"] == pytest.approx(16)  # 8 of the 10 that were looked at, of 20
    assert found["escape_rate"] == pytest.approx(7 / 23)
    low, high = found["escape_rate_interval"]
    assert 0 < low < 7 / 23 < high < 1
    assert found["more"] > len(plan) == 650 and not set(plan.index) & set(seen)  # there are no others
    # Two in three of 3 % promised would be 0.05 % of the accepted, and 0.7 % were found.
    assert audit(table, 0.2, 0.01, 0.03)[0]["more"] is None
    table.loc[1000:, "defective"] = None
    assert audit(table, 0.2, 0.01, None)[0]["escape_rate"] is None


def test_so_many_more_as_it_says_are_enough_and_hardly_more_than_enough():
    table = decided(8000, 0)
    taken = drawn(table["photo"], chances(table["score"].to_numpy(), 0.2, 0.02))
    table.loc[taken, "defective"] = False
    table.loc[taken, "chance"] = chances(table["score"].to_numpy(), 0.2, 0.02)[taken]
    found, plan = audit(table, 0.2, 0.01, None)
    assert found["more"] == len(plan) > 0 and found["share_interval"][1] > 0.01
    # Those that stand in the plan are those that a larger share would have drawn too.
    share = (plan["chance"] / (1 + 9 * table["score"][plan.index] / 0.2)).max()
    now = drawn(table["photo"], chances(table["score"].to_numpy(), 0.2, share * (1 + 1e-9)))
    assert set(plan.index) == set(table.index[now]) - set(table.index[taken])
    for rows in (plan, plan[: len(plan) // 2]):
        table.loc[rows.index, "defective"], table.loc[rows.index, "chance"] = False, rows["chance"]
        both = audit(table, 0.2, 0.01, None)[0]
        assert both["more"] == pytest.approx(len(plan) - len(rows), abs=len(plan) // 10)
        table.loc[rows.index, "defective"], table.loc[rows.index, "chance"] = None, np.nan


def test_the_first_audit_is_planned_too():
    table = decided(8000, 0)
    found, plan = audit(table, None, 0.01, None)
    assert (found["more"], len(plan), found["share"]) == (299, 299, None)
    assert plan["chance"].to_numpy() == pytest.approx(299 / 8000, rel=0.2)


@pytest.mark.slow
@pytest.mark.parametrize(
    "risk",
    [lambda s: s / 2, lambda s: 0 * s + 0.02, lambda s: np.where(s < 0.02, 0.03, 0)],
    ids=["near", "even", "far"],
)
def test_intervals_cover_the_escape_rate_of_the_process(risk):
    """Shifts of 20,000 accepted photos, of which 2 % and more near the threshold are looked at, and of 2 % caught."""
    generator, covered, shifts, caught = np.random.default_rng(0), np.zeros(2), 800, 0.02
    every = generator.beta(0.5, 8, 4_000_000)
    share = risk(every[every < 0.2]).mean()
    for _ in range(shifts):
        scores = generator.beta(0.5, 8, 40_000)
        scores = scores[scores < 0.2][:20_000]
        chance, defective = chances(scores, 0.2, 0.02), generator.random(20_000) < risk(scores)
        seen, defects = generator.random(20_000) < chance, generator.poisson(caught * 20_000)
        rows = {"photo": ["00000000"] * (20_000 + defects), "score": np.r_[scores, np.full(defects, 0.9)]}
        rows["decision"] = ["accept"] * 20_000 + ["reject"] * defects
        rows["chance"] = np.r_[np.where(seen, chance, np.nan), np.full(defects, np.nan)]
        rows["defective"] = np.r_[np.where(seen, defective.astype(object), None), np.full(defects, True, object)]
        found, _ = audit(pd.DataFrame(rows), 0.2, 0.01, None)
        for n, (name, truth) in enumerate([("share", share), ("escape_rate", share / (share + caught))]):
            low, high = found[f"{name}_interval"]
            covered[n] += low <= truth <= high
    assert ((covered >= 0.93 * shifts) & (covered <= 0.97 * shifts)).all(), covered / shifts
