"""A model on another dataset than it was trained on: its numbers there beside those on its own test images."""

from typing import Any, NamedTuple

import numpy as np

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
    sides = []
    for numbers in (own, here):
        intervals = numbers.get("intervals", {})
        sides.append((numbers.get("defect", numbers), intervals.get("defect", intervals)))
    (before, spans_before), (now, spans_now) = sides
    found = []
    for name in COMPARED:
        a, b, of_a, of_b = before.get(name), now.get(name), spans_before.get(name), spans_now.get(name)
        difference = None if a is None or b is None else b - a
        interval = None
        if difference is not None and of_a and of_b:
            down = np.hypot(b - of_b[0], of_a[1] - a)
            up = np.hypot(of_b[1] - b, a - of_a[0])
            interval = [float(difference - down), float(difference + up)]
        found.append(Change(name, a, of_a, b, of_b, difference, interval))
    return found
