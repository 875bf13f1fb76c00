"""Rows that are kept: right or not known, shared by jobs, whole after a kill, bounded, in memory where no disk is."""

import errno
import io
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from defectcls.data.store import Rows, Store

SHAPE = (3, 4)
ROW = 3 * 4 * 4  # bytes


def key_of(number: int) -> bytes:
    return number.to_bytes(16, "big")


def values_of(numbers: list[int]) -> np.ndarray:
    return np.stack([np.random.default_rng(number).normal(size=SHAPE).astype(np.float32) for number in numbers])


def rows_in(folder: Path | None, max_gb: float = 1, kind: str = "features") -> Rows:
    return Rows(Store(folder, max_gb), kind, SHAPE, np.float32)


def add(rows: Rows, *numbers: int) -> Rows:
    rows.add([key_of(number) for number in numbers], values_of(list(numbers)))
    return rows


def known(rows: Rows, count: int) -> list[int]:
    """Numbers whose rows are known; each of them is right."""
    positions = rows.find([key_of(number) for number in range(count)])
    numbers = np.flatnonzero(positions >= 0).tolist()
    if numbers:
        assert np.array_equal(rows[positions[numbers]], values_of(numbers))
    return numbers


# --- what is kept -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_disk", [True, False])
def test_rows_are_found_by_key_in_any_order_and_are_the_callers_own(tmp_path: Path, on_disk: bool) -> None:
    rows = add(add(rows_in(tmp_path if on_disk else None), 3, 1, 2), 7, 1)
    positions = rows.find([key_of(number) for number in (1, 9, 7, 3)])
    assert (positions < 0).tolist() == [False, True, False, False]
    taken = rows[positions]
    assert np.array_equal(taken[[0, 2, 3]], values_of([1, 7, 3]))
    assert not taken[1].any()
    taken[:] = 0
    assert known(rows, 10) == [1, 2, 3, 7]
    assert rows.nbytes == 4 * ROW  # what is known already is not kept twice
    assert rows.find([]).shape == (0,)


def test_another_process_finds_them_and_another_kind_or_shape_does_not(tmp_path: Path) -> None:
    first = add(rows_in(tmp_path), 0, 1)
    second = rows_in(tmp_path)
    assert known(second, 3) == [0, 1]
    add(first, 2)
    assert known(second, 3) == [0, 1]
    with second.lock():
        assert known(second, 3) == [0, 1, 2]
    assert known(rows_in(tmp_path, kind="others"), 3) == []
    assert Rows(Store(tmp_path), "features", (4, 3), np.float32).find([key_of(0)]).tolist() == [-1]


def test_a_key_may_be_asked_for_twice_at_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    add(rows_in(tmp_path), 0, 1)
    assert (rows_in(tmp_path).find([key_of(number) for number in (0, 1, 0, 1, 0)]) >= 0).all()
    assert caplog.text == ""


def test_positions_stay_as_rows_are_added_by_others(tmp_path: Path) -> None:
    rows, other = add(rows_in(tmp_path), 0), add(rows_in(tmp_path), 1)
    positions = rows.find([key_of(0)])
    add(other, 2)
    with rows.lock():
        add(rows, 3)
    assert np.array_equal(rows[positions], values_of([0]))
    assert known(rows, 4) == [0, 1, 2, 3]


def test_in_memory_nothing_outlasts_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with add(rows_in(None), 0).lock():
        assert known(rows_in(None), 1) == []
    assert list(tmp_path.iterdir()) == []


# --- faults -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "damage", "right"),
    [
        (
            "rows",
            lambda content: content[: 2 * ROW + 5] + bytes([content[2 * ROW + 5] ^ 1]) + content[2 * ROW + 6 :],
            3,
        ),
        ("rows", lambda content: content[: 3 * ROW + 7], 3),  # cut
        ("rows", lambda content: b"", 0),
        ("rows", lambda content: b"of somebody else" * 50, 0),
        ("keys", lambda content: content[:50], 2),  # a key and a half more were to be written
        ("keys", lambda content: content[:16] + b"\0\0\0\0" + content[20:], 3),
        ("keys", lambda content: b"no keys at all!!" * 100, 0),
    ],
)
def test_a_damaged_row_is_not_known_and_made_anew(tmp_path: Path, file: str, damage: Any, right: int) -> None:
    add(rows_in(tmp_path), 0, 1, 2, 3)
    (path,) = tmp_path.glob(f"*/*.{file}")
    path.write_bytes(damage(path.read_bytes()))
    rows = rows_in(tmp_path)
    assert len(known(rows, 4)) == right
    add(rows, 0, 1, 2, 3)
    assert known(rows, 4) == known(rows_in(tmp_path), 4) == [0, 1, 2, 3]


def test_what_a_killed_job_has_left_is_no_row(tmp_path: Path) -> None:
    """Rows without keys, and keys without rows."""
    folder = add(rows_in(tmp_path), 0).folder
    assert folder
    (folder / "a.rows").write_bytes(bytes(5 * ROW))
    (folder / "b.keys").write_bytes(bytes(100))
    assert known(rows_in(tmp_path), 3) == [0]


