"""The file of decoded images: of one state of the data, made once, whole or not at all, never larger than allowed."""

import errno
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from defectcls.data import pixel_file
from defectcls.data.digests import digest_files
from defectcls.data.images import decode
from defectcls.data.pixel_file import Decoded, Files, open_pixels, pixel_path
from defectcls.errors import UserError

SIDE = 8
JOB = """
import sys, time
from pathlib import Path
from defectcls.data import pixel_file
from tests.data.test_pixel_file import files_in

plain, log, seconds = pixel_file.decode, open(sys.argv[2], "a"), float(sys.argv[3])

def decode(*given):
    log.write("decoded\\n")
    log.flush()
    time.sleep(seconds)
    return plain(*given)

pixel_file.decode = decode
root = Path(sys.argv[1])
assert pixel_file.open_pixels(root / "cache", files_in(root), 1)
"""


def photos(root: Path, count: int = 12) -> Path:
    """Of a kind that is decoded without torch, which takes seconds to import."""
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (12, 10, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{number:02d}.bmp")
    return root


def files_in(root: Path, size: int = SIDE, resize: Any = "squash", names: list[str] | None = None) -> Files:
    names = names or sorted(path.name for path in root.glob("*.bmp"))
    known = digest_files([f"{root}/{name}" for name in names])
    return Files(root, pd.Series(names, dtype="str").array, known, size, resize, "8")


def expected(files: Files) -> np.ndarray:
    return np.stack([decode(files.root / name, files.size, files.resize, files.depth) for name in files.names])


def opened(files: Files, max_gb: float = 1) -> np.ndarray:
    decoded = open_pixels(files.root / "cache", files, max_gb)
    assert isinstance(decoded, Decoded)
    return decoded.pixels


def kept(root: Path) -> list[Path]:
    return sorted((root / "cache").glob("*.pixels"))


def never(*_: object) -> None:
    pytest.fail("decoded")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return photos(tmp_path)


# --- what it holds ----------------------------------------------------------------------------------------------------


def test_pixels_are_decoded_once_and_then_mapped(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = files_in(root)
    assert np.array_equal(opened(files), expected(files))
    monkeypatch.setattr(pixel_file, "decode", never)
    again = opened(files_in(root))
    assert np.array_equal(again, expected(files))
    assert not again.flags.writeable
    assert {path.suffix for path in (root / "cache").iterdir()} <= {".pixels", ""}


def test_unreadable_files_are_remembered_with_their_reason(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "03.bmp").write_bytes(b"")
    (root / "11.bmp").write_bytes(b"what")
    files = files_in(root)
    for _ in range(2):
        found = open_pixels(root / "cache", files, 1)
        assert found is not None
        assert found.unreadable == {3: "empty file", 11: "not an image"}
        assert np.array_equal(found.pixels, expected(files.keep(np.delete(np.arange(12), [3, 11]))))
        monkeypatch.setattr(pixel_file, "decode", never)


def test_any_change_is_another_file(root: Path) -> None:
    names = sorted(path.name for path in root.glob("*.bmp"))
    states = [files_in(root), files_in(root, size=9), files_in(root, resize="pad")]
    states += [files_in(root, names=names[::-1]), files_in(root, names=names[:-1]), files_in(root, names=[*names, "a"])]
    with Image.open(root / "05.bmp") as image:
        image.putpixel((0, 0), (1, 2, 3))
        image.save(root / "05.bmp")
    states.append(files_in(root))
    assert len({pixel_path(root, files) for files in states}) == len(states)
    (root / "05.bmp").rename(root / "055.bmp")
    assert pixel_path(root, files_in(root)) == pixel_path(root, states[-1])  # names do not matter


def test_a_file_that_changes_or_goes_before_it_is_decoded_is_named(root: Path) -> None:
    files = files_in(root)
    content = (root / "04.bmp").read_bytes()
    (root / "04.bmp").write_bytes(content + b" ")
    with pytest.raises(UserError, match=r"04.bmp has changed since the start of this run"):
        open_pixels(root / "cache", files, 1)
    (root / "04.bmp").unlink()
    with pytest.raises(UserError, match=r"04.bmp was there at the start of this run and is not any more"):
        open_pixels(root / "cache", files, 1)
    assert [path.name for path in (root / "cache").iterdir()] in (["lock"], [])


@pytest.mark.parametrize("side", [7, 33, 64, 224])
def test_checksums_tell_a_changed_byte_and_a_lost_block(side: int) -> None:
    rng, size = np.random.default_rng(0), 3 * side**2
    for image in (rng.integers(0, 256, (3, side, side), dtype=np.uint8), np.full((3, side, side), 255, np.uint8)):
        right = pixel_file.checksums(image[None])[0]
        shifted = np.zeros(size + 3, np.uint8)[3:].reshape(image.shape)  # as an image of odd size lies in the file
        shifted[:] = image
        assert pixel_file.checksums(shifted[None])[0] == right
        for place in {0, size - 1, *rng.integers(0, size, 20).tolist()}:
            changed, lost = image.copy().reshape(-1), image.copy().reshape(-1)
            changed[place] ^= 1
            lost[place : place + 512] = 0
            assert pixel_file.checksums(changed.reshape(image.shape)[None])[0] != right
            assert pixel_file.checksums(lost.reshape(image.shape)[None])[0] != right


# --- faults -----------------------------------------------------------------------------------------------------------


def test_a_killed_job_leaves_nothing_broken(root: Path) -> None:
    log = root / "log"
    job = subprocess.Popen([sys.executable, "-c", JOB, root, log, "0.2"])
    while not log.exists() or log.read_text().count("decoded") < 10:  # the first task of eight is written then
        assert job.poll() is None
        time.sleep(0.02)
    job.send_signal(signal.SIGKILL)
    job.wait()
    assert list((root / "cache").glob("*.part"))
    assert kept(root) == []
    files = files_in(root)
    assert np.array_equal(opened(files), expected(files))
    assert len(kept(root)) == 1
    assert not list((root / "cache").glob("*.part"))


def test_two_jobs_at_once_decode_once(root: Path) -> None:
    log = root / "log"
    jobs = [subprocess.Popen([sys.executable, "-c", JOB, root, log, "0.05"]) for _ in range(2)]
    assert [job.wait() for job in jobs] == [0, 0]
    assert log.read_text().count("decoded") == 12


@pytest.mark.parametrize("damage", ["a pixel", "a sum", "cut", "cut to nothing", "footer", "foreign"])
def test_a_damaged_file_is_made_anew_with_one_warning(
    root: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    files = files_in(root)
    opened(files)
    (path,) = kept(root)
    content = bytearray(path.read_bytes())
    pixels = 12 * 3 * SIDE**2
    match damage:
        case "a pixel":
            content[1000] ^= 1
        case "a sum":
            content[pixels + 5] ^= 1
        case "cut":
            content = content[:-1000]
        case "cut to nothing":
            content = bytearray()
        case "footer":
            content[-25] ^= 255
        case "foreign":
            other = files_in(root, names=["00.bmp", "01.bmp"])
            opened(other)
            content = bytearray(pixel_path(root / "cache", other).read_bytes())
    path.write_bytes(content)
    assert np.array_equal(opened(files), expected(files))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert f"{path} is damaged and made anew" in caplog.text
    caplog.clear()
    assert np.array_equal(opened(files), expected(files))
    assert caplog.text == ""


def test_a_full_disk_is_one_warning(
    root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plain, written = Path.open, 0

    class Full:
        def __init__(self, file: Any) -> None:
            self.file = file

        def __enter__(self) -> "Full":
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def write(self, content: bytes) -> int:
            nonlocal written
            written += memoryview(content).nbytes
            if written > 1000:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return self.file.write(content)

    def open_full(path: Path, mode: str = "r", **options: Any) -> Any:
        file = plain(path, mode, **options)
        return Full(file) if mode == "w+b" else file

    monkeypatch.setattr(Path, "open", open_full)
    assert open_pixels(root / "cache", files_in(root), 1) is None
    (record,) = caplog.records
    assert record.getMessage() == (
        f"dataset.cache_dir={root}: decoded images are not kept there: [Errno 28] No space left on device"
    )
    assert not [path for path in (root / "cache").iterdir() if path.name != "lock"]


def test_a_disk_that_really_ends_is_one_warning(root: Path) -> None:
    """A limit on the size of files, in a process of its own, is as near as one comes without a disk of one's own."""
    code = """
import resource, signal, sys
from pathlib import Path
from defectcls.data.pixel_file import open_pixels
from tests.data.test_pixel_file import files_in
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
root = Path(sys.argv[1])
assert open_pixels(root / "cache", files_in(root), 1) is None
"""
    done = subprocess.run([sys.executable, "-c", code, root], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (line,) = done.stderr.splitlines()
    assert "decoded images are not kept there: [Errno 27] File too large" in line
    assert not [path for path in (root / "cache").iterdir() if path.name != "lock"]


def test_a_folder_that_cannot_be_used_is_one_warning(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (root / "cache").write_text("")
    assert open_pixels(root / "cache", files_in(root), 1) is None
    (record,) = caplog.records
    assert "decoded images are not kept there" in record.getMessage()


# --- room -------------------------------------------------------------------------------------------------------------


def test_what_was_used_longest_ago_makes_room(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    states = [files_in(root, size=size) for size in (8, 9, 10)]
    paths = [pixel_path(root / "cache", files) for files in states]
    for age, (path, files) in enumerate(zip(paths, states, strict=True)):
        opened(files)
        os.utime(path, (1000 + age, 1000 + age))
    first = opened(states[0])  # used now
    (root / "cache" / "other.part").write_bytes(b"of a killed job")
    new = files_in(root, size=11)
    taken = sum(path.stat().st_size for path in paths)
    opened(new, (taken + new.bytes - 1) / 1e9)
    assert set(kept(root)) == {paths[0], paths[2], pixel_path(root / "cache", new)}
    opened(files_in(root, size=12), 12 * 3 * 12**2 / 1e9)
    assert kept(root) == [pixel_path(root / "cache", files_in(root, size=12))]
    assert np.array_equal(first, expected(states[0]))  # who has it mapped keeps it
    assert not list((root / "cache").glob("*.part"))
