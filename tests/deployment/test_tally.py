"""What is kept of many predictions, against sorting them all."""

import numpy as np
import pandas as pd

from defectcls.deployment.tally import HELD, LISTED, Tally


def batch(scores: np.ndarray, first: int) -> pd.DataFrame:
    names = [str(first + number) for number in range(len(scores))]
    bad = np.isnan(scores)
    decision = np.where(bad, "", np.where(scores > 0.5, "reject", "accept"))
    return pd.DataFrame(
        {"path": names, "decision": decision, "prediction": "x", "score": scores, "error": np.where(bad, "broken", "")}
    )


def test_a_tally_keeps_the_worst_of_any_number_and_few_others() -> None:
    scores = np.random.default_rng(0).integers(0, 50, 40_000) / 50  # many ties
    scores[::100] = np.nan
    tally, most = Tally(70), 0
    for first in range(0, len(scores), 64):
        tally.add(batch(scores[first : first + 64], first))
        most = max(most, sum(map(len, tally._held)))
    order = np.argsort(-np.where(np.isnan(scores), -1, scores), kind="stable")[:70]
    assert tally.shown["path"].tolist() == [str(number) for number in order]
    assert most <= 2 * 70 + HELD
    assert tally.unreadable["path"].tolist() == [str(100 * number) for number in range(LISTED)]
    rejected = int((scores > 0.5).sum())
    assert tally.counts == {
        **{"images": 40_000, "read": 39_600, "unreadable": 400},
        **{"accept": 39_600 - rejected, "review": 0, "reject": rejected},
    }


def test_a_tally_of_nothing_shows_nothing() -> None:
    assert Tally(5).shown.empty
    assert {"path", "decision", "prediction", "score"} <= set(Tally(5).shown.columns)
