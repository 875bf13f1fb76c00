"""Where decoded images are kept: what fits, what is told, and what is read anew."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from defectcls.data import cache, pixel_file
from defectcls.data.cache import Images, choose_place, open_images
from defectcls.data.images import UnreadableImageError
from defectcls.errors import UserError
from tests.data.test_datamodule import module
from tests.data.test_pixel_file import expected, files_in, never, photos

CPU = torch.device("cpu")
GPU = torch.device("cuda:0")
SIZE = 12 * 3 * 8 * 8  # bytes of all photos


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return photos(tmp_path)


def images_of(root: Path, place: str, **options: Any) -> tuple[Images, dict[int, str]]:
    return open_images(files_in(root), module(root, cache=place, cache_dir=root, **options).settings, CPU)


@pytest.mark.parametrize("place", ["off", "ram", "disk", "auto"])
def test_rows_are_decoded_images_wherever_they_are_kept(root: Path, place: str) -> None:
    images, unreadable = images_of(root, place)
    rows = np.array([3, 11, 0, 3])
    found = images[rows]
    assert (found.dtype, found.shape, unreadable) == (torch.uint8, (4, 3, 8, 8), {})
    assert np.array_equal(found.numpy(), expected(files_in(root))[rows])
    found[:] = 0  # a batch is the caller's own
    assert np.array_equal(images[rows].numpy(), expected(files_in(root))[rows])


@pytest.mark.parametrize(
    ("device", "gpu", "limit", "disk", "memory", "place"),
    [
        (GPU, 2 * SIZE + 1, 1e9, 1e9, 1e9, "device"),
        (GPU, 2 * SIZE, 1e9, 1e9, 1e9, "disk"),
        (CPU, 1e9, SIZE, SIZE, 1e9, "disk"),
        (CPU, 1e9, SIZE - 1, 1e9, 2 * SIZE, "ram"),
        (CPU, 1e9, 1e9, SIZE - 1, 2 * SIZE, "ram"),
        (CPU, 1e9, SIZE - 1, 1e9, 2 * SIZE - 1, "off"),
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
    monkeypatch.setattr(cache, "free_disk", lambda _: disk)
    monkeypatch.setattr(cache, "free_memory", lambda device=CPU: gpu if device.type == "cuda" else memory)
    settings = module(root, cache="auto", cache_dir=root, cache_max_gb=limit / 1e9).settings
    assert choose_place(files_in(root), settings, device) == place


def test_what_is_on_the_disk_needs_no_more_room(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images_of(root, "disk")
    monkeypatch.setattr(cache, "free_disk", lambda _: 0)
    monkeypatch.setattr(pixel_file, "decode", never)
    assert images_of(root, "auto")[0].pixels is not None


@pytest.mark.parametrize(("asked", "place"), [("auto", "disk"), ("ram", "ram"), ("off", "off")])
def test_the_choice_is_told(root: Path, asked: str, place: str) -> None:
    assert str(images_of(root, asked)[0]) == f"12 images of 8 px, 0.0 MB: dataset.cache={place}"


@pytest.mark.parametrize(
    ("place", "options", "sentence"),
    [
        ("device", {}, "^dataset.cache=device, but there is no GPU: use dataset.cache=auto$"),
        ("disk", {"cache_max_gb": (SIZE - 1) / 1e9}, "^dataset.cache=disk needs .* more than dataset.cache_max_gb=2.3"),
        ("ram", {}, "^dataset.cache=ram needs 0.0 GB, but 0.0 GB are free: use dataset.cache=auto$"),
    ],
)
def test_a_place_that_is_too_small_is_a_sentence(
    root: Path, monkeypatch: pytest.MonkeyPatch, place: str, options: dict, sentence: str
) -> None:
    monkeypatch.setattr(cache, "free_memory", lambda *_: SIZE - 1)
    with pytest.raises(UserError, match=sentence):
        images_of(root, place, **options)


@pytest.mark.parametrize("cache_max_gb", [1, 1e-6])
def test_on_a_device_are_the_readable_ones_with_or_without_a_file(
    root: Path, monkeypatch: pytest.MonkeyPatch, cache_max_gb: float
) -> None:
    """The CPU stands in for the device."""
    monkeypatch.setattr(cache, "choose_place", lambda *_: "device")
    monkeypatch.setattr(cache, "AT_ONCE", 5)
    (root / "04.bmp").write_bytes(b"")
    images, unreadable = images_of(root, "device", cache_max_gb=cache_max_gb)
    assert unreadable == {4: "empty file"}
    assert isinstance(images.pixels, torch.Tensor)
    readable = np.delete(np.arange(12), 4)
    assert np.array_equal(images[np.arange(11)].numpy(), expected(files_in(root).keep(readable)))
    assert len(list((root / "pixels").glob("*.pixels"))) == (cache_max_gb == 1)


@pytest.mark.parametrize(("memory", "kept_in_memory"), [(2 * SIZE, True), (2 * SIZE - 1, False)])
def test_without_a_usable_folder_images_are_kept_in_memory_or_nowhere(
    root: Path, monkeypatch: pytest.MonkeyPatch, memory: int, kept_in_memory: bool
) -> None:
    (root / "pixels").write_text("")
    monkeypatch.setattr(cache, "free_memory", lambda *_: memory)
    images, _ = images_of(root, "auto")
    assert (images.pixels is not None) == kept_in_memory
    assert np.array_equal(images[np.arange(12)].numpy(), expected(files_in(root)))


def test_nothing_is_read_through_where_nothing_is_kept(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "07.bmp").write_bytes(b"what")
    (root / "folder.bmp").mkdir()
    decoded: list[str] = []
    plain = pixel_file.decode
    monkeypatch.setattr(pixel_file, "decode", lambda path, *given: decoded.append(path) or plain(path, *given))
    images, unreadable = images_of(root, "off")
    assert decoded == [f"{root}/folder.bmp"]
    assert list(unreadable) == [12]
    assert "Is a directory" in unreadable[12]
    assert len(images.files.names) == 12
    with pytest.raises(UnreadableImageError, match=r"07.bmp cannot be read: not an image; .*on_unreadable=skip$"):
        images[np.array([0, 7])]
    _, unreadable = images_of(root, "off", on_unreadable="skip")
    assert list(unreadable) == [7, 12]


def test_an_image_that_changes_while_it_is_in_use_is_named(root: Path) -> None:
    images, _ = images_of(root, "off")
    (root / "02.bmp").write_bytes((root / "03.bmp").read_bytes() + b" ")
    with pytest.raises(UserError, match=r"02.bmp has changed since the start of this run"):
        images[np.array([1, 2])]
    (root / "02.bmp").unlink()
    with pytest.raises(UserError, match=r"02.bmp was there at the start of this run"):
        images[np.array([1, 2])]


def test_only_the_disk_is_shared(root: Path) -> None:
    for place in ("off", "ram"):
        images_of(root, place)
    assert not (root / "pixels").exists()
    images_of(root, "disk")
    images_of(root, "disk", split={"val": 0.3})
    assert len(list((root / "pixels").glob("*.pixels"))) == 1
