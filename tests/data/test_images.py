"""Decoding: every mode that cameras write, by value, and one reason for every broken file."""

import io
import os
import struct
import sys
import threading
import warnings
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, ImageSequence

from defectcls.data import images
from defectcls.data.images import Depth, UnreadableImageError
from defectcls.data.threads import AHEAD, map_in_threads
from defectcls.errors import UserError

SIDE = 24


def pixels(height: int = SIDE, width: int = SIDE, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def saved(folder: Path, image: Image.Image, name: str = "image.png", **options: Any) -> Path:
    image.save(folder / name, **options)
    return folder / name


def turned(maker: str = "", orientation: int = 6) -> dict[str, Image.Exif]:
    """The option of `save` that writes an orientation."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    if maker:
        exif[0x010F] = maker
    return {"exif": exif}


def decode(photo: Any, size: int, resize: Any, depth: Depth = "8") -> np.ndarray:
    return images.decode(photo, (size, size), resize, depth)


def decode_all(paths: Any, size: int, resize: Any) -> Iterator[np.ndarray | images.UnreadableImageError]:
    def attempt(path: Any) -> np.ndarray | images.UnreadableImageError:
        try:
            return decode(path, size, resize)
        except images.UnreadableImageError as error:
            return error

    return map_in_threads(attempt, paths)


def as_image(chw: np.ndarray) -> np.ndarray:
    return chw.transpose(1, 2, 0)


# --- modes; at its own size an image keeps its values -----------------------------------------------------------------


def test_rgb_keeps_values_and_channel_order(tmp_path: Path) -> None:
    decoded = decode(saved(tmp_path, Image.fromarray(pixels())), SIDE, "squash")
    assert decoded.dtype == np.uint8
    assert decoded.shape == (3, SIDE, SIDE)
    assert decoded.flags["C_CONTIGUOUS"]
    assert (as_image(decoded) == pixels()).all()


def test_grey_becomes_three_equal_channels(tmp_path: Path) -> None:
    grey = pixels()[..., 0]
    assert (decode(saved(tmp_path, Image.fromarray(grey)), SIDE, "squash") == grey[None]).all()


def test_grey_with_alpha_drops_the_alpha(tmp_path: Path) -> None:
    both = np.ascontiguousarray(pixels()[..., :2])
    assert (decode(saved(tmp_path, Image.fromarray(both, "LA")), SIDE, "squash") == both[None, ..., 0]).all()


def test_rgba_drops_the_alpha_and_keeps_colours_under_it(tmp_path: Path) -> None:
    rgba = np.concatenate([pixels(), pixels(seed=1)[..., :1]], 2)
    assert (as_image(decode(saved(tmp_path, Image.fromarray(rgba)), SIDE, "squash")) == rgba[..., :3]).all()


def test_1_bit_is_black_and_white(tmp_path: Path) -> None:
    bits = pixels()[..., 0] > 127
    assert (decode(saved(tmp_path, Image.fromarray(bits)), SIDE, "squash") == 255 * bits[None]).all()


@pytest.mark.parametrize("options", [{}, {"transparency": 3}, {"transparency": bytes(range(16))}])
def test_a_palette_gives_its_colours_transparent_or_not(tmp_path: Path, options: dict) -> None:
    index = np.random.default_rng(0).integers(0, 16, (SIDE, SIDE), dtype=np.uint8)
    colours = pixels(1, 16)[0]
    image = Image.fromarray(index, "P")
    image.putpalette(colours.tobytes())
    path = saved(tmp_path, image, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Pillow warns of transparency that it would lose
        assert (as_image(decode(path, SIDE, "squash")) == colours[index]).all()


def test_cmyk_jpeg_has_the_colours_it_was_made_of(tmp_path: Path) -> None:
    flat = np.empty((32, 32, 3), np.uint8)
    flat[:16, :16], flat[:16, 16:], flat[16:, :16], flat[16:, 16:] = (
        (200, 30, 40),
        (20, 180, 60),
        (10, 20, 220),
        (240, 240, 20),
    )
    path = saved(tmp_path, Image.fromarray(flat).convert("CMYK"), "image.jpg", quality=100)
    with Image.open(path) as image:
        assert image.mode == "CMYK"
    assert np.abs(as_image(decode(path, 32, "squash")).astype(int) - flat).max() <= 4


# --- orientation ------------------------------------------------------------------------------------------------------

UPRIGHT = {
    1: lambda image: image,
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.transpose(1, 0, 2),
    6: lambda image: np.rot90(image, -1),  # the camera was turned: the top is on the right
    7: lambda image: image.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda image: np.rot90(image, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_images_stand_upright_as_exif_says(tmp_path: Path, orientation: int) -> None:
    path = saved(tmp_path, Image.fromarray(pixels()), **turned(orientation=orientation))
    assert (as_image(decode(path, SIDE, "squash")) == UPRIGHT[orientation](pixels())).all()


def test_a_large_jpeg_that_is_decoded_at_a_fraction_stands_upright_too(tmp_path: Path) -> None:
    """800 x 400 pixels, orientation 6: the red left edge becomes the top."""
    frame = np.zeros((400, 800, 3), np.uint8)
    frame[:, :200] = (255, 0, 0)
    decoded = decode(saved(tmp_path, Image.fromarray(frame), "image.jpg", quality=95, **turned()), 64, "squash")
    expected = np.zeros((3, 64, 64))
    expected[0, :16] = 255
    assert np.abs(decoded[:, [*range(14), *range(18, 64)]] - expected[:, [*range(14), *range(18, 64)]]).max() < 16


# --- resizing ---------------------------------------------------------------------------------------------------------


def muted(height: int, width: int) -> np.ndarray:
    """Of full contrast a bicubic kernel leaves 0 to 255, and Pillow cuts off between its two passes too."""
    return pixels(height, width) // 3 + np.uint8(85)


@pytest.mark.parametrize(("height", "width"), [(60, 90), (200, 31), (10, 12)])
def test_squash_is_pillows_own_resize_of_the_whole_frame(tmp_path: Path, height: int, width: int) -> None:
    frame = Image.fromarray(muted(height, width))
    expected = np.asarray(frame.resize((SIDE, SIDE), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(as_image(decode(saved(tmp_path, frame), SIDE, "squash")) - expected).max() <= 1


def test_a_large_jpeg_is_close_to_a_resize_of_all_its_pixels(tmp_path: Path) -> None:
    """Decoding at 1/8 must not shift or crop the frame."""
    y, x = np.mgrid[:512, :768]
    smooth = np.stack([x / 3, y / 2, 255 - (x + y) / 6], 2).astype(np.uint8)
    path = saved(tmp_path, Image.fromarray(smooth), "image.jpg", quality=98)
    with Image.open(path) as image:
        expected = np.asarray(image.resize((64, 64), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(as_image(decode(path, 64, "squash")) - expected).max() <= 4


def test_pad_keeps_the_aspect_and_adds_black_borders(tmp_path: Path) -> None:
    """100 x 50 pixels on a square of 40: 40 x 20 in the middle, 10 black rows above and below."""
    frame = Image.fromarray(muted(50, 100))
    decoded = as_image(decode(saved(tmp_path, frame), 40, "pad"))
    assert (decoded[:10] == 0).all()
    assert (decoded[30:] == 0).all()
    expected = np.asarray(frame.resize((40, 20), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(decoded[10:30] - expected).max() <= 1
    upright = as_image(
        decode(saved(tmp_path, ImageOps.exif_transpose(frame).transpose(Image.Transpose.ROTATE_90)), 40, "pad")
    )
    assert (upright[:, :10] == 0).all()
    assert (upright[:, 10:30].mean((0, 2)) > 60).all()


def test_a_needle_is_padded_to_one_pixel_at_least(tmp_path: Path) -> None:
    decoded = decode(saved(tmp_path, Image.new("L", (400, 1), 200)), 40, "pad")
    assert (decoded.max(axis=(0, 2)) > 0).sum() == 1


def test_pad_leaves_a_square_frame_as_squash_does(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.fromarray(pixels(60, 60)))
    assert (decode(path, SIDE, "pad") == decode(path, SIDE, "squash")).all()


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(64, 32), (20, 50), (96, 224)])
@pytest.mark.parametrize("photo", [(60, 90), (200, 31), (126, 50)])
def test_a_frame_of_any_shape_is_filled_as_torch_resizes(
    photo: tuple[int, int], size: tuple[int, int], mode: Any
) -> None:
    frame = muted(*photo)
    pixels = torch.from_numpy(frame).permute(2, 0, 1)[None].float()
    whole = F.interpolate(pixels, size, mode=mode, antialias=True)[0].clamp(0, 255).numpy()
    squashed = images.framed(frame, size, "squash", mode)
    assert squashed.shape == (3, *size)
    most = {"bicubic": 2, "bilinear": 1}[mode]  # of two passes that each round, weights below 0 among them
    assert np.abs(squashed - whole).max() <= most
    how = Image.Resampling[mode.upper()]
    padded = as_image(images.framed(frame, size, "pad", mode))
    height, width = (side.stop - side.start for side in images.filled(photo, size))
    along = Image.fromarray(frame).resize((width, photo[0]), how).resize((width, height), how)  # not as Pillow likes
    assert (padded == np.asarray(ImageOps.pad(along, size[::-1], how))).all()
    white = Image.new("RGB", photo[::-1], "white")
    inside = as_image(images.framed(np.asarray(white), size, "pad", mode)) > 0
    assert (inside == (np.asarray(ImageOps.pad(white, size[::-1], how)) > 0)).all()


def test_a_sharp_edge_neither_wraps_nor_grows_dark_beyond_black() -> None:
    """A bicubic kernel is below 0 in part: what it gives beyond 0 and 255 is cut off."""
    edge = np.repeat(np.where(np.arange(60) < 31, 0, 255).astype(np.uint8)[None], 60, 0)
    given = torch.from_numpy(edge)[None, None].float()
    expected = F.interpolate(given, (24, 24), mode="bicubic", antialias=True)[0, 0].clamp(0, 255).numpy()
    assert np.abs(images.framed(edge, (24, 24), "squash")[0] - expected).max() <= 1
    between = images.framed(edge, (24, 24), "squash", "bilinear")[0]
    assert ((between > 0) & (between < 255)).any() and (np.diff(between.astype(int)) >= 0).all()


# --- the size of a frame in the photos' own aspect ratio --------------------------------------------------------------


def photos(folder: Path, *sizes: tuple[int, int], name: str = "png", **options: Any) -> list[str]:
    """Paths of plain photos, each of a height and width."""
    found = [
        saved(folder, Image.new("L", size[::-1]), f"{number:03d}.{name}", **options)
        for number, size in enumerate(sizes)
    ]
    return [str(path) for path in found]


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([(1000, 1000)], (448, 448)),
        ([(1260, 500)], (704, 288)),  # 448 times and by the root of 2.52
        ([(500, 1260)], (288, 704)),
        ([(1000, 500)] * 3 + [(500, 1000)], (640, 320)),
        ([(1000, 500), (500, 1000)], (448, 448)),
        ([(96, 160)], (96, 160)),  # no more than the photos have
        ([(100, 150)], (96, 160)),
        ([(5, 9)], (32, 32)),
        ([(64, 64), (128, 128), (2000, 2000)], (128, 128)),
        ([(3000, 40)], (3008, 32)),
    ],
)
def test_auto_is_the_median_aspect_and_as_many_pixels_as_there_are_up_to_448_times_448(
    tmp_path: Path, sizes: list[tuple[int, int]], expected: tuple[int, int]
) -> None:
    assert images.typical_size(photos(tmp_path, *sizes)) == expected


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("name", ["jpg", "png", "tif", "webp"])
def test_auto_takes_photos_as_the_camera_was_held(tmp_path: Path, name: str, orientation: int) -> None:
    paths = photos(tmp_path, (64, 128), name=name, **turned(orientation=orientation))
    height, width = images.open_photo(paths[0], 64).values.shape[:2]
    assert images.typical_size(paths) == (height, width) == ((64, 128) if orientation < 5 else (128, 64))


def test_auto_is_a_square_where_nothing_can_be_read_and_passes_over_what_cannot(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no pixels")
    broken = [str(tmp_path / "text.png"), str(tmp_path / "gone.png"), str(tmp_path)]
    assert images.typical_size(broken) == (448, 448)
    assert images.typical_size([*broken, *photos(tmp_path, (64, 128))]) == (64, 128)


def test_auto_reads_the_heads_of_a_hundred_files_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path,), opened, read = photos(tmp_path, (64, 128)), Image.open, []
    monkeypatch.setattr(Image, "open", lambda file, **more: (read.append(file), opened(file, **more))[1])
    monkeypatch.setattr(Image.Image, "load", lambda _: pytest.fail("pixels were decoded"))
    for count, most in ((1, 1), (100, 100), (101, 51), (1234, 95)):
        read.clear()
        assert images.typical_size([path] * count) == (64, 128)
        assert len(read) == most


# --- the decoders ----------------------------------------------------------------------------------------------------


def chunks_of(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and data of every chunk of a PNG."""
    at = 8
    while at < len(content):
        length, kind = struct.unpack_from(">I4s", content, at)
        yield kind, content[at + 8 : at + 8 + length]
        at += 12 + length


def png_of(chunks: Iterable[tuple[bytes, bytes]]) -> bytes:
    made = [struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(made)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_a_jpeg_has_the_pixels_that_pillow_gives(tmp_path: Path, mode: str, options: dict[str, Any]) -> None:
    y, x = np.mgrid[:45, :70]
    smooth = np.stack([128 + 100 * np.sin(x / 9), 128 + 100 * np.sin(y / 7), (x + y) % 256], 2).astype(np.uint8)
    path = saved(tmp_path, Image.fromarray(smooth).convert(mode), "image.jpg", **options)
    with Image.open(path) as image:
        expected = np.asarray(image.convert("RGB")).astype(int)
        if mode != "L":
            assert image.mode == mode
    found = images.open_photo(path, 45).pixels("8")
    assert np.abs((np.stack([found] * 3, 2) if mode == "L" else found) - expected).max() <= 2


def test_pixels_do_not_depend_on_the_number_of_threads(tmp_path: Path) -> None:
    paths = [saved(tmp_path, Image.fromarray(pixels(90, 70, seed)), f"{seed}.jpg") for seed in range(20)]
    before, found = torch.get_num_threads(), []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        found.append(list(decode_all(paths, SIDE, "squash")))
    torch.set_num_threads(before)
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], [decode(path, SIDE, "squash") for path in paths])


