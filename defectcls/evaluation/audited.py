"""The escape rate as it is now: people look at some of what was accepted, each photo drawn with a known chance.

A photo weighs the inverse of its chance. Where none is found, each photo counts as the rarest drawn would, and the
interval of n photos of equal chances ends at 1 - 0.05^(1/n).
"""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import brentq

from defectcls.evaluation.intervals import share_interval
from defectcls.evaluation.metrics import plain
from defectcls.evaluation.predictions import ACCEPT

NEAR = 10  # times as often as any other a photo is drawn whose score is at the threshold


def chances(score: np.ndarray, accept_below: float | None, share: float) -> np.ndarray:
    """The chance of each accepted photo to be audited, float64 (photos,): `share`, and more near the threshold.

    Args:
        score: calibrated probability of being defective, 0 to 1 (photos,).
        accept_below: the threshold; None, where there is none, draws uniformly.
        share: 0 to 1.
    """
    score = np.asarray(score, np.float64)
    near = np.clip(score / accept_below, 0, 1) if accept_below else 0 * score
    return np.minimum(1, share * (1 + (NEAR - 1) * near))


def places(photos: Iterable[str]) -> np.ndarray:
    """Where each digest lies between 0 and 1, float64 (photos,): its first 8 hexadecimal digits, as good as random."""
    return np.array([int(photo[:8], 16) for photo in photos], np.float64) / 2**32


def drawn(photos: Iterable[str], chances: np.ndarray) -> np.ndarray:
    """Which photos are audited, bool (photos,): by the digest alone, so that every process draws the same ones."""
    return places(photos) < chances


def audit(
    decided: pd.DataFrame, accept_below: float | None, at_most: float, promised: float | None
) -> tuple[dict[str, Any], pd.DataFrame]:
    """What audited photos tell of all, for audited.json, and which to look at next.

    Args:
        decided: a row a photo: `photo`, its digest, `decision`, `score`; and where somebody has looked at it whether it
            is `defective`, None where not, and the `chance` with which it was drawn, NaN of what was not.
        at_most: share of the accepted that may be defective.
        promised: share of the defects that may be let through; where it is known how many are caught it takes the place
            of `at_most`.

    Returns:
        `accepted`, and of those drawn `looked_at` and `escapes`; `share`, of the accepted that are defective, and
        `escape_rate`, of the defects that are accepted, each with its `_interval`, None where not known; `at_most`, and
        how many `more` have to be looked at to say so if what is found stays so, None where it does not prove it. And
        the rows of so many, with the `chance` of each to be among them.
    """
    rows = decided.assign(relative=chances(decided["score"].to_numpy(), accept_below, 1 / NEAR))
    accepted, others = rows[rows["decision"] == ACCEPT], rows[rows["decision"] != ACCEPT]
    drawn, free = accepted.dropna(subset=["defective", "chance"]), accepted[accepted["defective"].isna()]
    # Who is drawn by a larger share would not have been missed by a smaller one: all count as drawn by the largest.
    raised = (drawn["relative"] * (drawn["chance"] / drawn["relative"]).max()).clip(upper=1)
    weights, escaped, n = 1 / np.fmax(drawn["chance"], raised).to_numpy(), drawn["defective"].to_numpy(bool), len(drawn)
    hits, squares, heaviest = weights[escaped].sum(), (weights[escaped] ** 2).sum(), weights.max(initial=1)
    sound, weight = n - escaped.sum(), weights[~escaped].mean() if n > escaped.sum() else 1.0
    share = hits / weights.sum() if n else math.nan
    of_all = len(accepted) / weights.sum() if n and len(free) else 1.0  # a table may tell of no others
    caught = found = 0.0  # defects that were not accepted; and how many of them were seen
    for _, kind in others.groupby("decision"):
        seen = kind.dropna(subset="defective")
        asked = seen.dropna(subset="chance")  # at random, where others may have been chosen
        seen = asked if len(asked) and len(seen) < len(kind) else seen
        defects = seen["defective"].sum()
        found, caught = found + defects, caught + (defects * len(kind) / len(seen) if len(seen) else math.nan)
    if promised and caught > 0:
        let_through = promised / (1 - promised) * caught
        at_most = let_through / (of_all * weights.sum() + let_through)

    def highest(log_times: float) -> float:
        """The end of the interval, if so many times as many were looked at."""
        times = math.exp(log_times)
        return share_interval(hits, squares / times, heaviest / times, sound * times, weight / times)[1]

    more = None
    if not n:
        more = math.ceil(math.log(0.05) / math.log1p(-at_most) * free["relative"].mean() * NEAR) if len(free) else None
    elif highest(0) <= at_most:
        more = 0
    elif share < at_most:
        more = math.ceil(n * math.expm1(brentq(lambda log_times: highest(log_times) - at_most, 0, 30)))
    turn = pd.Series(places(free["photo"]), free.index) / free["relative"]
    plan = free.loc[turn.sort_values().index[: more or 0]]
    plan = plan.assign(chance=(plan["relative"] * turn[plan.index].max()).clip(upper=1)).drop(columns="relative")
    said = {"accepted": len(accepted), "looked_at": n, "escapes": escaped.sum(), "at_most": at_most, "more": more}
    said |= {"share": share, "share_interval": share_interval(hits, squares, heaviest, sound, weight), "caught": caught}
    let_by = hits * of_all
    said |= {"escape_rate": None, "escape_rate_interval": None}
    if n and caught > 0:
        said["escape_rate"] = let_by / (let_by + caught)
        of_defects = squares * of_all**2, heaviest * of_all, found, caught / found
        said["escape_rate_interval"] = share_interval(let_by, *of_defects)
    return plain(said), plan
