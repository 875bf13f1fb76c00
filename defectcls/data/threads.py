"""One function over many files on all cores, in order, and what memory that takes.

For work that lets go of Python's lock, as decoding does.
"""

import contextlib
import ctypes
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 256  # results in memory while their reader is busy
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8  # of glibc's malloc.h


def map_in_threads(
    function: Callable[[Item], Result], items: Iterable[Item], ahead: int = AHEAD, threads: int | None = None
) -> Iterator[Result]:
    """`function` of each item in order, at most so many ahead of the reader, whom an exception reaches.

    In as many threads as there are cores, unless `threads` says how many.
    """
    pool = ThreadPoolExecutor(threads or os.cpu_count())
    tasks = (pool.submit(function, item) for item in items)
    try:
        begun = deque(islice(tasks, ahead))
        while begun:
            yield begun.popleft().result()
            begun.extend(islice(tasks, 1))
    finally:
        pool.shutdown(cancel_futures=True)


def keep_freed_memory(one_heap: bool = False) -> None:
    """Let glibc keep large blocks for the next step: Linux, given them back, would clear every page of them again.

    A ResNet18 training step on a CPU is a sixth shorter so, a MobileNetV2 forward pass a quarter.

    Args:
        one_heap: for all threads, which cannot use what others keep: a process that decodes without end would grow.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library has no such function
        tune = ctypes.CDLL(None).mallopt
        heaps = ((M_ARENA_MAX, 1),) if one_heap else ()
        for parameter, value in (*heaps, (M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 2**28)):
            tune(parameter, value)