# --- broken files -----------------------------------------------------------------------------------------------------


def broken_files(folder: Path) -> dict[str, Path]:
    whole = saved(folder, Image.fromarray(pixels(100, 100)), "whole.jpg").read_bytes()
    png = saved(folder, Image.fromarray(pixels(100, 100)), "whole.png").read_bytes()
    contents = {
        "truncated.jpg": whole[: len(whole) // 2],
        "truncated.png": png[: len(png) // 2],
        "header.jpg": whole[:20],
        "empty.jpg": b"",
        "text.jpg": b"these are not the pixels you are looking for",
        "zeros.bmp": bytes(5000),
    }
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    (folder / "folder.png").mkdir()
    return {name: folder / name for name in [*contents, "folder.png", "gone.png"]}


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("truncated.jpg", "Premature end of JPEG file"),
        ("truncated.png", "^damaged"),
        ("header.jpg", "."),
        ("empty.jpg", "^empty file$"),
        ("text.jpg", "^not an image$"),
        ("zeros.bmp", "^not an image$"),
        ("folder.png", "Is a directory"),
        ("gone.png", "No such file"),
    ],
)
def test_a_broken_file_gives_one_line_with_the_reason(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(UnreadableImageError, match=reason) as caught:
        decode(broken_files(tmp_path)[name], SIDE, "squash")
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore")  # Pillow's, of the damage
@pytest.mark.parametrize("kind", ["jpg", "png", "bmp", "webp"])
def test_any_damage_gives_an_image_or_an_unreadable_one(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random bytes changed in the first 300, where the headers are: no other exception may escape."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500_000)
    path = saved(
        tmp_path, Image.fromarray(pixels(16, 24)), f"image.{kind}", **({} if kind == "bmp" else turned("maker"))
    )
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    rng = np.random.default_rng(0)
    for _ in range(150):
        damaged = whole.copy()
        places = rng.integers(0, min(300, len(whole)), rng.integers(1, 5))
        damaged[places] = rng.integers(0, 256, len(places))
        path.write_bytes(damaged.tobytes())
        try:
            assert decode(path, 8, "squash").shape == (3, 8, 8)
        except UnreadableImageError as error:
            assert str(error)


@pytest.mark.parametrize(
    ("name", "begin"),
    [
        ("photo.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
        ("photo.psd", b"8BPS\0\1"),
        ("photo.pdf", b"%PDF-1.4"),
    ],
)
def test_no_format_that_another_program_reads_is_opened(tmp_path: Path, name: str, begin: bytes) -> None:
    begin = {
        "photo.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "photo.psd": b"8BPS\0\1",
        "photo.pdf": b"%PDF-1.4",
    }
    (tmp_path / name).write_bytes(begin[name].ljust(400, b"\0"))
    with pytest.raises(UnreadableImageError, match="^not an image$"):
        decode(tmp_path / name, SIDE, "squash")


def test_a_warning_of_a_jpegs_header_costs_no_photo(tmp_path: Path) -> None:
    """Some cameras write such; every pixel is there."""
    path = saved(tmp_path, Image.fromarray(pixels()), "image.jpg")
    content, plain = bytearray(path.read_bytes()), decode(path, SIDE, "squash")
    start = content.index(b"\xff\xda")
    content[start + 6 + 2 * content[start + 4]] = 9
    path.write_bytes(content)
    with pytest.raises(ValueError, match="Invalid SOS parameters"):
        simplejpeg.decode_jpeg(bytes(content))
    assert (decode(path, SIDE, "squash") == plain).all()


def test_exif_with_text_where_a_number_belongs_stops_nobody(tmp_path: Path) -> None:
    """Pillow trips over it when it writes the EXIF of the turned image."""
    path = saved(tmp_path, Image.fromarray(pixels()), "image.jpg", **turned("maker"))
    path.write_bytes(path.read_bytes().replace(b"\x01\x0f\x00\x02", b"\x01\x00\x00\x02"))  # the maker as the width
    assert isinstance(next(decode_all([path], SIDE, "squash")), np.ndarray | UnreadableImageError)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_decompression_bomb_is_unreadable_in_every_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """900 pixels pass and 1,600 do not, also while other threads are at it."""
    small, large = (saved(tmp_path, Image.new("RGB", (side, side)), f"{side}.png") for side in (30, 40))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 799)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        found = list(decode_all([small, large] * 150, SIDE, "squash"))
    finally:
        sys.setswitchinterval(before)
    assert all(isinstance(image, np.ndarray) for image in found[::2])
    assert all("decompression bomb" in str(error) for error in found[1::2])


# --- in memory --------------------------------------------------------------------------------------------------------


def in_memory(kind: str) -> Image.Image:
    """An image of an odd size, of each mode that a PNG file can hold."""
    rgb, other = pixels(45, 70), pixels(45, 70, seed=1)
    if kind == "16 bit":
        return Image.fromarray(rgb[..., 0].astype(np.uint16) * 257 + other[..., 0])
    if kind == "RGBA":
        return Image.fromarray(np.concatenate([rgb, other[..., :1]], 2))
    if kind == "transparent":
        image = Image.fromarray(rgb)
        image.info["transparency"] = tuple(rgb[0, 0].tolist())
        return image
    return Image.fromarray(rgb).convert(kind)


@pytest.mark.parametrize("kind", ["RGB", "L", "P", "1", "LA", "RGBA", "16 bit", "transparent"])
@pytest.mark.parametrize("resize", ["squash", "pad"])
def test_an_image_in_memory_is_what_its_png_is(tmp_path: Path, kind: str, resize: Any) -> None:
    image = in_memory(kind)
    options = {"transparency": image.info["transparency"]} if kind == "transparent" else {}
    path = saved(tmp_path, image, **options)
    assert (decode(image, SIDE, resize, "16") == decode(path, SIDE, resize, "16")).all()
    with Image.open(path) as opened:
        assert (decode(opened, SIDE, resize, "16") == decode(path, SIDE, resize, "16")).all()


@pytest.mark.parametrize("resize", ["squash", "pad"])
def test_an_array_is_what_its_png_is(tmp_path: Path, resize: Any) -> None:
    whole = pixels(90, 140)
    for array in (whole, whole[..., 0], whole[::2, ::-1], np.broadcast_to(whole[0], (50, 140, 3))):
        path = saved(tmp_path, Image.fromarray(array))
        kept = array.copy()
        assert (decode(array, SIDE, resize) == decode(path, SIDE, resize)).all()
        assert (array == kept).all()


@pytest.mark.parametrize("suffix", ["tiff", "gif", "png"])
def test_the_page_that_an_image_stands_at_is_the_one_that_is_looked_at(tmp_path: Path, suffix: str) -> None:
    pages = [Image.new("L", (32, 24), grey) for grey in (10, 200)]
    file = saved(tmp_path, pages[0], f"pages.{suffix}", save_all=True, append_images=pages[1:])
    with Image.open(file) as opened:
        seen = [images.open_photo(page, SIDE).values.mean().round() for page in ImageSequence.Iterator(opened)]
    assert seen == [10, 200]


def test_an_image_in_memory_is_turned_upright(tmp_path: Path) -> None:
    with Image.open(saved(tmp_path, Image.fromarray(pixels()), **turned())) as image:
        assert (as_image(decode(image, SIDE, "squash")) == UPRIGHT[6](pixels())).all()


def test_a_broken_image_that_was_opened_is_unreadable(tmp_path: Path) -> None:
    with Image.open(broken_files(tmp_path)["truncated.jpg"]) as image, pytest.raises(UnreadableImageError):
        decode(image, SIDE, "squash")
    content = bytearray(saved(tmp_path, Image.fromarray(pixels(64, 64))).read_bytes())
    content[len(content) // 2] ^= 16
    with Image.open(io.BytesIO(content)) as image, pytest.raises(UnreadableImageError, match="^damaged"):
        decode(image, SIDE, "squash")


@pytest.mark.parametrize(
    ("photo", "said"),
    [
        (np.zeros((3, 8, 8), np.uint8), r"an array uint8 \(3, 8, 8\) is no photo: give uint8 \(height, width, 3\)"),
        (np.zeros((8, 8, 3)), "an array float64"),
        (np.zeros((8, 8), np.int32), "an array int32"),
        (np.zeros((0, 8, 3), np.uint8), "is no photo"),
        (None, "None is no photo: give a path"),
    ],
)
def test_what_is_no_photo_is_a_mistake_and_not_unreadable(photo: Any, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        decode(photo, SIDE, "squash")
    assert not isinstance(caught.value, UnreadableImageError)


# --- many -------------------------------------------------------------------------------------------------------------


def test_decode_all_keeps_the_order_and_yields_errors_in_place(tmp_path: Path) -> None:
    count = AHEAD + 40  # more than one round
    bad = {0, 7, AHEAD - 1, AHEAD, count - 1}
    paths = [tmp_path / f"{number}.bmp" for number in range(count)]
    for number, path in enumerate(paths):
        if number in bad:
            path.write_bytes(b"")
        else:
            Image.new("RGB", (8, 8), (number % 256, number // 256, 99)).save(path)
    found = list(decode_all(iter(paths), 8, "squash"))
    assert len(found) == count
    assert {number for number, image in enumerate(found) if isinstance(image, UnreadableImageError)} == bad
    for number in set(range(count)) - bad:
        assert found[number][:, 3, 3].tolist() == [number % 256, number // 256, 99]


def test_decode_all_reads_only_so_far_ahead(tmp_path: Path) -> None:
    """A set larger than memory must not be decoded before the first image is taken."""
    path = saved(tmp_path, Image.new("L", (4, 4)))
    asked = 0

    def paths():
        nonlocal asked
        while asked < 3 * AHEAD:
            asked += 1
            yield path

    decoded = decode_all(paths(), 4, "squash")
    next(decoded)
    assert asked <= AHEAD
    decoded.close()
    assert threading.active_count() < 20


def test_other_errors_are_not_taken_for_unreadable_images(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.new("RGB", (8, 8)))
    with pytest.raises(TypeError):
        list(decode_all([path], "8", "squash"))  # type: ignore[arg-type]


@pytest.mark.parametrize(("size", "expected"), [((40, 20), (4, 8)), ((20, 40), (8, 4)), ((300, 300), (8, 8))])
def test_borders_that_pad_a_photo_are_no_part_of_its_heat_map(tmp_path, size, expected) -> None:
    Image.new("L", size).save(tmp_path / "photo.png")
    heat = np.arange(64.0).reshape(8, 8)
    found = images.without_borders(heat, tmp_path / "photo.png")
    assert found.shape == expected
    assert found.mean() == heat.mean()  # the middle of it


@pytest.mark.parametrize("size", [(40, 25), (25, 40), (40, 15)])
@pytest.mark.parametrize("frame", [(8, 8), (32, 15), (9, 64)])
def test_borders_are_cut_off_where_they_were_put_in_a_frame_of_any_shape(tmp_path, size, frame) -> None:
    Image.new("L", size, 255).save(tmp_path / "photo.png")
    padded = images.decode(tmp_path / "photo.png", frame, "pad", "8")[0]
    inner = images.without_borders(padded, tmp_path / "photo.png")
    assert inner.all()
    assert inner.size == (padded > 0).sum()
