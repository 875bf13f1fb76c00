"""One function over many files on all cores, in order; for work that lets go of Python's lock, as decoding does."""

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
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

    def each(some: list[Item]) -> list[Result]:
        return [function(item) for item in some]

    def begin(tasks: int) -> None:
        for _ in range(tasks):
            if some := list(itertools.islice(remaining, together)):
                begun.append(pool.submit(each, some))

    begun: deque[Future[list[Result]]] = deque()
    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        begin(max(1, ahead // together))
        while begun:
            yield from begun.popleft().result()
            begin(1)
    finally:
        pool.shutdown(cancel_futures=True)
