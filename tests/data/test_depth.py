"""Files of more than 8 bits: one scale for a set, by a reference in numpy; and files of several pages."""

import struct
import zlib
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import torch
from PIL import Image

from defectcls.data.images import UnreadableImageError, decode
from defectcls.data.reading import Images
from defectcls.errors import UserError
from tests.data.test_datamodule import module
from tests.data.test_images import png_of

SIDE = 16
GREY = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE))  # the scene, as 8 bits would have it
WHITES = {"8": 255, "10": 1023, "12": 4095, "14": 16383, "16": 65535, "float": 1.0}


def scene(white: float, share: float = 1.0) -> np.ndarray:
    """The scene by a camera whose white is this, of which it reaches a share; a half step off the 256 grey values."""
    values = share * white * (GREY + 0.3) / 255.3
    return values.astype(np.float32) if white == 1 else np.rint(values)


def expected(values: np.ndarray, depth: str) -> np.ndarray:
    return np.rint(values.astype(np.float64) * 255 / WHITES[depth])


def written(path: Path, values: np.ndarray, maximum: int = 65535) -> Path:
    """Values as the suffix can hold them."""
    if path.suffix in (".pgm", ".pnm"):
        path.write_bytes(b"P5 %d %d %d\n" % (*values.shape[::-1], maximum) + values.astype(">u2").tobytes())
    else:
        Image.fromarray(values if values.dtype == np.float32 else values.astype(np.uint16)).save(path)
    return path


def read(*paths: Path, depth: str = "auto") -> Images:
    settings = module(paths[0].parent, depth=depth).settings
    return Images([str(path) for path in paths], settings, (SIDE, SIDE), torch.device("cpu"))


def depth_of(*paths: Path) -> str:
    return read(*paths).depth


def grey(path: Any, depth: Any) -> np.ndarray:
    decoded = decode(path, (SIDE, SIDE), "squash", depth).astype(int)
    assert (decoded == decoded[:1]).all()
    return decoded[0]


# --- what is white ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm", "jp2"])
@pytest.mark.parametrize("bits", ["10", "12", "14", "16"])
def test_a_camera_of_more_bits_gives_what_8_bits_would(tmp_path: Path, suffix: str, bits: str) -> None:
    """Written into 16 bits as it is, as cameras do."""
    values = scene(WHITES[bits])
    path = written(tmp_path / f"photo.{suffix}", values)
    assert depth_of(path) == bits
    assert (grey(path, bits) == expected(values, bits)).all()
    assert np.abs(grey(path, bits) - GREY).max() <= 1


@pytest.mark.parametrize("name", ["mono12.tif", "mono12.png", "float01.tif", "int32.tif"])
def test_other_ways_to_hold_a_photo(tmp_path: Path, name: str) -> None:
    kept = {"int32.tif": GREY.astype(np.int32), "float01.tif": scene(1.0)}.get(name, scene(4095))
    path = tmp_path / name
    (written(path, kept) if "mono" in name else Image.fromarray(kept).save(path))
    depth = depth_of(path)
    assert depth == {"int32.tif": "8", "float01.tif": "float"}.get(name, "12")
    assert (grey(path, depth) == expected(kept, depth)).all()


def test_one_scale_for_a_set_the_brightest_photo_decides(tmp_path: Path) -> None:
    dim, bright = (written(tmp_path / f"{share}.tif", scene(4095, share)) for share in (0.1, 0.9))
    Image.fromarray(GREY.astype(np.uint8)).save(tmp_path / "plain.png")
    found = read(dim, bright, tmp_path / "plain.png")
    assert depth_of(dim) == "10"
    assert found.depth == "12"
    assert np.abs(found[np.array([0])][0].numpy() - expected(scene(4095, 0.1), "12")).max() == 0
    by_hand = read(dim, bright, tmp_path / "plain.png", depth="14")  # what a person says
    assert by_hand.depth == "14"
    assert (by_hand[np.array([1])][0].numpy() == expected(scene(4095, 0.9), "14")).all()
    assert (grey(dim, "12") == expected(scene(4095, 0.1), "12")).all()
    for depth in WHITES:  # 8 bits are what they are
        assert (grey(tmp_path / "plain.png", depth) == GREY).all()


