"""A model on another dataset than it was trained on: its numbers there beside those on its own test images."""

from typing import Any, NamedTuple

from defectcls.evaluation.intervals import difference
from defectcls.evaluation.metrics import defect_numbers

COMPARED = ("auroc", "recall", "overkill_rate")

Interval = list[float] | None


class Change(NamedTuple):
    """A number on the model's own test images and on those `here`, each with its interval, and here less own."""

    name: str
    own: float | None
    own_interval: Interval
    here: float | None
    here_interval: Interval
    difference: float | None
    interval: Interval


def changes(own: dict[str, Any], here: dict[str, Any]) -> list[Change]:
    """COMPARED, sound against defective, of two parts as metrics.json has them; the images are independent.

    The difference of two numbers has the interval that joins theirs (MOVER, see intervals.py); None where one of them
    is undefined or, of `own`, missing.
    """
    before, now = defect_numbers(own), defect_numbers(here)
    found = []
    for name in COMPARED:
        a, b, of_a, of_b = before.get(name), now.get(name), before["intervals"].get(name), now["intervals"].get(name)
        change, span = None, None
        if a is not None and b is not None:
            change = b - a
            if of_a and of_b:
                change, *span = difference((b, *of_b), (a, *of_a))
        found.append(Change(name, a, of_a, b, of_b, change, span))
    return found
