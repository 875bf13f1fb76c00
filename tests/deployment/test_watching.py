"""Which photos are due, what an output remembers, and a watcher that is killed, started again and stopped."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from filelock import FileLock

from defectcls.deployment.output import append, read_output
from defectcls.deployment.predictor import Predictor, load
from defectcls.deployment.watching import MODEL, MODIFIED, due, look, remembered, watch
from defectcls.errors import Stopped, UserError, stoppable
from tests.conftest import paint

RUN = "/runs/1"
OLD, NEW, GROWN = ("2001-09-09T01:46:40Z", 50), ("2001-09-09T01:46:41Z", 50), ("2001-09-09T01:46:40Z", 60)
COLUMNS = ["path", MODIFIED, MODEL, "decision", "prediction", "score", "p_ok", "p_bad", "error"]


def rows(names: list[str], state: tuple[str, int] = OLD) -> pd.DataFrame:
    """What a watcher would have written of these."""
    values = {"decision": "accept", "prediction": "ok", "score": 0.1 + 0.2, "p_ok": 0.7, "p_bad": 0.3, "error": ""}
    return pd.DataFrame({"path": names, MODIFIED: state[0], MODEL: RUN}).assign(**values)


# --- which are due ----------------------------------------------------------------------------------------------------


def test_a_file_is_due_when_two_looks_find_it_the_same() -> None:
    assert due({}, {"a": OLD}, set()) == {}
    assert due({"a": OLD}, {"a": OLD}, set()) == {"a": OLD}
    assert due({"a": OLD}, {"a": GROWN}, set()) == {}  # still being written
    assert due({"a": OLD}, {"a": NEW}, set()) == {}
    assert due({"a": OLD}, {}, set()) == {}


def test_each_version_is_due_once() -> None:
    done = {("a", OLD[0])}
    assert due({"a": OLD, "b": OLD}, {"a": OLD, "b": OLD}, done) == {"b": OLD}
    assert due({"a": NEW}, {"a": NEW}, done) == {"a": NEW}


def test_what_came_first_is_first() -> None:
    states = {"c": NEW, "b": NEW, "z": OLD}
    assert list(due(states, states, set())) == ["z", "b", "c"]


def test_a_name_that_is_no_text_is_done_as_it_is_written() -> None:
    name = b"caf\xe9.png".decode(errors="surrogateescape")
    assert due({name: OLD}, {name: OLD}, {("caf\\udce9.png", OLD[0])}) == {}


def test_a_look_finds_images_and_whether_there_is_a_folder(tmp_path: Path) -> None:
    for name in ("b.png", "deep/a.jpg", "notes.txt"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"12345")
    os.utime(tmp_path / "in/b.png", ns=(5, 1_700_000_000_123_456_789))
    found = look(tmp_path / "in")
    assert found is not None
    assert (sorted(found), found["b.png"]) == (["b.png", "deep/a.jpg"], ("2023-11-14T22:13:20.123456789Z", 5))
    assert look(tmp_path / "gone") is None


# --- what an output remembers -----------------------------------------------------------------------------------------


def written(output: Path, names: list[str]) -> bytes:
    for name in names:
        append(rows([name]), output)
    return output.read_bytes()


def test_an_output_remembers_whole_rows_and_loses_a_torn_one(tmp_path: Path) -> None:
    output, names = tmp_path / "out.csv", ["a,b.png", 'quo"te.png', "new\nline.png", "last\nof all.png"]
    whole = written(output, names[:3])
    torn = written(output, names[3:])[len(whole) :]
    assert remembered(output, COLUMNS, RUN) == {(name, OLD[0]) for name in names}
    for cut in range(len(torn)):
        output.write_bytes(whole + torn[:cut])
        assert remembered(output, COLUMNS, RUN) == {(name, OLD[0]) for name in names[:3]}
        assert output.read_bytes() == whole


def test_rows_are_restored_to_the_last_bit(tmp_path: Path) -> None:
    written(tmp_path / "out.csv", ["a.png", "b.png"])
    read = pd.read_csv(tmp_path / "out.csv")
    assert read["score"].tolist() == [0.1 + 0.2] * 2
    assert read["path"].tolist() == ["a.png", "b.png"]


@pytest.mark.parametrize("content", [b"name,price\nscrew,3", b"one line", b"\n", b"\xff\xfe\x00", b'"path'])
def test_a_table_of_something_else_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(UserError, match=r"its columns are not path, modified, .*overwrite=true$"):
        remembered(tmp_path / "a.csv", COLUMNS, RUN)
    assert (tmp_path / "a.csv").read_bytes() == content


# --- the loop, with a stand-in that opens no image --------------------------------------------------------------------


class StandIn:
    """Takes every file that holds text for sound, and an empty one for unreadable."""

    def __init__(self) -> None:
        self.columns = ["path", *COLUMNS[3:]]
        self.meanwhile: Callable[[], object] = lambda: None

    def stream(self, paths: Iterator[str], batch_size: int) -> Iterator[pd.DataFrame]:
        names = list(paths)
        for start in range(0, len(names), batch_size):
            some = names[start : start + batch_size]
            self.meanwhile()
            bad = np.array([not Path(name).is_file() or not Path(name).stat().st_size for name in some])
            table = rows(some).drop(columns=[MODIFIED, MODEL])
            table.loc[bad, "error"] = "empty file"
            yield table


def watched(
    predictor: StandIn | Predictor, folder: Path, output: Path, wanted: int, seconds: float = 1, **options: Any
) -> list[str]:
    """Names of the photos that are predicted until there are so many, or until so long has passed."""
    names: list[str] = []
    signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGTERM))
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        chosen = {"overwrite": False, "batch_size": 2, "watch_seconds": 0.01, "checkpoint": Path(RUN)} | options
        with contextlib.suppress(Stopped), stoppable():
            for table in watch(predictor, folder, output, SimpleNamespace(**chosen)):  # type: ignore[arg-type]
                names += table["path"].tolist()
                if len(names) >= wanted:
                    signal.raise_signal(signal.SIGINT)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return names


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    for number in range(5):
        (tmp_path / f"in/{number}.png").write_text("pixels")
    return tmp_path / "in"


def test_a_watcher_goes_on_where_the_last_one_stopped(folder: Path, tmp_path: Path) -> None:
    output, predictor = tmp_path / "out.csv", StandIn()
    assert watched(predictor, folder, output, 3) == ["0.png", "1.png", "2.png", "3.png"]  # ends with its batch
    (folder / "new.png").write_text("pixels")
    os.utime(folder / "0.png", ns=(1, 1))
    assert watched(predictor, folder, output, 3) == ["0.png", "4.png", "new.png"]
    assert pd.read_csv(output)["path"].tolist() == ["0.png", "1.png", "2.png", "3.png", "0.png", "4.png", "new.png"]
    assert len(watched(predictor, folder, output, 6, overwrite=True)) == len(pd.read_csv(output)) == 6


def test_a_folder_that_goes_away_is_waited_for(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Also while its photos are being read: they are no unreadable ones."""
    predictor, away = StandIn(), tmp_path / "away"
    asked = 0

    def meanwhile() -> None:
        nonlocal asked
        asked += 1
        if asked == 2:
            folder.rename(away)
            threading.Timer(0.2, lambda: away.rename(folder)).start()

    predictor.meanwhile = meanwhile
    assert sorted(watched(predictor, folder, tmp_path / "out.csv", 5)) == [f"{number}.png" for number in range(5)]
    assert caplog.text.count("is not there, or cannot be read: waiting for it") == 1
    assert pd.read_csv(tmp_path / "out.csv", keep_default_na=False)["error"].eq("").all()


