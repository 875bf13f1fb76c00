"""Whole processes: what they take, what is said of it, and that their commands are ones that a verb takes."""

from pathlib import Path

import pandas as pd
import pytest

from benchmarks import answer, waiting
from defectcls.settings import TrainSettings
from defectcls.training.settings import CrossvalSettings
from tests.conftest import composed


def test_cpu_time_is_that_of_a_process_and_those_that_it_waits_for() -> None:
    busy = "import time; end = time.process_time() + 0.3\nwhile time.process_time() < end: pass"
    child = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {busy!r}])"
    for program in (busy, child):
        found = answer.timed(["-c", program])
        assert found["status"] == 0
        assert 0.3 <= found["cpu_seconds"] < 3
    asleep = answer.timed(["-c", "import time; time.sleep(0.5); raise SystemExit(3)"])
    assert (asleep["status"], asleep["cpu_seconds"] < 0.4, asleep["seconds"] > 0.5) == (3, True, True)


def test_answers_are_told_as_times_the_import_of_their_round() -> None:
    rows = [(answer.BARE, 0, 10.0, 6.0), ("train", 0, 16.0, 9.0), ("help", 0, 1.0, 1.2)]
    rows += [(answer.BARE, 1, 20.0, 12.0), ("train", 1, 30.0, 20.0), ("help", 1, 1.4, 1.6)]
    rows += [("second", 0, 30.0, 12.0), ("second", 1, 50.0, 30.0)]
    turns = pd.DataFrame(rows, columns=["command", "round", "cpu_seconds", "seconds"])
    found = {(line["what"], line["unit"]): line for line in answer.summarise(turns)}
    assert found["train", "times the import"]["median"] == pytest.approx((1.6 + 1.5) / 2)
    assert found["train", "times the import"]["at_most"] == 1.7
    assert found["second", "times the import"]["median"] == pytest.approx((2.0 + 2.5) / 2)  # as a person waits
    assert (found["help", "s"]["low"], found["help", "s"]["high"], found["help", "s"]["at_most"]) == (1.2, 1.6, 1.5)
    assert ("help", "times the import") not in found


def test_commands_are_those_of_the_verbs() -> None:
    found = answer.commands("photos/*.png", Path("run"), Path("out"))
    assert set(found) == {answer.BARE, *answer.AT_MOST, *answer.AT_MOST_WAIT, *answer.AT_MOST_S}
    for name, verb, kind in (
        ("train", "train", TrainSettings),
        ("crossval", "crossval", CrossvalSettings),
        ("first", "train", TrainSettings),
    ):
        kind(**composed(*found[name][2:-1], verb=verb))  # the last is where it writes
    assert found["first"][:-1] == found["second"][:-1]
    composed(*found["predict"][2:-1], verb="predict")


def test_waiting_is_compared_round_by_round() -> None:
    rows = [("alone", "default", 0, 4.0, 30.0), ("alone", "passive", 0, 4.0, 27.0)]
    rows += [("alone", "default", 1, 2.0, 20.0), ("alone", "passive", 1, 3.0, 20.0)]
    rows += [("alone", "short", number, 2.0, 20.0) for number in range(2)]
    turns = pd.DataFrame(rows, columns=["company", "policy", "round", "step", "forward"])
    found = {line["what"]: (line["median"], line["low"], line["high"]) for line in waiting.summarise(turns)}
    assert found["step, alone, passive / default"] == (1.25, 1, 1.5)
    assert found["forward, alone, passive / default"] == pytest.approx((0.95, 0.9, 1))
    assert found["forward, alone, default"] == (25, 20, 30)


@pytest.mark.slow
def test_a_process_is_measured_beside_busy_ones() -> None:
    assert all(value > 0 for value in waiting.turn("passive", busy=1).values())
