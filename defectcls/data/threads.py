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


def map_in_threads(function: Callable[[Item], Result], items: Iterable[Item], ahead: int = AHEAD) -> Iterator[Result]:
    """`function` of each item in order, at most so many ahead of the reader, whom an exception reaches."""
    pool = ThreadPoolExecutor(os.cpu_count())
    tasks = (pool.submit(function, item) for item in items)
    try:
        begun = deque(islice(tasks, ahead))
        while begun:
            yield begun.popleft().result()
            begun.extend(islice(tasks, 1))
    finally:
        pool.shutdown(cancel_futures=True)
