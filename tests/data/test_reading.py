"""One read of every file, wherever its pixels are kept; a later run reads nothing that is as before."""

import hashlib
import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from defectcls.data import reading
from defectcls.data.duplicates import COARSE, THUMBNAIL, near_identical_pairs
from defectcls.data.images import decode
from defectcls.data.reading import Images, choose_place
from defectcls.data.store import Rows
from defectcls.errors import UserError
from tests.data.test_datamodule import module

CPU = torch.device("cpu")
GPU = torch.device("cuda:0")
SIDE = 8
SIZE = 12 * 3 * SIDE**2  # bytes of all pixels
EVERY = np.arange(12)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Twelve photos, written long ago."""
    for number in range(12):
        pixels = np.random.default_rng(number).integers(0, 256, (12, 10, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number:02d}.bmp")
    return aged(tmp_path)


def aged(root: Path) -> Path:
    """With all files a minute old: what was just written may be written again within one tick of the clock."""
    for path in root.glob("*.*"):
        os.utime(path, ns=(0, time.time_ns() - 60 * 10**9))
    return root


def read(root: Path, size: int = SIDE, names: list[str] | None = None, **options: Any) -> Images:
    names = names or sorted(path.name for path in root.glob("*.bmp"))
    settings = module(root, {"cache_dir": root / "cache"} | options).settings
    return Images([f"{root}/{name}" for name in names], settings, (size, size), CPU)


def expected(root: Path, rows: Any = EVERY, size: int = SIDE, resize: Any = "squash") -> np.ndarray:
    return np.stack([decode(root / f"{row:02d}.bmp", (size, size), resize, "8") for row in rows])


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files whose bytes are read, in any order of threads."""
    names: list[str] = []
    plain = reading.read_file
    monkeypatch.setattr(reading, "read_file", lambda path: names.append(Path(path).name) or plain(path))
    return names


