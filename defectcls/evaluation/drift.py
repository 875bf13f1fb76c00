"""Whether photos still look like those that a model was measured on, by their `unlike` alone.

Where they do, a new photo is as likely to have none of n measured ones nearer as one, two … or all; of many these
counts follow Polya's urn. So, exactly, how many of a window lie beyond the 99 % quantile is a beta-binomial number; and
what a bet on being far wins is an e-value, whose statistic of Shiryaev and Roberts finds a change (an e-detector: Shin,
Ramdas and Rinaldo 2022).
"""

import math
from collections import Counter
from typing import Annotated, NamedTuple

import numpy as np
import pandas as pd
from pydantic import BaseModel, Field, FiniteFloat, PositiveInt

QUANTILE = 0.99
ALARM = 1000  # windows from one false alarm to the next, on average at least
OVER = 0.05  # a change is over where chance alone brings as many photos beyond the quantile so often
LOOKS = {  # words for less and for more, of what the model sees and of the file
    "brightness": ("darker", "brighter"),
    "contrast": ("of less contrast", "of more contrast"),
    "sharpness": ("more blurred", "sharper or noisier"),
    "colour": ("paler", "more colourful"),
    "redness": ("bluer", "redder"),
    "size": ("smaller", "larger"),
    "depth": ("of fewer bits", "of more bits"),
}
SEEN = [*LOOKS][:5]  # see `defectcls.model.likeness.appearance`; the others are of `defectcls.data.images.Opened.file`
Numbers = Annotated[list[FiniteFloat], Field(min_length=len(LOOKS), max_length=len(LOOKS))]


class Measured(BaseModel):
    """What a model was measured on: so many independent photos, and the ends of their LOOKS; and what it remembers."""

    photos: PositiveInt
    low: Numbers
    high: Numbers
    paths: list[str]

    def cause(self, looks: np.ndarray) -> str:
        """In which of LOOKS a photo is farthest beyond all of them, in widths of their range."""
        low, high = np.array(self.low), np.array(self.high)
        beyond = np.stack([low - looks, looks - high], 1) / np.maximum(high - low, 0.02)[:, None]
        of, more = np.unravel_index(beyond.argmax(), beyond.shape)
        if beyond.max() <= 0.01:
            return "looks like nothing measured"
        return f"{[*LOOKS.values()][of][more]} than any measured"


class Window(NamedTuple):
    """How unlike so many photos were."""

    photos: int
    beyond: int  # the quantile, see `beyond_from`
    low: float  # Clopper and Pearson's interval of 95 % for the share of such photos
    high: float
    chance: float  # that as many or more are, where nothing has changed
    since: str  # name of the photo that a change began with, "" where none is found
    cause: str  # the most frequent one


def beyond_from(measured: int) -> float:
    """The least `unlike` beyond the 99 % quantile of so many photos; of fewer than 99 that of one beyond them all."""
    return min(math.ceil(QUANTILE * (measured + 1)), measured) / (measured + 1)


class Drift:
    """Photos in the order in which they come to a model that was measured on so many independent ones."""

    def __init__(self, measured: int, window: int) -> None:
        self.measured, self.window, self._count = measured, window, measured + 1
        self._bets = np.sqrt(self._count / (self._count - np.arange(self._count) - 0.5)).tolist()  # by how many nearer
        self._sum, self._usual = sum(self._bets), sum(self._bets) / self._count  # of the urn, and at its beginning
        self._evidence = self._recent = 0.0
        self._first, self._since, self._far = "", "", beyond_from(measured)
        self._causes, self._beyond = Counter[str](), 0  # of the window

    def windows(self, rows: pd.DataFrame) -> list[Window]:
        """Those that the photos of a table complete, by path, unlike (NaN does not count) and cause."""
        known = rows.loc[rows["unlike"].notna(), ["unlike", "path", "cause"]]
        return [*filter(None, (self.add(*row) for row in known.itertuples(index=False)))]

    def add(self, unlike: float, name: str, cause: str) -> Window | None:
        """One photo; the window that it completes."""
        bet = self._bets[min(int(unlike * len(self._bets)), self.measured)]
        gain = bet / max(self._sum / self._count, self._usual)  # than photos before it, and than measured ones
        self._sum, self._count = self._sum + bet, self._count + 1
        self._recent, self._first = (self._recent, self._first) if self._recent > 1 else (1.0, name)
        self._recent, self._evidence = self._recent * gain, (self._evidence + 1) * gain
        if self._evidence >= ALARM * self.window:
            self._since, self._recent, self._evidence = self._since or self._first, 0.0, 0.0
        self._causes[cause] += 1
        self._beyond += unlike >= self._far
        return self._close() if self._causes.total() == self.window else None

    def _close(self) -> Window:
        from scipy.special import betaincinv, betaln, gammaln

        n, k = self._causes.total(), int(self._beyond)
        inside = round(self._far * len(self._bets))
        outside, counts = len(self._bets) - inside, np.arange(k, n + 1)
        ways = gammaln(n + 1) - gammaln(counts + 1) - gammaln(n - counts + 1)
        chance = float(np.exp(ways + betaln(counts + outside, n - counts + inside) - betaln(outside, inside)).sum())
        low, high = betaincinv([max(k, 1), k + 1], [n - k + 1, max(n - k, 1)], [0.025, 0.975])
        del self._causes[""]
        cause = (self._causes.most_common(1) or [("", 0)])[0][0]
        since, self._causes, self._beyond = self._since, Counter[str](), 0
        self._since = since if chance <= OVER else ""
        return Window(n, k, float(low) if k else 0.0, float(high) if k < n else 1.0, min(chance, 1.0), since, cause)
