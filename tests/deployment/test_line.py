"""Photos that arrive together are judged together, and a change of versions loses and mixes none."""

import logging
import os
import re
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from defectcls.deployment.line import Model, Together
from defectcls.deployment.predictor import Predictor, load
from defectcls.errors import UserError
from tests.deployment.conftest import by_brightness, grey
from tests.deployment.test_predictor import files, judged


def test_what_waits_goes_together_and_in_order() -> None:
    begun, go = threading.Event(), threading.Event()
    handled: list[list[int]] = []

    def double(items: list[int]) -> list[int]:
        handled.append(items)
        begun.set()
        assert go.wait(10)
        return [2 * item for item in items]

    together = Together(double, most=4)
    first = together.submit(0)
    assert begun.wait(10)
    others = [together.submit(item) for item in range(1, 8)]
    go.set()
    assert [one.result(10) for one in (first, *others)] == [2 * item for item in range(8)]
    assert handled == [[0], [1, 2, 3, 4], [5, 6, 7]]


def test_a_photo_waits_for_others_until_the_deadline() -> None:
    handled: list[list[int]] = []
    together = Together(lambda items: handled.append(items) or items, most=3, wait_s=0.5)
    answers = []
    for item in range(4):
        answers.append(together.submit(item))
        time.sleep(0.02)
    assert [one.result(10) for one in answers] == [0, 1, 2, 3]
    assert handled == [[0, 1, 2], [3]]


def test_what_goes_wrong_is_told_to_each_and_the_next_go_on() -> None:
    def refuse(items: list[int]) -> list[int]:
        if 0 in items:
            raise MemoryError("too many")
        return items[:-1] if 9 in items else items

    together = Together(refuse, most=2, wait_s=0.2)
    for first, second in ((0, 1), (8, 9)):
        wrong: list[Future[int]] = [together.submit(first), together.submit(second)]
        assert all(isinstance(one.exception(10), MemoryError | ValueError) for one in wrong[first == 8 :])
    assert together.submit(5).result(10) == 5


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"1")
    return path


def model_of(file: Path, load: Callable[[Path], Predictor]) -> Model:
    return Model("part", file, load, batch_size=8, deadline_s=0)


def renew(file: Path, model: Model) -> None:
    """Another version is put in place, and rests."""
    file.write_bytes(file.read_bytes() + b"1")
    model.look()
    model.look()


def score(model: Model, value: int, predictor: Predictor | None = None) -> dict[str, Any]:
    asked = predictor or model.predictor
    return model.together.submit((asked, asked.read(grey(value)))).result(10)


def test_each_photo_has_its_row_also_those_that_cannot_be_read(file: Path) -> None:
    predictor = by_brightness()
    model = Model("part", file, lambda _: predictor, 8, 0.2)
    reads = [predictor.read(photo) for photo in (grey(51), b"no photo", grey(204))]
    rows = [one.result(10) for one in [model.together.submit((predictor, read)) for read in reads]]
    assert [row["score"] for row in (rows[0], rows[2])] == [51 / 255, 204 / 255]
    assert [row["decision"] for row in rows] == ["accept", "", "reject"]
    assert [row["error"] for row in rows] == ["", "not an image", ""]
    assert predictor.batches == [1, 2]  # type: ignore[attr-defined]  the first when it was loaded


def test_photos_that_an_old_version_has_read_are_judged_by_it(file: Path) -> None:
    """Its size is another one."""
    old, new = by_brightness(digest="old"), by_brightness(digest="new", image_size=(64, 16))
    versions = iter((old, new))
    model = Model("part", file, lambda _: next(versions), 8, 0.2)
    read = [(old, old.read(grey(51))), (new, new.read(grey(102))), (old, old.read(grey(153)))]
    renew(file, model)
    assert model.predictor is new
    rows = [one.result(10) for one in [model.together.submit(one) for one in read]]
    assert [row["score"] for row in rows] == [51 / 255, 102 / 255, 153 / 255]
    assert (old.batches, new.batches) == ([1, 1, 1], [1, 1])  # type: ignore[attr-defined]