def test_an_unreadable_photo_is_a_row_once(folder: Path, tmp_path: Path) -> None:
    (folder / "3.png").write_bytes(b"")
    watched(StandIn(), folder, tmp_path / "out.csv", 5)
    found = pd.read_csv(tmp_path / "out.csv", keep_default_na=False)
    assert found.set_index("path")["error"].to_dict()["3.png"] == "empty file"
    assert watched(StandIn(), folder, tmp_path / "out.csv", 1) == []


def test_a_photo_that_is_copied_slowly_is_waited_for(folder: Path, tmp_path: Path) -> None:
    """It rests for longer than two looks, cut off in the middle, and then goes on: its last row counts."""
    (folder / "3.png").write_bytes(b"")
    threading.Timer(0.3, lambda: (folder / "3.png").write_text("pixels")).start()
    assert watched(StandIn(), folder, tmp_path / "out.csv", 6)[-1] == "3.png"
    found = read_output(tmp_path / "out.csv")
    assert (len(found), set(found["error"])) == (5, {""})


def test_another_model_judges_all_photos_anew(folder: Path, tmp_path: Path) -> None:
    output, another = tmp_path / "out.csv", "/runs/2"
    watched(StandIn(), folder, output, 5)
    for run in (another, RUN):
        watched(StandIn(), folder, output, 6, checkpoint=Path(run))
        assert pd.read_csv(output)[MODEL].tolist() == [RUN] * 5 + [another] * 5


