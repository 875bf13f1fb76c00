"""What is remembered: shared by jobs, whole after a kill, begun anew when damaged or too large."""

import logging
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from defectcls.data.store import Store


def store_in(folder: Path, max_gb: float | None = None) -> Store:
    return Store(folder, "a.sqlite", max_gb)


def test_a_folder_that_cannot_be_used_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "cache").write_text("")
    store = store_in(tmp_path / "cache")
    assert f"dataset.cache_dir={tmp_path / 'cache'}: nothing is kept there" in caplog.text
    store.put([(b"key", b"value")])
    assert store.get([b"key"]) == {b"key": b"value"}


def test_a_damaged_file_is_begun_anew_with_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.sqlite").write_bytes(b"not a database at all" * 100)
    store_in(tmp_path).put([(b"key", b"value")])
    (record,) = caplog.records
    assert record.getMessage() == f"{tmp_path / 'a.sqlite'} is damaged and begun anew: file is not a database"
    assert store_in(tmp_path).get([b"key"]) == {b"key": b"value"}


def test_damage_in_the_middle_is_noticed_when_it_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keys = [f"{number:05d}".encode() for number in range(2000)]
    store = store_in(tmp_path)
    store.put((key, key * 100) for key in keys)
    store.connection.close()
    content = bytearray((tmp_path / "a.sqlite").read_bytes())
    content[5000:-5000] = bytes(len(content) - 10000)
    (tmp_path / "a.sqlite").write_bytes(content)
    store = store_in(tmp_path)
    assert all(value == key * 100 for key, value in store.get(keys).items())
    assert "damaged and begun anew" in caplog.text
    store.put([(b"key", b"value")])
    assert store_in(tmp_path).get([b"key"]) == {b"key": b"value"}


def test_beyond_its_limit_what_was_stored_first_is_deleted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Ten entries of 100 kB in room for 850 kB: four fifths of it stay taken, by the last six."""
    keys = [str(number).encode() for number in range(10)]
    other = store_in(tmp_path)
    for key in keys:
        other.put([(key, key * 100_000)])
    with caplog.at_level(logging.INFO):
        assert list(store_in(tmp_path, 0.0011).get(keys)) == keys
        assert caplog.text == ""
        kept = store_in(tmp_path, 0.00085).get(keys)
    assert kept == {key: key * 100_000 for key in keys[4:]}
    assert "is larger than dataset.cache_max_gb=0.00085: what was stored first is deleted" in caplog.text
    assert (tmp_path / "a.sqlite").stat().st_size < 700_000
    other.put([(b"small", b"1")])  # who had it open goes on
    assert store_in(tmp_path, 0.00085).get([b"small", keys[4]]) == {b"small": b"1", keys[4]: keys[4] * 100_000}


def test_what_is_stored_again_is_no_longer_the_first(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    for key in (b"a", b"b", b"c", b"a"):
        store.put([(key, bytes(100_000))])
    assert list(store_in(tmp_path, 0.00025).get([b"a", b"b", b"c"])) == [b"a"]


def test_without_a_folder_it_lasts_as_long_as_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store(None, "a.sqlite", 1e-9)
    store.put([(b"key", b"value")])
    assert store.get([b"key"]) == {b"key": b"value"}
    assert Store(None, "a.sqlite", None).get([b"key"]) == {}
    assert list(tmp_path.iterdir()) == []


def test_an_entry_of_another_length_is_not_known(tmp_path: Path) -> None:
    store = store_in(tmp_path)
    store.put([(b"whole", b"1234"), (b"cut", b"12"), (b"long", b"12345"), (b"empty", b"")])
    assert store.get([b"whole", b"cut", b"long", b"empty", b"gone"], 4) == {b"whole": b"1234"}


def test_a_disk_that_fills_up_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = store_in(tmp_path)
    store.put([(b"before", b"1")])
    pages = store.connection.execute("PRAGMA page_count").fetchone()[0]
    store.connection.execute(f"PRAGMA max_page_count={pages}")
    store.put([(b"large", bytes(1_000_000))])
    assert "full" in caplog.text
    store.put([(b"after", b"2")])
    assert store.get([b"after"]) == {b"after": b"2"}
    assert store_in(tmp_path).get([b"before", b"large"]) == {b"before": b"1"}


def test_jobs_share_a_folder_and_a_killed_one_leaves_it_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def job(number: int) -> None:
        for turn in range(20):
            store = store_in(tmp_path)
            store.put([(f"{number}-{turn}".encode(), b"value")])
            store.connection.close()

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(job, range(8)))
    killed = sqlite3.connect(tmp_path / "a.sqlite")
    killed.execute("INSERT INTO entries VALUES (?, ?)", (b"half", b"done"))
    killed.close()  # without a commit, as the system closes the file of a killed process
    keys = [f"{number}-{turn}".encode() for number in range(8) for turn in range(20)]
    with caplog.at_level(logging.WARNING):
        assert store_in(tmp_path).get([*keys, b"half"]) == dict.fromkeys(keys, b"value")
    assert caplog.text == ""


def test_more_keys_than_one_statement_takes(tmp_path: Path) -> None:
    store, keys = store_in(tmp_path), [str(number).encode() for number in range(2003)]
    store.put((key, key[::-1]) for key in keys)
    assert store.get([*keys, b"unknown"]) == {key: key[::-1] for key in keys}