def test_a_new_file_takes_over_once_it_rests(file: Path) -> None:
    loaded: list[bytes] = []

    def load(path: Path) -> Predictor:
        loaded.append(path.read_bytes())
        return by_brightness(digest=path.read_text())

    model = model_of(file, load)
    for content in (b"2", b"23", b"234"):  # it is being copied
        file.write_bytes(content)
        model.look()
    assert model.predictor.about["digest"] == "1"
    for _ in range(3):
        model.look()
    assert model.predictor.about["digest"] == "234"
    assert loaded == [b"1", b"234"]
    file.unlink()  # the next is put in place
    model.look()
    assert model.predictor.about["digest"] == "234"
    file.write_bytes(b"5")
    os.utime(file, (1, 1))
    model.look()
    model.look()
    assert (model.predictor.about["digest"], model.problem) == ("5", "")
    content = file.read_bytes()
    file.unlink()
    model.look()
    assert model.problem == f"{file} is not there: a restart would not find it"
    file.write_bytes(content)
    model.look()
    assert (model.predictor.about["digest"], model.problem) == ("5", "")


def _refuse(path: Path) -> Predictor:
    raise UserError(f"{path.name} is damaged")


def _broken(_: np.ndarray) -> Any:
    raise RuntimeError("no such operator")


@pytest.mark.parametrize(
    ("load", "said"),
    [
        (_refuse, "model.onnx is damaged"),
        (
            lambda _: by_brightness(about={"digest": "x", "gate": {"refused": "2 decisions flip"}}),
            "refused by its own gate: 2 decisions flip",
        ),
        (lambda _: by_brightness(classes={"sound": False, "hole": True}), "p_hole|the new version tells sound, hole"),
        (lambda _: by_brightness(judge=_broken), "RuntimeError: no such operator"),
        (lambda _: by_brightness(judge=lambda p: by_brightness().judge(p).assign(score=np.nan)), "no finite score"),
    ],
)
def test_what_fails_its_check_does_not_take_over(
    load: Callable[[Path], Predictor], said: str, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    now = [lambda _: by_brightness(digest="old")]
    model = model_of(file, lambda path: now[0](path))
    now[0] = load
    file.write_bytes(b"22")
    with caplog.at_level(logging.WARNING):
        for _ in range(4):
            model.look()
    assert len(caplog.records) == 1  # not every second
    assert "the version before stays at work" in caplog.text
    assert re.search(said, model.problem)
    assert model.predictor.about["digest"] == "old"
    assert score(model, 51)["score"] == 51 / 255
    now[0] = lambda _: by_brightness(digest="mended")
    file.write_bytes(b"333")
    model.look()
    model.look()
    assert (model.predictor.about["digest"], model.problem) == ("mended", "")


def test_one_that_fails_its_check_does_not_start(file: Path) -> None:
    with pytest.raises(UserError, match="judges no photo"):
        model_of(file, lambda _: by_brightness(judge=lambda p: by_brightness().judge(p).assign(score=np.inf)))


def test_no_photo_is_lost_while_versions_change(file: Path) -> None:
    model, answers, stop = model_of(file, lambda _: by_brightness(0.002)), [], threading.Event()

    def ask(value: int) -> None:
        while not stop.is_set():
            answers.append((value, score(model, value)["score"]))

    threads = [threading.Thread(target=ask, args=(value,)) for value in (20, 90, 160, 230)]
    for thread in threads:
        thread.start()
    while len(answers) < 60:
        renew(file, model)
    stop.set()
    for thread in threads:
        thread.join(10)
    assert all(found == value / 255 for value, found in answers)


def test_a_run_that_is_served_decides_as_its_own_evaluation_did(finished: Path) -> None:
    expected = judged(finished)
    model = Model("run", finished, lambda path: load(path, "cpu"), 7, 0.05)
    reads = [model.predictor.read(photo) for photo in files(finished, expected)]
    rows = pd.DataFrame([one.result(60) for one in [model.together.submit((model.predictor, each)) for each in reads]])
    numbers = [column for column in rows if column not in ("path", "unlike", "cause", "error")]
    expected = expected[numbers].astype({"decision": str})
    pd.testing.assert_frame_equal(rows[numbers], expected, check_exact=True, check_dtype=False)