# --- one read ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache_max_gb", [1, 1e-6])
def test_a_file_is_read_once_and_in_a_later_run_not_at_all(
    root: Path, reads: list[str], cache_max_gb: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Digest, record, pixels and near twins; where the pixels are in memory a later run decodes, and no more."""
    first = read(root, cache="auto", cache_max_gb=cache_max_gb)
    assert near_identical_pairs(first).shape == (0, 2)
    assert sorted(reads) == [f"{number:02d}.bmp" for number in range(12)]
    reads.clear()
    again = read(root, cache="auto", cache_max_gb=cache_max_gb)
    assert again.place == ("disk" if cache_max_gb == 1 else "ram")
    assert near_identical_pairs(again).shape == (0, 2)
    assert len(reads) == (0 if cache_max_gb == 1 else 12)
    assert again.digests == first.digests
    assert (again.records == first.records).all()
    assert np.array_equal(again[EVERY].numpy(), expected(root))


def test_what_is_new_moved_or_written_to_is_read_and_nothing_else(root: Path, reads: list[str]) -> None:
    before = read(root)
    reads.clear()
    (root / "03.bmp").rename(root / "3.bmp")
    Image.new("RGB", (10, 12), (1, 2, 3)).save(root / "05.bmp")
    Image.new("RGB", (10, 12), (4, 5, 6)).save(root / "12.bmp")
    names = sorted(path.name for path in root.glob("*.bmp"))
    now = read(root, names=names)
    assert sorted(reads) == ["05.bmp", "12.bmp", "3.bmp"]
    assert set(now.digests) - set(before.digests) == {now.digests[names.index(name)] for name in ("05.bmp", "12.bmp")}
    assert now[np.array([names.index("05.bmp")])].unique().tolist() == [1, 2, 3]
    assert np.array_equal(now[np.array([names.index("3.bmp")])].numpy(), expected_of(before, 3))


def test_what_another_job_has_read_meanwhile_is_not_read_again(
    root: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Rows.lock

    def after_another(rows: Rows) -> Any:
        monkeypatch.setattr(Rows, "lock", plain)
        read(root)
        reads.clear()
        return rows.lock()

    monkeypatch.setattr(Rows, "lock", after_another)
    assert np.array_equal(read(root)[EVERY].numpy(), expected(root))
    assert reads == []


def test_thumbnails_that_have_made_room_are_made_anew(root: Path) -> None:
    """Not 0, by which no twin would be found."""
    before = read(root).thumbnails(EVERY)
    for folder in (root / "cache").glob("thumbnails-*"):
        shutil.rmtree(folder)
    assert np.array_equal(read(root).thumbnails(EVERY), before)


def expected_of(images: Images, row: int) -> np.ndarray:
    return images[np.array([row])].numpy()


def test_digests_are_blake2b_of_the_content_and_copies_share_one(root: Path) -> None:
    (root / "copy.bmp").write_bytes((root / "00.bmp").read_bytes())
    images = read(root)
    contents = [Path(path).read_bytes() for path in images.paths]
    assert images.digests == [hashlib.blake2b(content, digest_size=16).digest() for content in contents]
    assert images.digests[12] == images.digests[0]
    assert np.array_equal(images[np.array([12])], images[np.array([0])])


@pytest.mark.parametrize("options", [{"size": 9}, {"resize": "pad"}, {"names": ["03.bmp", "01.bmp"]}])
def test_another_size_way_or_order_gives_its_own_pixels(root: Path, options: Any) -> None:
    read(root)
    images = read(root, **options)
    rows = [3, 1] if "names" in options else EVERY
    plain = {name: value for name, value in options.items() if name != "names"}
    assert np.array_equal(images[np.arange(len(rows))].numpy(), expected(root, rows, **plain))


def test_what_twins_are_found_by_is_read_when_they_are_sought(root: Path, reads: list[str]) -> None:
    """A set of which they are not: 17 kB a photo are neither computed nor kept, until an audit asks."""
    plain, sought = (read(root, split={"together": some}) for some in (["identical"], ["near_identical"]))
    assert (plain.known_spectra.nbytes, plain.known_thumbnails.nbytes) == (0, 0)
    assert sorted(reads) == sorted(2 * [f"{row:02d}.bmp" for row in EVERY])
    again, positions = read(root, split={"together": ["identical"]}), plain.positions
    for images in (plain, again):
        assert near_identical_pairs(images).tolist() == near_identical_pairs(sought).tolist()
        assert np.array_equal(images.spectra(EVERY), sought.spectra(EVERY))
        assert np.array_equal(images.thumbnails(EVERY), sought.thumbnails(EVERY))
        assert np.array_equal(images[EVERY], expected(root))
    assert len(reads) == 24  # what another has kept is taken up
    alone = read(root, split={"together": ["identical"]}, cache_dir=root / "other")
    assert np.array_equal(alone.spectra(EVERY), sought.spectra(EVERY))
    assert len(reads) == 48
    assert plain.positions is positions
    off = read(root, split={"together": ["identical"]}, cache="off")
    Image.new("RGB", (9, 9)).save(root / "03.bmp")
    with pytest.raises(UserError, match="^some photos have changed since the start of this run: start anew$"):
        off.spectra(EVERY)


def test_a_record_tells_what_the_file_is(root: Path) -> None:
    """The spectrum against the definition of the Fourier transform, frequency by frequency."""
    grey = np.random.default_rng(0).integers(0, 256, (THUMBNAIL, THUMBNAIL), dtype=np.uint8)
    Image.fromarray(grey).save(root / "grey.png")
    images = read(root, names=["grey.png", "00.bmp"])
    assert images.records[["side", "paged", "depth"]].tolist() == [
        (THUMBNAIL, False, ""),
        (8, False, ""),
    ]
    assert images.records["spread"][0] == pytest.approx(grey.std(), abs=0.01)
    assert np.array_equal(images.thumbnails(np.array([0]))[0], grey)
    window = np.outer(np.hanning(THUMBNAIL + 2)[1:-1], np.hanning(THUMBNAIL + 2)[1:-1])
    level = (grey * window).sum() / window.sum()
    rows, columns = np.mgrid[:THUMBNAIL, :THUMBNAIL] / THUMBNAIL
    spectrum = np.zeros((2 * COARSE + 1, COARSE + 1), complex)
    for down, across in ((down, across) for down in range(-COARSE, COARSE + 1) for across in range(COARSE + 1)):
        if 1 <= np.hypot(down, across) <= COARSE:  # of -1 cycles down the last row, and so on
            wave = np.exp(-2j * np.pi * (down * rows + across * columns))
            spectrum[down, across] = ((grey - level) * window * wave).sum() / window.sum()
    assert np.allclose(images.spectra(np.array([0]))[0], spectrum, atol=2e-3 * np.abs(spectrum).max())


def test_unreadable_files_are_told_at_every_run(root: Path, reads: list[str]) -> None:
    (root / "03.bmp").write_bytes(b"")
    (root / "11.bmp").write_bytes(b"what")
    (root / "folder.bmp").mkdir()
    aged(root)
    names = [*(path.name for path in sorted(root.glob("*.bmp"))), "gone.bmp"]
    for _ in range(2):
        images = read(root, names=names)
        assert images.errors | {12: ""} == {
            3: "empty file",
            11: "not an image",
            12: "",
            13: "No such file or directory",
        }
        assert "Is a directory" in images.errors[12]
        assert np.array_equal(images[np.arange(10)].numpy(), expected(root, np.delete(EVERY, [3, 11])))
        assert sorted(set(reads)) == (sorted(names) if _ == 0 else ["03.bmp", "11.bmp", "folder.bmp", "gone.bmp"])
        reads.clear()


def test_a_file_that_is_written_to_all_the_time_is_named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, ticks = reading.read_file, iter(range(1000))
    monkeypatch.setattr(
        reading, "read_file", lambda path: plain(path) + bytes([next(ticks) % 256] * path.endswith("05.bmp"))
    )
    images = read(root, cache="off")
    with pytest.raises(UserError, match=r"05.bmp has changed since the start of this run: start anew"):
        images[np.array([1, 5])]


# --- where pixels are kept --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", ["off", "auto"])
def test_rows_are_decoded_images_wherever_they_are_kept(root: Path, cache: str) -> None:
    images = read(root, cache=cache)
    rows = np.array([3, 11, 0, 3])
    found = images[rows]
    assert (found.dtype, found.shape, images.errors) == (torch.uint8, (4, 3, SIDE, SIDE), {})
    assert np.array_equal(found.numpy(), expected(root, rows))
    found[:] = 0  # a batch is the caller's own
    assert np.array_equal(images[rows].numpy(), expected(root, rows))
    assert images.place == ("disk" if cache == "auto" else cache)


@pytest.mark.parametrize(
    ("device", "gpu", "limit", "disk", "memory", "place"),
    [
        (GPU, 2 * SIZE + 1, 1e9, 1e9, 1e9, "device"),
        (GPU, 2 * SIZE, 1e9, 1e9, 1e9, "disk"),
        (CPU, 1e9, SIZE, SIZE, 1e9, "disk"),
        (CPU, 1e9, SIZE, SIZE - 100, 1e9, "disk"),  # 100 bytes are there already
        (CPU, 1e9, SIZE - 1, 1e9, 4 * SIZE, "ram"),
        (CPU, 1e9, 1e9, SIZE - 101, 4 * SIZE, "ram"),
        (CPU, 1e9, SIZE - 1, 1e9, 4 * SIZE - 1, "off"),
    ],
)
def test_auto_is_the_fastest_place_that_is_large_enough(
    root: Path,
    monkeypatch: pytest.MonkeyPatch,
    device: torch.device,
    gpu: float,
    limit: float,
    disk: float,
    memory: float,
    place: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (gpu, 1e12))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=disk))
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": memory, "SC_PAGE_SIZE": 1}.get)
    settings = module(root, cache_max_gb=limit / 1e9).settings
    assert choose_place(SIZE, 100, settings, device) == place


@pytest.mark.parametrize("cache_max_gb", [1, 1e-6])
def test_on_a_device_are_the_readable_ones_with_or_without_a_file(
    root: Path, monkeypatch: pytest.MonkeyPatch, cache_max_gb: float
) -> None:
    """The CPU stands in for the device."""
    monkeypatch.setattr(reading, "choose_place", lambda *_: "device")
    monkeypatch.setattr(reading, "AT_ONCE", 5 * 3 * SIDE**2)
    (root / "04.bmp").write_bytes(b"")
    images = read(root, cache_max_gb=cache_max_gb)
    assert images.errors == {4: "empty file"}
    assert isinstance(images.pixels, torch.Tensor)
    readable = np.delete(EVERY, 4)
    assert np.array_equal(images[np.arange(11)].numpy(), expected(root, readable))
    assert len(list((root / "cache").glob("pixels-*/*.rows"))) == (cache_max_gb == 1)


def test_without_a_usable_folder_images_are_kept_in_memory(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    (root / "cache").write_text("")
    assert np.array_equal(read(root)[EVERY].numpy(), expected(root))
    assert len(caplog.records) == 1


def test_where_nothing_is_kept_the_files_of_the_start_are_decoded_at_every_access(root: Path, reads: list[str]) -> None:
    images = read(root, cache="off")
    assert not (root / "cache").exists()
    reads.clear()
    assert np.array_equal(images[np.array([5, 2])].numpy(), expected(root, [5, 2]))
    assert np.array_equal(images.thumbnails(EVERY), read(root).thumbnails(EVERY))
    assert sorted(reads[:2]) == ["02.bmp", "05.bmp"]
    (root / "02.bmp").write_bytes((root / "03.bmp").read_bytes())
    with pytest.raises(UserError, match=r"02.bmp has changed since the start of this run"):
        images[np.array([1, 2])]
    (root / "02.bmp").unlink()
    with pytest.raises(UserError, match=r"02.bmp has changed since the start of this run"):
        images[np.array([1, 2])]


def test_folds_and_other_datasets_of_the_same_photos_share_their_pixels(root: Path) -> None:
    read(root, names=["00.bmp", "01.bmp"])
    read(root)
    read(root, names=["11.bmp", "03.bmp"], split={"val": 0.3})
    assert sum(path.stat().st_size for path in (root / "cache").glob("pixels-*/*.rows")) == SIZE