def test_the_latest_row_of_each_photo_counts(tmp_path: Path) -> None:
    output = tmp_path / "out.csv"
    append(rows([]), output)
    assert len(read_output(output)) == 0
    append(rows(["a.png", "b.png"]).assign(score=[0.25, np.nan], error=["", "empty file"]), output)
    append(rows(["b.png"], NEW).assign(score=0.75), output)
    found = read_output(output)
    assert found[["path", "score", "error"]].to_numpy().tolist() == [["a.png", 0.25, ""], ["b.png", 0.75, ""]]


def test_two_watchers_of_one_output_are_refused(folder: Path, tmp_path: Path) -> None:
    with (
        FileLock(f"{tmp_path}/out.csv.lock"),
        pytest.raises(UserError, match=r"^another process watches with output=.*out.csv: "),
    ):
        watched(StandIn(), folder, tmp_path / "out.csv", 1)


def test_more_photos_than_are_read_ahead_keep_their_rows(finished: Path, tmp_path: Path) -> None:
    shades = [(number, 255 - number, 90) for number in range(200)]
    for number, shade in enumerate(shades):
        paint(tmp_path / f"in/{number:03}.png", shade)
    predictor = load(finished, "cpu")
    names = watched(predictor, tmp_path / "in", tmp_path / "out.csv", 200, seconds=60)
    assert sorted(names) == [f"{number:03}.png" for number in range(200)]
    found = read_output(tmp_path / "out.csv").sort_values("path")
    expected = predictor.predict([tmp_path / "in" / name for name in found["path"]])
    assert found["score"].tolist() == expected["score"].tolist()


# --- the whole --------------------------------------------------------------------------------------------------------


def started(run: Path, folder: Path, tmp_path: Path, name: str) -> subprocess.Popen:
    given = (f"checkpoint={run}", f"input={folder}", f"output={tmp_path / 'out.csv'}", "watch=true")
    arguments = [
        sys.executable,
        "-m",
        "defectcls.predict",
        *given,
        "watch_seconds=0.1",
        "device=cpu",
    ]
    log = (tmp_path / f"{name}.err").open("w")
    return subprocess.Popen(
        [*arguments, f"hydra.run.dir={tmp_path / name}"], stdout=subprocess.PIPE, stderr=log, text=True
    )


def waited_for(output: Path, count: int) -> list[str]:
    """Names in the output, as soon as there are so many."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if output.is_file() and output.read_bytes().count(b"\n") > count:
            return pd.read_csv(output)["path"].tolist()
        time.sleep(0.05)
    raise TimeoutError(output)


@pytest.mark.slow
def test_photos_arrive_the_watcher_is_killed_and_started_again(finished: Path, tmp_path: Path) -> None:
    folder, output = tmp_path / "in", tmp_path / "out.csv"
    for number in range(3):
        paint(folder / f"{number}.png", (40 * number, 90, 200))
    first = started(finished, folder, tmp_path, "first")
    waited_for(output, 3)
    paint(folder / "3.png", (10, 10, 200))
    waited_for(output, 4)
    first.kill()
    first.wait()
    with output.open("ab") as file:
        file.write(b'"torn.png","2023-')
    paint(folder / "4.png", (10, 200, 10))
    (folder / "5.png").write_text("no pixels")
    second = started(finished, folder, tmp_path, "second")
    assert waited_for(output, 6) == ["0.png", "1.png", "2.png", "3.png", "4.png", "5.png"]
    third = started(finished, folder, tmp_path, "third")
    assert third.wait(60) == 2
    assert "error: another process watches with output=" in (tmp_path / "third.err").read_text()
    second.send_signal(signal.SIGINT)
    out, _ = second.communicate(timeout=60)
    assert second.returncode == 1  # one could not be read
    assert "Traceback" not in (tmp_path / "second.err").read_text()
    assert "unreadable (not an image) 5.png" in out
    assert "1 could not be read" in out
    assert (tmp_path / "second/gallery.html").is_file()
    rejected = pd.read_csv(output).query("decision != 'accept' and path == '4.png'")
    assert out.count(" 4.png\n") == len(rejected)
