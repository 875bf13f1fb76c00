"""What is added is there, in order, once, whoever writes at the same time; photos are kept by the rule."""

import os
import sqlite3
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
from sqlalchemy import event

from defectcls.data.verdicts import STANDING, UNSURE, VERDICTS
from defectcls.deployment.decisions import Decisions, Kept, digest_of, moment
from defectcls.errors import UserError

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)


def row(**other: Any) -> dict[str, Any]:
    plain = {"time": moment(NOON), "source": "http", "name": "a.png", "photo": "ab" * 16, "model": "screw"}
    plain |= {"model_digest": "cd" * 32, "score": 0.25, "decision": "accept", "prediction": "good", "error": ""}
    return plain | {"seconds": 0.5, "unlike": None, "cause": "", "reason": "", "chance": None} | other


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return request.getfixturevalue("postgresql") if request.param != "sqlite" else f"{tmp_path}/rows.sqlite"


@pytest.fixture
def decisions(address: str) -> Iterator[Decisions]:
    opened = Decisions(address)
    with opened._engine.begin() as connection:  # of a database that many tests share
        connection.exec_driver_sql("DELETE FROM decisions")
        connection.exec_driver_sql("DELETE FROM deliveries")
    yield opened
    opened._engine.dispose()


def test_rows_come_back_as_they_were_given(decisions: Decisions, address: str) -> None:
    first = decisions.add([row(), row(name="b.png", score=np.float64(0.1) + 0.2, more="ignored")])
    second = decisions.add([row(decision="", prediction="", score=float("nan"), error="not an image")])
    assert second[0] > first[1] > first[0]
    assert decisions.add([]) == []
    again = Decisions(address)  # another process's
    expected = [{"id": first[0], **row()}, {"id": first[1], **row(name="b.png", score=0.1 + 0.2)}]
    assert again.after(0, 2) == expected
    assert again.after(first[1], 9) == [
        {"id": second[0], **row(decision="", prediction="", score=None, error="not an image")}
    ]
    assert [one["id"] for one in again.recent(2)] == [second[0], first[1]]


def test_a_name_that_databases_refuse_is_told_as_text(decisions: Decisions) -> None:
    decisions.add([row(name="a\0b\udcff.png")])
    assert decisions.recent(1)[0]["name"] == r"a\0b\udcff.png"


def test_a_row_that_is_no_row_leaves_none_of_those_beside_it(decisions: Decisions) -> None:
    with pytest.raises(Exception, match="NOT NULL|not-null|null value"):
        decisions.add([row(), row(name=None)])
    assert decisions.recent(9) == []


def test_a_database_of_another_tool_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "other.sqlite") as other:
        other.execute("CREATE TABLE verdicts (id INTEGER, time TEXT, who TEXT, guilty TEXT)")
    lacking = "chance, label, model_digest, name, photo, reason, seconds, undoes"
    expected = rf"other.sqlite is of another tool or version: its table verdicts lacks {lacking}; give another one"
    with pytest.raises(UserError, match=expected):
        Decisions(f"sqlite:///{tmp_path}/other.sqlite")
    with sqlite3.connect(tmp_path / "other.sqlite") as other:
        assert other.execute("SELECT name FROM sqlite_master").fetchall() == [("verdicts",)]


def test_counts_are_of_the_time_since(decisions: Decisions) -> None:
    kinds = ["accept", "accept", "review", "", "reject", "accept"]
    decisions.add([row(decision=kind, time=moment(NOON + timedelta(hours=at))) for at, kind in enumerate(kinds)])
    assert decisions.counts(NOON) == {"accept": 3, "review": 1, "reject": 1, "unreadable": 1}
    east = datetime.fromisoformat("2026-03-01T16:00:00+02:00")  # two hours after noon of UTC
    assert decisions.counts(east) == {"accept": 1, "review": 1, "reject": 1, "unreadable": 1}
    assert decisions.counts(NOON + timedelta(days=1)) == dict.fromkeys(["accept", "review", "reject", "unreadable"], 0)


def test_a_sink_goes_on_where_it_was(decisions: Decisions, address: str) -> None:
    assert decisions.cursor("webhook") is None
    decisions.move_cursor("webhook", 7)
    decisions.move_cursor("webhook", 9)
    decisions.move_cursor("mqtt", 3)
    again = Decisions(address)
    assert (again.cursor("webhook"), again.cursor("mqtt")) == (9, 3)


def test_what_a_source_has_had_judged_is_known(decisions: Decisions) -> None:
    decisions.add([row(source="folder:a", name=name) for name in ("x", "x", "y")] + [row(source="folder:b", name="z")])
    assert decisions.judged("folder:a") == {("x", "ab" * 16), ("y", "ab" * 16)}


def test_a_reader_misses_no_row_of_many_writers(decisions: Decisions, address: str) -> None:
    """Each writer has a connection of its own, as if a process: no id is seen before a smaller one."""
    others, seen, last = [Decisions(address) for _ in range(4)], [], 0
    threads = [threading.Thread(target=lambda to=to: [to.add([row(), row()]) for _ in range(20)]) for to in others]
    for thread in threads:
        thread.start()
    while len(seen) < 160:
        working = any(thread.is_alive() for thread in threads)
        some = [one["id"] for one in decisions.after(last, 1000)]
        seen += some
        last = some[-1] if some else last
        assert working or some or len(seen) == 160
    assert len(set(seen)) == 160
    assert seen == sorted(seen) == [one["id"] for one in decisions.after(0, 1000)]
    for one in others:
        one._engine.dispose()


