"""What is kept of any number of predictions: their counts, and the few that a page shows."""

import pandas as pd

from defectcls.evaluation.predictions import ACCEPT, REJECT, REVIEW

LISTED = 100  # unreadable photos on the page
HELD = 4096  # rows that may be held beyond those of the page before the worst are sought out


class Tally:
    """The counts of any number of photos, and the few of them that the page shows.

    Args:
        limit: photos of the highest scores to keep.
    """

    def __init__(self, limit: int) -> None:
        self.counts = dict.fromkeys(("images", "read", ACCEPT, REVIEW, REJECT, "unreadable"), 0)
        self.unreadable = pd.DataFrame(columns=["path", "error"])
        self.limit, self._held = limit, [pd.DataFrame(columns=["path", "decision", "prediction"]).assign(score=0.0)]

    def add(self, rows: pd.DataFrame) -> None:
        """Rows of `Predictor.predict`."""
        read = rows["error"] == ""
        found = {"images": len(rows), "read": int(read.sum()), "unreadable": int((~read).sum())}
        for name, count in {**rows["decision"][read].value_counts(), **found}.items():
            self.counts[str(name)] += int(count)
        if len(self.unreadable) < LISTED and not read.all():
            self.unreadable = pd.concat([self.unreadable, rows.loc[~read, ["path", "error"]]])[:LISTED]
        self._held.append(rows[read])
        if sum(map(len, self._held)) > 2 * self.limit + HELD:
            self._held = [self.shown]

    @property
    def shown(self) -> pd.DataFrame:
        """The highest scores first; of equal ones those that came first."""
        held = [rows for rows in self._held if len(rows)] or self._held[:1]
        return pd.concat(held).nlargest(self.limit, "score")