def test_a_folder_that_cannot_be_used_is_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "cache").write_text("")
    store = Store(tmp_path / "cache", 1)
    kinds = [Rows(store, kind, SHAPE, np.float32) for kind in ("one", "other")]
    for rows in kinds:
        with rows.lock():
            assert known(add(rows, 0, 1), 3) == [0, 1]
    (record,) = caplog.records
    assert record.getMessage().startswith(f"dataset.cache_dir={tmp_path / 'cache'}: nothing is kept there for the next")


def test_a_full_disk_is_one_warning_and_what_was_written_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rows, plain = add(rows_in(tmp_path), 0, 1), Path.open

    class Full(io.FileIO):
        def write(self, content: Any) -> int:
            super().write(memoryview(content)[:ROW])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def open_full(path: Path, mode: str = "r", **options: Any) -> Any:
        return Full(path, mode) if mode == "ab" else plain(path, mode, **options)

    monkeypatch.setattr(Path, "open", open_full)
    assert known(add(add(rows, 2, 3), 4), 6) == [0, 1, 2, 3, 4]
    (record,) = caplog.records
    assert "No space left on device" in record.getMessage()
    monkeypatch.undo()
    assert known(rows_in(tmp_path), 6) == [0, 1]


def test_a_disk_that_really_ends_is_one_warning(tmp_path: Path) -> None:
    """A limit on the size of files, in a process of its own, is as near as one comes without a disk of one's own."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    code = f"from tests.data.test_store import *; assert known(add(rows_in(Path({str(tmp_path)!r})), *range(50)), 50)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, preexec_fn=limit)
    assert done.returncode == 0, done.stderr
    (line,) = done.stderr.splitlines()
    assert "nothing is kept there for the next run: [Errno 27] File too large" in line
    assert known(rows_in(tmp_path), 50) == []


JOB = """
import sys, time
from tests.data.test_store import *
folder, seconds = Path(sys.argv[1]), float(sys.argv[2])
rows = rows_in(folder)
with rows.lock():
    for number in range(6):
        if rows.find([key_of(number)])[0] < 0:
            print(number, flush=True)
            time.sleep(seconds)
            add(rows, number)
"""


def job(folder: Path, seconds: float) -> subprocess.Popen:
    command = [sys.executable, "-c", JOB, str(folder), str(seconds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_of_two_jobs_one_computes_and_the_other_waits_and_finds(tmp_path: Path) -> None:
    outputs = [process.communicate() for process in [job(tmp_path, 0.1), job(tmp_path, 0.1)]]
    assert sorted(output.split() for output, _ in outputs) == [[], list("012345")]
    assert sum("another job computes" in errors for _, errors in outputs) <= 1


def test_a_killed_job_leaves_its_rows_and_no_lock(tmp_path: Path) -> None:
    process = job(tmp_path, 0.3)
    assert process.stdout
    for _ in range(4):
        process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.wait()
    rows = rows_in(tmp_path)
    with rows.lock():
        assert known(rows, 6) == [0, 1, 2]


# --- room -------------------------------------------------------------------------------------------------------------


def test_what_was_used_longest_ago_makes_room(tmp_path: Path) -> None:
    for number, age in ((0, 300), (1, 200), (2, 100)):
        folder = add(rows_in(tmp_path, kind=f"kind{number}"), number).folder
        assert folder
        for file in folder.glob("*.rows"):
            os.utime(file, (1e9 - age, 1e9 - age))
    assert known(rows_in(tmp_path, kind="kind0"), 1) == [0]  # used now
    (tmp_path / folder / "left.rows").write_bytes(bytes(ROW))  # of a killed job, and the youngest
    add(rows_in(tmp_path, 4 * ROW / 1e9, kind="new"), 3)
    kept = [
        number for number in range(4) if known(rows_in(tmp_path, kind=("kind0", "kind1", "kind2", "new")[number]), 4)
    ]
    assert kept == [0, 2, 3]
    add(rows_in(tmp_path, ROW / 1e9, kind="last"), 4)
    assert known(rows_in(tmp_path, kind="last"), 5) == [4]
    assert len(list(tmp_path.glob("*/*.rows"))) == 1


def test_a_file_that_another_job_deletes_meanwhile_is_no_hindrance(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other/gone.rows").symlink_to("nowhere")  # listed, and not there when it is asked for its size
    add(rows_in(tmp_path), 0)
    assert known(rows_in(tmp_path), 1) == [0]
    assert not caplog.records


def test_what_this_run_uses_is_not_deleted_and_the_rest_stays_in_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = rows_in(tmp_path, 3 * ROW / 1e9)
    for number in range(5):
        add(rows, number)
    assert known(rows, 5) == [0, 1, 2, 3, 4]
    assert known(rows_in(tmp_path), 5) == [0, 1, 2]
    (record,) = caplog.records
    assert "is taken by this run alone" in record.getMessage()


def test_who_has_rows_mapped_keeps_them(tmp_path: Path) -> None:
    rows = add(rows_in(tmp_path), 0, 1)
    add(rows_in(tmp_path, 2 * ROW / 1e9, kind="other"), 5, 6)
    assert known(rows_in(tmp_path), 2) == []
    assert known(rows, 2) == [0, 1]
    assert known(add(rows, 2), 3) == [0, 1, 2]
