"""Whether photos still look like those measured: counts by hand and against scipy, and alarms counted in simulation."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from defectcls.evaluation.drift import ALARM, Drift, Window, beyond_from


def unlike(measured: np.ndarray, photos: np.ndarray) -> np.ndarray:
    """As a likeness tells it: how many measured ones are nearer, and half of the way to the next."""
    return (np.searchsorted(np.sort(measured), photos) + 0.5) / (len(measured) + 1)


def last(drift: Drift, values: np.ndarray, causes: tuple[str, ...] = ("",)) -> list[Window]:
    rows = pd.DataFrame({"path": np.arange(len(values)).astype(str), "unlike": values})
    return drift.windows(rows.assign(cause=np.resize(causes, len(values))))


@pytest.mark.parametrize(("measured", "nearer"), [(1, 1), (20, 20), (98, 98), (99, 99), (199, 198), (999, 990)])
def test_what_is_beyond_the_quantile(measured: int, nearer: int) -> None:
    """Of fewer than 99 photos it is beyond all; of 999 the chance to be beyond 990 is 1 %."""
    assert beyond_from(measured) == nearer / (measured + 1)


@pytest.mark.parametrize(("measured", "window", "beyond"), [(199, 40, 3), (20, 40, 5), (999, 500, 0), (30, 8, 8)])
def test_bounds_are_those_of_clopper_and_pearson_and_chance_is_beta_binomial(
    measured: int, window: int, beyond: int
) -> None:
    start = beyond_from(measured)
    values = np.r_[np.full(beyond, (start + 1) / 2), np.full(window - beyond, start / 2)]
    (found,) = last(Drift(measured, window), values, ("darker",) * beyond or ("",))
    exact = stats.binomtest(beyond, window).proportion_ci(0.95, "exact")
    assert (found.photos, found.beyond) == (window, beyond)
    assert (found.low, found.high) == pytest.approx((exact.low, exact.high), abs=1e-12)
    outside = (measured + 1) * (1 - start)
    wanted = stats.betabinom(window, outside, measured + 1 - outside).sf(beyond - 1)
    assert found.chance == pytest.approx(wanted, rel=1e-9)


def test_windows_by_hand() -> None:
    drift = Drift(99, 3)
    causes = ("darker", "", "blurred", "", "blurred", "blurred", "")
    values = np.array([0.2, np.nan, 0.5, 0.995, 0.999, 0.1, 0.3])
    first, second = last(drift, values, causes)
    assert (first.beyond, first.cause, first.since) == (1, "darker", "")  # one each, the first that came
    assert (second.photos, second.beyond, second.cause) == (3, 1, "blurred")
    assert drift.add(0.1, "", "") is None  # the next one begins


def test_a_change_is_found_where_it_began_and_is_over_when_it_is() -> None:
    measured, generator = np.arange(300.0), np.random.default_rng(1)
    before, after = (generator.uniform(0, 300, 250) for _ in range(2))
    photos = np.r_[before, 280 + generator.uniform(0, 100, 60), after[:140]]
    found = last(Drift(300, 50), unlike(measured, photos))
    assert [window.since != "" for window in found[:5]] == [False] * 5
    assert abs(int(found[5].since) - 250) <= 2
    assert found[5].beyond > 20
    assert found[-1].since == ""


def test_a_bet_is_worth_nothing_on_average() -> None:
    """All that a next photo can be, each as likely as the urn has it: what is won and lost is even, or less."""
    for seen in ([], [0.9, 0.95, 0.2], [0.1] * 30):
        gains, chances = [], np.ones(11)
        for value in seen:
            chances[int(value * 11)] += 1
        for nearer in range(11):
            drift = Drift(10, 10**9)
            for value in seen:
                drift.add(value, "", "")
            drift._evidence = 0.0
            drift.add((nearer + 0.5) / 11, "", "")
            gains.append(drift._evidence)
        mean = np.average(gains, weights=chances)
        assert mean == pytest.approx(1) if np.mean(seen or [1]) > 0.5 else mean < 1


def alarms(measured: int, windows: int, size: int, runs: int) -> int:
    """How many windows of an unchanged line tell of a change."""
    generator, count = np.random.default_rng(measured), 0
    for _ in range(runs):
        values = unlike(generator.normal(size=measured), generator.normal(size=windows * size))
        count += sum(window.since != "" for window in last(Drift(measured, size), values))
    return count


def test_a_line_that_does_not_change_is_silent() -> None:
    assert alarms(100, windows=100, size=20, runs=5) == 0


@pytest.mark.slow
@pytest.mark.parametrize("measured", [20, 100, 300, 1000])
def test_false_alarms_are_at_most_one_in_a_thousand_windows(measured: int) -> None:
    """Runs of 100 windows, each with photos measured anew: 20,000 windows of 50 photos."""
    assert alarms(measured, windows=100, size=50, runs=200) <= 20_000 / ALARM
