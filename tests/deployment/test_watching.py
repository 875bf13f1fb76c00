"""Which photos arrive, what an output remembers, and a watcher that is killed, started again and stopped."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from filelock import FileLock

from defectcls.data.images import UnreadableImageError, read_file
from defectcls.data.inputs import Photos
from defectcls.deployment import watching
from defectcls.deployment.predictor import Predictor, load
from defectcls.deployment.watching import MODEL, MODIFIED, Watched, append, mend_table, read_output, watch
from defectcls.errors import UserError, stoppable
from defectcls.evaluation.drift import Drift
from tests.conftest import paint

Until = Callable[..., list[str]]
RUN = "/runs/1"
THEN = "2001-09-09T01:46:40Z"
COLUMNS = ["path", MODIFIED, MODEL, "decision", "prediction", "score", "p_ok", "p_bad"]
COLUMNS += ["unlike", "cause", "error"]


def rows(names: list[str], modified: str = THEN) -> pd.DataFrame:
    """What a watcher would have written of these."""
    values = {"decision": "accept", "prediction": "ok", "score": 0.1 + 0.2, "p_ok": 0.7, "p_bad": 0.3}
    values |= {"unlike": 0.5, "cause": "", "error": ""}
    return pd.DataFrame({"path": names, MODIFIED: modified, MODEL: RUN}).assign(**values)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    for number in range(5):
        (tmp_path / f"in/{number}.png").write_text("pixels")
    return tmp_path / "in"


# --- which arrive -----------------------------------------------------------------------------------------------------


def arrived(watched: Watched) -> list[str]:
    """Names at one look."""
    return [name for some in watched.look() for name, _, _ in some]


def put(file: Path, seconds: int, content: bytes = b"pixels") -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(content)
    os.utime(file, (seconds, seconds))


def test_a_version_of_a_photo_arrives_once_and_when_two_looks_find_it_the_same(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    put(tmp_path / "a.png", 7)
    assert arrived(watched) == []
    put(tmp_path / "a.png", 7, b"pixels and more")  # still being written
    assert arrived(watched) == []
    assert [*watched.look()] == [[("a.png", "1970-01-01T00:00:07.000000000Z", b"pixels and more")]]
    assert arrived(watched) == []
    put(tmp_path / "a.png", 8)
    assert (arrived(watched), arrived(watched), arrived(watched)) == ([], ["a.png"], [])
    assert arrived(Watched(tmp_path, [("a.png", "1970-01-01T00:00:08.000000000Z")])) == []


def test_what_changed_first_is_first_at_any_depth_and_some_at_a_time(tmp_path: Path) -> None:
    for name, seconds in {"c.png": 9, "deep/b.jpg": 9, "z.png": 7, "notes.txt": 1}.items():
        put(tmp_path / name, seconds)
    watched = Watched(tmp_path)
    assert arrived(watched) == []
    assert [[name for name, _, _ in some] for some in watched.look(2)] == [["z.png", "c.png"], ["deep/b.jpg"]]


def test_what_nobody_was_done_with_arrives_again(tmp_path: Path) -> None:
    put(tmp_path / "a.png", 7)
    watched = Watched(tmp_path)
    assert arrived(watched) == []
    for _ in range(2):
        with contextlib.closing(watched.look()) as looking:  # whoever takes it fails
            assert next(looking)[0][0] == "a.png"
    assert (arrived(watched), arrived(watched)) == (["a.png"], [])


def test_a_name_that_is_no_text_is_as_it_is_written(tmp_path: Path) -> None:
    put(tmp_path / b"caf\xe9.png".decode(errors="surrogateescape"), 7)
    watched = Watched(tmp_path)
    assert (arrived(watched), arrived(watched), arrived(watched)) == ([], ["caf\\udce9.png"], [])


def test_a_photo_that_cannot_be_read_is_told_once_and_holds_no_other_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = {f"{tmp_path}/held.png"}

    def reading(path: str) -> bytes:
        if path in held:
            raise UnreadableImageError("Permission denied")
        return read_file(path)

    monkeypatch.setattr(watching, "read_file", reading)
    put(tmp_path / "held.png", 7)
    put(tmp_path / "free.png", 8)
    watched = Watched(tmp_path)
    assert (arrived(watched), arrived(watched), arrived(watched)) == ([], ["free.png"], [])
    held.clear()
    assert (arrived(watched), arrived(watched)) == (["held.png"], [])
    said = [record.getMessage() for record in caplog.records]
    assert said == [f"{tmp_path}/held.png cannot be read: Permission denied; waiting for it"]


def test_a_folder_that_is_not_there_is_told_and_what_returns_with_it_is_looked_at_twice(folder: Path) -> None:
    watched = Watched(folder)
    assert arrived(watched) == []
    folder.rename(folder.with_name("away"))
    with pytest.raises(UserError, match=r"^the folder .*/in is not there, or cannot be read$"):
        arrived(watched)
    folder.with_name("away").rename(folder)
    assert arrived(watched) == []
    assert len(arrived(watched)) == 5


# --- what an output remembers -----------------------------------------------------------------------------------------


def test_a_table_is_begun_keeps_whole_rows_and_loses_a_torn_one(tmp_path: Path) -> None:
    output, names = tmp_path / "out.csv", ["a,b.png", 'quo"te.png', "new\nline.png", "last\nof all.png"]
    mend_table(output, COLUMNS, "no")
    assert (
        output.read_text()
        == '"path","modified","model","decision","prediction","score","p_ok","p_bad","unlike","cause","error"\n'
    )
    for name in names:
        whole = output.read_bytes()
        append(rows([name]), output)
    torn = output.read_bytes()[len(whole) :]
    mend_table(output, COLUMNS, "no")
    assert output.read_bytes() == whole + torn
    for cut in range(len(torn)):
        output.write_bytes(whole + torn[:cut])
        mend_table(output, COLUMNS, "no")
        assert output.read_bytes() == whole


def test_rows_are_restored_to_the_last_bit(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        append(rows([name]), tmp_path / "out.csv")
    read = pd.read_csv(tmp_path / "out.csv")
    assert read["score"].tolist() == [0.1 + 0.2] * 2
    assert read["path"].tolist() == ["a.png", "b.png"]


@pytest.mark.parametrize("content", [b"name,price\nscrew,3", b"one line", b"\n", b"\xff\xfe\x00", b'"path'])
def test_a_table_of_something_else_is_refused_and_left_alone(
    watched: Until, folder: Path, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(UserError, match=r"its columns are not path, modified, .*overwrite=true$"):
        watched(StandIn(), folder, tmp_path / "a.csv", 1)
    assert (tmp_path / "a.csv").read_bytes() == content


# --- the loop, with a stand-in that opens no image --------------------------------------------------------------------


class StandIn:
    """Takes every file that holds text for sound, and an empty one for unreadable."""

    def __init__(self) -> None:
        self.columns = ["path", *COLUMNS[3:]]
        self.meanwhile: Callable[[], object] = lambda: None

    def drift(self, window: int) -> Drift:
        return Drift(99, window)

    def predict(self, contents: Sequence[bytes]) -> pd.DataFrame:
        self.meanwhile()
        table = rows([""] * len(contents)).drop(columns=[MODIFIED, MODEL])
        return table.assign(error=["" if content else "empty file" for content in contents])


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Until:
    """Names of the photos that are predicted until there are so many, or until so long has passed."""

    def until(
        predictor: StandIn | Predictor, folder: Path, output: Path, wanted: int, seconds: float = 1, **options: Any
    ) -> list[str]:
        names: list[str] = []

        def counted(table: pd.DataFrame, to: Path) -> None:
            append(table, to)
            names.extend(table["path"])
            if len(names) >= wanted:
                signal.raise_signal(signal.SIGINT)

        monkeypatch.setattr(watching, "append", counted)
        signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGTERM))
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            chosen = {"overwrite": False, "batch_size": 2, "watch_seconds": 0.01, "checkpoint": Path(RUN), "window": 4}
            chosen |= options
            with stoppable():
                watch(predictor, Photos(folder, [], {}), SimpleNamespace(**chosen), output)  # type: ignore[arg-type]
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        return names

    return until


def test_a_watcher_goes_on_where_the_last_one_stopped(watched: Until, folder: Path, tmp_path: Path) -> None:
    output, predictor = tmp_path / "out.csv", StandIn()
    assert watched(predictor, folder, output, 3) == ["0.png", "1.png", "2.png", "3.png"]  # ends with its batch
    (folder / "new.png").write_text("pixels")
    os.utime(folder / "0.png", ns=(1, 1))
    assert watched(predictor, folder, output, 3) == ["0.png", "4.png", "new.png"]
    assert pd.read_csv(output)["path"].tolist() == ["0.png", "1.png", "2.png", "3.png", "0.png", "4.png", "new.png"]
    assert len(watched(predictor, folder, output, 6, overwrite=True)) == len(pd.read_csv(output)) == 6


def test_a_folder_that_goes_away_is_waited_for(
    watched: Until, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
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


def test_an_unreadable_photo_is_a_row_once(watched: Until, folder: Path, tmp_path: Path) -> None:
    (folder / "3.png").write_bytes(b"")
    watched(StandIn(), folder, tmp_path / "out.csv", 5)
    found = pd.read_csv(tmp_path / "out.csv", keep_default_na=False)
    assert found.set_index("path")["error"].to_dict()["3.png"] == "empty file"
    assert watched(StandIn(), folder, tmp_path / "out.csv", 1) == []


def test_a_photo_that_is_copied_slowly_is_waited_for(watched: Until, folder: Path, tmp_path: Path) -> None:
    """It rests for longer than two looks, cut off in the middle, and then goes on: its last row counts."""
    (folder / "3.png").write_bytes(b"")
    threading.Timer(0.3, lambda: (folder / "3.png").write_text("pixels")).start()
    assert watched(StandIn(), folder, tmp_path / "out.csv", 6)[-1] == "3.png"
    (found,) = read_output(tmp_path / "out.csv")
    assert (len(found), set(found["error"])) == (5, {""})


def test_another_model_judges_all_photos_anew(watched: Until, folder: Path, tmp_path: Path) -> None:
    output, another = tmp_path / "out.csv", "/runs/2"
    watched(StandIn(), folder, output, 5)
    for run in (another, RUN):
        watched(StandIn(), folder, output, 6, checkpoint=Path(run))
        assert pd.read_csv(output)[MODEL].tolist() == [RUN] * 5 + [another] * 5


def test_the_latest_row_of_each_photo_counts(tmp_path: Path) -> None:
    output = tmp_path / "out.csv"
    append(rows([]), output)
    assert [len(rows) for rows in read_output(output)] == [0]
    append(rows(["a.png", "b.png"]).assign(score=[0.25, np.nan], error=["", "empty file"]), output)
    append(rows(["b.png"], "2001-09-09T01:46:41Z").assign(score=0.75), output)
    (found,) = read_output(output)
    assert found[["path", "score", "error"]].to_numpy().tolist() == [["a.png", 0.25, ""], ["b.png", 0.75, ""]]


def test_two_watchers_of_one_output_are_refused(watched: Until, folder: Path, tmp_path: Path) -> None:
    with (
        FileLock(f"{tmp_path}/out.csv.lock"),
        pytest.raises(UserError, match=r"^another process watches with output=.*out.csv: "),
    ):
        watched(StandIn(), folder, tmp_path / "out.csv", 1)


@pytest.mark.slow
def test_more_photos_than_are_read_ahead_keep_their_rows(watched: Until, finished: Path, tmp_path: Path) -> None:
    shades = [(number, 255 - number, 90) for number in range(200)]
    for number, shade in enumerate(shades):
        paint(tmp_path / f"in/{number:03}.png", shade)
    predictor = load(finished, "cpu")
    names = watched(predictor, tmp_path / "in", tmp_path / "out.csv", 200, seconds=60)
    assert sorted(names) == [f"{number:03}.png" for number in range(200)]
    found = pd.concat(read_output(tmp_path / "out.csv")).sort_values("path")
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
