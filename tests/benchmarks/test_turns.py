"""Processes that take turns, one at work at a time, and end with the benchmark."""

import itertools
import multiprocessing
import os
import signal
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.turns import Turns, take_turns

CPU = torch.device("cpu")


def steady(file: Path, turns: Turns) -> None:
    """Two images a turn; keeps the time of its turns."""

    def work() -> int:
        with file.open("a") as moments:
            began = time.monotonic()
            time.sleep(0.02)
            moments.write(f"{began} {time.monotonic()}\n")
        return 2

    turns.about["computed"] = "by heart"
    turns.play(CPU, work)


def mistaken(turns: Turns) -> None:
    raise ValueError("there are no images")


def killed(turns: Turns) -> None:
    turns.wait()
    os.kill(os.getpid(), signal.SIGKILL)


def asleep(file: Path, turns: Turns) -> None:
    file.write_text(str(os.getpid()))
    turns.wait()
    time.sleep(60)


@pytest.mark.slow
def test_contenders_take_turns(tmp_path: Path) -> None:
    files = [tmp_path / "one", tmp_path / "other"]
    turns = take_turns({file.name: partial(steady, file) for file in files}, rounds=3, warm_up=1)
    assert turns[["contender", "round"]].to_numpy().tolist() == [
        [name, number] for number in range(3) for name in ("one", "other")
    ]
    assert (turns["images"] == 2).all()
    assert turns["seconds"].between(0.02, 20).all()
    assert (turns["peak_mib"] > 50).all()
    assert (turns["computed"] == "by heart").all()
    moments = sorted(itertools.chain.from_iterable(np.loadtxt(file).tolist() for file in files))
    assert len(moments) == 8  # the warm-up is played, and not counted
    assert all(ended <= began for (_, ended), (began, _) in itertools.pairwise(moments))


@pytest.mark.slow
@pytest.mark.parametrize("failing", [mistaken, killed])
def test_a_failure_ends_the_benchmark_and_all_its_processes(failing: object, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="^failing failed$"):
        take_turns({"steady": partial(steady, tmp_path / "one"), "failing": failing}, 1, 0)  # type: ignore[dict-item]
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_interrupt_ends_the_processes(tmp_path: Path) -> None:
    file, began = tmp_path / "process.txt", time.monotonic()

    def interrupt(*_: object) -> None:
        if file.is_file() and file.read_text():
            raise KeyboardInterrupt
        signal.setitimer(signal.ITIMER_REAL, 0.05)

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        with pytest.raises(KeyboardInterrupt):
            take_turns({"asleep": partial(asleep, file)}, rounds=1, warm_up=0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - began < 50
    with pytest.raises(ProcessLookupError):
        os.kill(int(file.read_text()), 0)