def test_the_newest_are_found_without_a_look_at_all(tmp_path: Path) -> None:
    decisions = Decisions(f"sqlite:///{tmp_path}/rows.sqlite")
    plans: list[str] = []
    with decisions._engine.connect() as connection:

        @event.listens_for(decisions._engine, "before_cursor_execute")
        def explained(_: Any, cursor: Any, statement: str, parameters: Any, *__: Any) -> None:
            plan = connection.connection.cursor()
            plan.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)
            plans.append(" ".join(str(step[-1]) for step in plan.fetchall()))

        decisions.recent(1)
        decisions.after(7, 2)
        decisions.counts(NOON)
        decisions.judged("http")
    assert plans[0] == "SCAN decisions"  # by its id, until there are as many as asked for
    assert plans[1] == "SEARCH decisions USING INTEGER PRIMARY KEY (rowid>?)"
    assert "ix_decisions_time" in plans[2]
    assert "ix_decisions_source" in plans[3]
    assert "TEMP B-TREE FOR ORDER BY" not in " ".join(plans)


def test_a_commit_is_on_the_disk_before_it_is_told(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/rows.sqlite"
    with Decisions(url)._engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2  # FULL


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("://me:secret@here", "no address of a database: give one such as postgresql://user@host/name"),
        ("cassandra://here/rows", "cannot be used"),
        (
            "postgresql://me:secret@127.0.0.1:1/rows",
            r"postgresql://me:\*\*\*@127.0.0.1:1/rows cannot",
        ),
        ("sqlite:////no/such/folder/rows.sqlite", "unable to open database file"),
    ],
)
def test_a_database_that_is_none_is_told(url: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as told:
        Decisions(url)
    assert "secret" not in str(told.value)


def test_a_file_that_is_no_database_is_told_and_left(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("no database, but somebody's notes " * 40)
    with pytest.raises(UserError, match="file is not a database"):
        Decisions(str(file))
    assert file.read_text() == "no database, but somebody's notes " * 40
    with pytest.raises(sqlite3.DatabaseError):
        sqlite3.connect(file).execute("SELECT 1 FROM decisions")


def test_the_rule_says_which_photos_are_kept(tmp_path: Path) -> None:
    kept = {
        "none": set(),
        "reject": {"reject"},
        "review": {"reject", "review"},
        "all": {"accept", "review", "reject", "unreadable"},
    }
    for keep, expected in kept.items():
        photos = Kept(tmp_path / keep, keep, 1)  # type: ignore[arg-type]
        for decision in ("accept", "review", "reject", ""):
            photos.add(b"photo", "a.PNG", "ab", decision)
        assert {file.relative_to(tmp_path / keep).as_posix() for file in (tmp_path / keep).rglob("*.*")} == {
            f"{kind}/ab.png" for kind in expected
        }
    assert photos.find(row(photo="ab", decision="")) == tmp_path / "all" / "unreadable" / "ab.png"
    assert photos.find(row(photo="cd", decision="")) is None


def test_a_kept_array_is_judged_again_as_the_same_pixels(tmp_path: Path) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)[:, ::-1]
    Kept(tmp_path, "all", 1).add(frame, "frame 7", digest_of(frame), "accept")
    (file,) = tmp_path.rglob("*.png")
    np.testing.assert_array_equal(imagecodecs.png_decode(file.read_bytes()), frame)
    assert digest_of(frame) == digest_of(frame.tobytes()) == file.stem


def test_a_name_leads_nowhere_else(tmp_path: Path) -> None:
    Kept(tmp_path / "kept", "all", 1).add(b"photo", "../../etc/x.png/../y.sh", "ab", "accept")
    assert [file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("ab*")] == ["kept/accept/ab.bin"]


def test_the_oldest_photos_make_room(tmp_path: Path) -> None:

    for run in range(2):  # the second finds what the first has left
        photos = Kept(tmp_path, "all", 10e-6)  # ten photos of a kilobyte
        for number in range(10 * run, 10 * run + 10):
            photos.add(bytes(1000), "a.png", f"{number:02}", "accept")
            os.utime(tmp_path / "accept" / f"{number:02}.png", (number, number))
        left = sorted(int(file.stem) for file in tmp_path.rglob("*.png"))
        assert sum(file.stat().st_size for file in tmp_path.rglob("*.png")) <= 10_000
        assert left == list(range(left[0], 10 * run + 10))
        assert len(left) >= 9


def verdict(**other: Any) -> dict[str, Any]:
    plain = {"time": "2026-11-29T10:00:00.000+00:00", "who": "ann", "photo": "ab", "name": "a.png", "label": "good"}
    plain |= {"model_digest": "cd", "reason": "audit", "chance": 0.25, "seconds": 2.5, "undoes": None}
    return plain | other


def test_of_each_photo_and_person_the_last_verdict_stands_that_is_not_taken_back(tmp_path: Path) -> None:
    table = Decisions(f"sqlite:///{tmp_path}/decisions.sqlite")
    [first] = table.add([verdict()], VERDICTS)
    [second] = table.add([verdict(label="crack")], VERDICTS)
    [other] = table.add([verdict(who="bob", label=UNSURE, chance=None)], VERDICTS)
    assert table.rows(STANDING) == [
        verdict(label="crack") | {"id": second},
        verdict(who="bob", label="", chance=None) | {"id": other},
    ]
    table.add([verdict(undoes=second)], VERDICTS)
    assert table.rows(STANDING)[0] == verdict() | {"id": first}
    table.add([verdict(undoes=first)], VERDICTS)
    assert [row["who"] for row in table.rows(STANDING)] == ["bob"]
