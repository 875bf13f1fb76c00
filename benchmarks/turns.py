"""Contenders that take turns: each a process with threads and memory of its own, only one of them at work at a time."""

import itertools
import multiprocessing
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

Turn = dict[str, Any]  # `seconds`, `images` or None where they do not count, and what else a contender measured

PATIENCE_S = 10.0  # for a process that was asked to end


class Stopwatch:
    """Measures a turn; a GPU's queue is waited for before the clock is read.

    Args:
        device: that the work is done on.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def start(self) -> None:
        self._synchronize()
        self._began, self._used = time.perf_counter(), time.process_time()

    def stop(self, images: int | None) -> Turn:
        self._synchronize()
        # CPU time less than `seconds` times the threads: others had the cores meanwhile, or this process waited.
        used = time.process_time() - self._used
        return {"images": images, "seconds": time.perf_counter() - self._began, "cpu_seconds": used}

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class Turns:
    """A contender's end of the pipe: when it is its turn.

    `about` goes with every turn that it hands in.
    """

    def __init__(self, pipe: Connection) -> None:
        self.pipe, self.about = pipe, Turn()

    def wait(self, finished: Turn | None = None) -> None:
        """Hand in the turn before, and wait for the next; where there is none, the process ends here."""
        try:
            self.pipe.send(finished and finished | self.about | peak_memory())
            self.pipe.recv()
        except (EOFError, OSError):
            raise SystemExit from None

    def play(self, device: torch.device, work: Callable[[], int | None]) -> None:
        """Do the work, which returns how many images it took, once a turn."""
        stopwatch, turn = Stopwatch(device), None
        while True:
            self.wait(turn)
            stopwatch.start()
            turn = stopwatch.stop(work())


Contender = Callable[[Turns], None]


def take_turns(contenders: Mapping[str, Contender], rounds: int, warm_up: int) -> pd.DataFrame:
    """Let every contender prepare in a process of its own, one after another, then have its turn, round after round.

    Args:
        warm_up: rounds before those that count.

    Returns:
        A row a turn: `contender`, `round` from 0, and what the contender measured.

    Raises:
        SystemExit: a contender failed; its traceback is on stderr.
    """
    rows = []
    with ExitStack() as processes:
        # The first one fills the caches that the others use.
        pipes = {name: processes.enter_context(_playing(name, contender)) for name, contender in contenders.items()}
        order = list(itertools.product(range(-warm_up, rounds), pipes))
        for number, name in (bar := tqdm(order, unit="turn", disable=None, leave=False)):
            bar.set_description(name)
            pipes[name].send(None)
            rows.append({"contender": name, "round": number} | _received(pipes[name], name))
    return pd.DataFrame([row for row in rows if row["round"] >= 0])


@contextmanager
def _playing(name: str, contender: Contender) -> Iterator[Connection]:
    """The pipe to a process that is prepared; it ends with the benchmark."""
    # Forked from a server that has imported what takes each of them seconds; but a GPU's driver survives no fork.
    forks = not torch.cuda.is_available() and "forkserver" in multiprocessing.get_all_start_methods()
    context: Any = multiprocessing.get_context("forkserver" if forks else "spawn")
    if forks:
        context.set_forkserver_preload(["benchmarks.contenders"])
    pipe, far = context.Pipe()
    process = context.Process(target=_compete, args=(contender, far), name=name)
    process.start()
    far.close()  # else its end would not be noticed
    try:
        _received(pipe, name)
        yield pipe
    finally:
        pipe.close()
        process.join(PATIENCE_S)
        if process.is_alive():
            process.kill()
            process.join()


def _received(pipe: Connection, name: str) -> Turn:
    try:
        return pipe.recv() or {}
    except EOFError:
        raise SystemExit(f"{name} failed") from None


def _compete(contender: Contender, pipe: Connection) -> None:
    multiprocessing.set_start_method(None, force=True)  # workers of a loader start as they would in a command's process
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what a run prints is none of the benchmark's
    contender(Turns(pipe))


def peak_memory() -> Turn:
    """MiB that this process held at most, and the same of a GPU's memory; None where the system does not tell."""
    status = Path("/proc/self/status")  # `getrusage` would count the process that this one was started from
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.is_file() else None
    gpu = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_initialized() else None
    return {"peak_mib": int(found[1]) / 2**10 if found else None, "gpu_peak_mib": gpu}
