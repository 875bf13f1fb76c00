"""Contenders that take turns: each a process with threads and memory of its own, only one of them at work at a time."""

import logging
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from defectcls.errors import explain
from defectcls.settings import BenchmarkSettings

log = logging.getLogger(__name__)

Turn = dict[str, Any]  # `seconds`, `images` or None where they do not count, and what else a contender measured

PATIENCE_S = 10.0  # for a process that was asked to end
SAMPLE_S = 0.1  # between two looks at a GPU's utilisation


class Stopwatch:
    """Measures a turn; a GPU's queue is waited for before the clock is read.

    Args:
        device: that the work is done on.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.watches = device.type == "cuda" and find_spec("pynvml") is not None

    def start(self) -> None:
        self._samples: list[int] = []
        self._stopped = threading.Event()
        if self.watches:
            threading.Thread(target=self._watch, daemon=True).start()
        self._synchronize()
        self._began, self._used = time.perf_counter(), time.process_time()

    def stop(self, images: int | None) -> Turn:
        self._synchronize()
        ended, used = time.perf_counter(), time.process_time()
        # Less than `seconds` times the threads: others had the cores meanwhile, or this process waited.
        turn: Turn = {"images": images, "seconds": ended - self._began, "cpu_seconds": used - self._used}
        self._stopped.set()
        if self.device.type == "cuda":
            turn["gpu_utilisation"] = sum(self._samples) / len(self._samples) if self._samples else None
        return turn

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _watch(self) -> None:
        while not self._stopped.wait(SAMPLE_S):
            self._samples.append(torch.cuda.utilization(self.device))


class Turns:
    """What a contender's process sees of the others: when it is its turn."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe = pipe
        self.about: dict[str, Any] = {}  # told once, at the end

    def wait(self, finished: Turn | None = None) -> bool:
        """Hand in the turn before, and wait for the next; False: there is none."""
        try:
            self.pipe.send(("ready", finished))
            return self.pipe.recv()
        except (EOFError, OSError):  # the benchmark was stopped
            raise SystemExit from None

    def play(self, device: torch.device, work: Callable[[], int | None]) -> None:
        """Do the work, which returns how many images it took, once a turn."""
        stopwatch, turn = Stopwatch(device), None
        while self.wait(turn):
            stopwatch.start()
            turn = stopwatch.stop(work())


Contender = Callable[[Turns, BenchmarkSettings, Path], None]


class Played(NamedTuple):
    """What is left of a contender: its turns after the warm-up, or why there are none."""

    turns: list[Turn]
    about: dict[str, Any]
    error: str | None


def take_turns(
    contenders: dict[str, Contender], settings: BenchmarkSettings, folder: Path, rounds: int, warm_up: int
) -> dict[str, Played]:
    """Let every contender prepare in a process of its own, then have its turn, round after round.

    Args:
        folder: each contender gets one in it, with its log.
        warm_up: rounds before those that count.
    """
    context = _context()
    rivals: dict[str, _Rival] = {}
    try:
        for name, contender in contenders.items():
            own = folder / name
            own.mkdir(parents=True, exist_ok=True)
            pipe, far = context.Pipe()
            process = context.Process(target=_compete, args=(contender, settings, own, far), name=name)
            process.start()
            far.close()  # else its end would not be noticed
            rivals[name] = _Rival(process, pipe)
            if len(rivals) == 1:
                rivals[name].receive()  # the first one fills the caches that the others use
        for rival in list(rivals.values())[1:]:
            rival.receive()
        order = [name for _ in range(warm_up + rounds) for name in contenders]
        for number, name in enumerate(bar := tqdm(order, unit="turn", disable=None, leave=False)):
            bar.set_description(name)
            if (turn := rivals[name].go(True)) is not None and number >= warm_up * len(contenders):
                rivals[name].turns.append(turn)
        for rival in rivals.values():
            rival.go(False)
    finally:
        for rival in rivals.values():
            rival.stop()
        for rival in rivals.values():
            rival.join()
    return {name: Played(rival.turns, rival.about, rival.error) for name, rival in rivals.items()}


def _context() -> Any:
    """How processes are started: without the threads of this one, which would be missing in a fork of it."""
    # Forked from a server that has imported what takes each of them seconds; but a GPU's driver survives no fork.
    if torch.cuda.is_available() or "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["defectcls.benchmarking.plain"])
    return context


class _Rival:
    """The benchmark's end of one contender."""

    def __init__(self, process: Any, pipe: Connection) -> None:
        self.process, self.pipe = process, pipe
        self.turns: list[Turn] = []
        self.about: dict[str, Any] = {}
        self.error: str | None = None

    def go(self, more: bool) -> Turn | None:
        """One turn, or with `more` False the end; nothing from one that failed."""
        if self.error is not None:
            return None
        with suppress(OSError):  # why, the next message tells
            self.pipe.send(more)
        return self.receive()

    def receive(self) -> Turn | None:
        try:
            kind, content = self.pipe.recv()
        except (EOFError, OSError):
            self.process.join(PATIENCE_S)
            kind, content = "failed", f"its process ended with exit status {self.process.exitcode}"
        if kind == "failed":
            self.error = content
        elif kind == "done":
            self.about = content
        return content if kind == "ready" else None

    def stop(self) -> None:
        self.pipe.close()
        if not self.about:
            self.process.terminate()  # in the middle of its work: Ctrl-C

    def join(self) -> None:
        self.process.join(PATIENCE_S)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def _compete(contender: Contender, settings: BenchmarkSettings, folder: Path, pipe: Connection) -> None:
    """A contender's process. It ends with the benchmark: a closed pipe is the end of its turns."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the benchmark's, which ends its contenders
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # and these their workers
    multiprocessing.set_start_method(None, force=True)  # workers of a loader start as they would in a command's process
    with (folder / "log.txt").open("w", encoding="utf-8") as file:
        for stream in (sys.__stdout__, sys.__stderr__):
            if stream is not None:
                os.dup2(file.fileno(), stream.fileno())
        logging.basicConfig(level=logging.INFO, force=True)
        turns = Turns(pipe)
        try:
            contender(turns, settings, folder)
            pipe.send(("done", turns.about | peak_memory()))
        except SystemExit:
            pass
        except BaseException as error:
            traceback.print_exc()
            lines = str(error).splitlines() or [""]
            pipe.send(("failed", explain(error) or f"{type(error).__name__}: {lines[0]}"))


def peak_memory() -> dict[str, float | None]:
    """MiB that this process held at most, and the same of a GPU's memory; None where the system does not tell."""
    status = Path("/proc/self/status")  # `getrusage` would count the process that this one was started from
    found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.is_file() else None
    gpu = torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_initialized() else None
    return {"peak_mib": int(found[1]) / 2**10 if found else None, "gpu_peak_mib": gpu}