def test_a_set_of_8_bits_and_jpegs_is_of_8(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.png", "c.bmp", "d.tif"):
        Image.fromarray(GREY.astype(np.uint8)).save(tmp_path / name)
    assert depth_of(*sorted(tmp_path.iterdir()), tmp_path / "gone.tif") == "8"


def test_a_freak_does_not_decide(tmp_path: Path) -> None:
    """Values that no depth holds are refused, and darken no other photo."""
    path = written(tmp_path / "photo.tif", scene(4095))
    Image.fromarray(np.full((4, 4), 1_000_000, np.int32)).save(tmp_path / "huge.tif")
    Image.fromarray(np.full((4, 4), np.nan, np.float32)).save(tmp_path / "nan.tif")
    Image.fromarray(np.full((4, 4), 0.5, np.float32)).save(tmp_path / "half.tif")
    (tmp_path / "text.tif").write_bytes(b"no picture")
    others = [tmp_path / f"{name}.tif" for name in ("huge", "nan", "half", "text")]
    assert depth_of(path, *others) == "12"
    for other in others:
        with pytest.raises(UnreadableImageError):
            decode(other, (SIDE, SIDE), "squash", "12")


@pytest.mark.parametrize(
    ("value", "kind", "depth", "said"),
    [
        (5000, "u2", "12", "from 5,000 to 5,000, and depth 12 from 0 to 4,095: save it as the other photos, or train"),
        (300, "u2", "8", "from 300 to 300, and depth 8 from 0 to 255: "),
        (300, "u2", "float", "from 300 to 300, and depth float from 0 to 1: "),
        (0.5, "f4", "12", "from 0.5 to 0.5, and depth 12 from 0 to 4,095: "),
        (-1, "i4", "12", "from -1 to -1, and depth 12 from 0 to 4,095: "),
        (np.nan, "f4", "float", "from nan to nan, and depth float from 0 to 1: "),
        (70_000, "i4", "16", "from 70,000 to 70,000, and depth 16 from 0 to 65,535: "),
    ],
)
def test_what_is_beyond_the_scale_is_refused_in_words(
    tmp_path: Path, value: float, kind: str, depth: Any, said: str
) -> None:
    Image.fromarray(np.full((4, 4), value, kind)).save(tmp_path / "photo.tif")
    with pytest.raises(UnreadableImageError) as caught:
        decode(tmp_path / "photo.tif", (SIDE, SIDE), "squash", depth)
    assert f"its values run {said}" in str(caught.value)


def colour_of(factor: int) -> np.ndarray:
    return np.repeat((GREY * factor)[..., None], 3, 2).astype(">u2")


@pytest.mark.parametrize("suffix", ["png", "jp2"])
def test_16_bit_colour_is_on_the_scale_of_the_set(tmp_path: Path, suffix: str) -> None:
    rows = b"".join(b"\0" + row.tobytes() for row in colour_of(16))  # 12 bits
    header = struct.pack(">IIBBBBB", SIDE, SIDE, 16, 2, 0, 0, 0)
    written = {
        "png": png_of([(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]),
        "jp2": imagecodecs.jpeg2k_encode(colour_of(16).astype(np.uint16)),
    }
    path = tmp_path / f"dark.{suffix}"
    path.write_bytes(written[suffix])
    assert depth_of(path) == "12"
    assert np.abs(grey(path, "12").astype(int) - np.rint(GREY * (16 * 255 / 4095))).max() <= 1


def test_16_bit_colour_of_other_files_is_refused(tmp_path: Path) -> None:
    """Pillow reads its upper bytes alone."""
    path = tmp_path / "photo.ppm"
    path.write_bytes(b"P6 %d %d 65535\n" % (SIDE, SIDE) + colour_of(257).tobytes())
    for depth in ("8", "16"):
        with pytest.raises(UnreadableImageError, match="^16-bit colour, of which only the upper bytes are read: save"):
            decode(path, (SIDE, SIDE), "squash", depth)  # type: ignore[arg-type]


@pytest.mark.parametrize("bits", ["12", "16", "float"])
@pytest.mark.parametrize("colour", [False, True])
def test_arrays_in_memory_are_on_the_same_scale(bits: Any, colour: bool) -> None:
    values = scene(WHITES[bits]).astype(np.float32 if bits == "float" else np.uint16)
    array = np.repeat(values[..., None], 3, 2) if colour else values
    assert (decode(array, (SIDE, SIDE), "squash", bits) == expected(values, bits)).all()
    with pytest.raises(UserError, match="depth 8 from 0 to 255"):
        decode(array, (SIDE, SIDE), "squash", "8")


# --- further pages ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["tif", "gif", "webp", "png", "avif"])
@pytest.mark.parametrize("pages", [1, 3])
def test_further_pages_are_told_and_the_first_is_looked_at(tmp_path: Path, suffix: str, pages: int) -> None:
    path = tmp_path / f"photo.{suffix}"
    frames = [Image.new("RGB", (SIDE, SIDE), colour) for colour in ("red", "lime", "blue")[:pages]]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    found = read(path)
    assert found.records["paged"].tolist() == [pages > 1]
    assert decode(path, (SIDE, SIDE), "squash", "8").mean(axis=(1, 2)).round(-1).tolist() == pytest.approx(
        [250, 0, 0], abs=10
    )
