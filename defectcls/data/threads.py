"""One function over many files on all cores, in order; for work that lets go of Python's lock, as decoding does."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 256  # results in memory while their reader is busy


def map_in_threads(
    function: Callable[[Item], Result], items: Iterable[Item], together: int = 8, ahead: int = AHEAD
) -> Iterator[Result]:
    """`function` of each item in order; an exception reaches the reader.

    Args:
        together: items a task, since handing over one costs some 30 us.
        ahead: results that are in memory before the reader asks for them, at most.
    """
    remaining = iter(items)
    some = iter(lambda: list(islice(remaining, together)), [])
    pool = ThreadPoolExecutor(os.cpu_count())
    tasks = (pool.submit(lambda group: [function(item) for item in group], group) for group in some)
    try:
        begun = deque(islice(tasks, max(1, ahead // together)))
        while begun:
            yield from begun.popleft().result()
            begun.extend(islice(tasks, 1))
    finally:
        pool.shutdown(cancel_futures=True)
