"""Damaged files of every format: pixels or a reason, whatever the damage, and never the death of the process.

The sample is fixed; `DEFECTCLS_MUTATIONS=10000 pytest -s -m slow tests/data/test_damaged_photos.py` tries more,
and prints what became of them.
"""

import io
import json
import os
import struct
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from defectcls.data.images import UnreadableImageError, decode
from tests.data.test_images import UPRIGHT, chunks_of, png_of, turned

KINDS = ("flip", "zero", "cut", "double")
SIDE = 32
FAR = 8  # grey values in the mean: pixels that are others


def sources() -> dict[str, bytes]:
    """A small file of every format and of every way to code its pixels, by name."""
    y, x = np.mgrid[:48, :64]
    noise = np.random.default_rng(0).integers(-9, 10, (48, 64, 3))
    scene = np.clip(np.stack([x * 3, y * 4, 255 - x - y], 2) + noise, 0, 255).astype(np.uint8)
    rgb, found = Image.fromarray(scene), {}
    grey, deep, floats = rgb.convert("L"), scene[..., 0].astype(np.uint16) * 16, scene[..., 0].astype(np.float32) / 255

    def add(name: str, image: Image.Image | np.ndarray, **options: Any) -> None:
        buffer = io.BytesIO()
        image = image.copy() if isinstance(image, Image.Image) else Image.fromarray(image)  # save leaves traces
        image.save(buffer, Image.registered_extensions()[name[name.index(".") :]], **options)
        found[name] = buffer.getvalue()

    def more() -> dict[str, Any]:
        return {"save_all": True, "append_images": [Image.fromarray(scene[::-1])]}

    for mode in ("RGB", "L", "P", "1", "RGBA"):
        add(f"{mode}.png", rgb.convert(mode))
        add(f"{mode}.tif", rgb.convert(mode))
    add("deep.png", deep)
    add("animated.png", rgb, **more())
    add("plain.jpg", rgb)
    add("grey.jpg", grey)
    add("progressive.jpg", rgb, progressive=True)
    add("cmyk.jpg", rgb.convert("CMYK"))
    add("turned.jpg", rgb, **turned("maker"))
    add("twice.mpo", rgb, **more())
    add("plain.bmp", rgb)
    add("palette.bmp", rgb.convert("P"))
    add("plain.dib", rgb)
    for coding in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        add(f"{coding}.tif", rgb, compression=coding)
    add("group4.tif", rgb.convert("1"), compression="group4")
    add("deep.tif", deep)
    add("float.tif", floats)
    add("pages.tif", rgb, **more())
    add("plain.webp", rgb)
    add("lossless.webp", rgb, lossless=True)
    add("animated.webp", rgb, **more())
    add("plain.gif", rgb)
    add("animated.gif", rgb, **more())
    add("plain.jp2", rgb)
    add("plain.j2k", grey)
    add("plain.avif", rgb)
    add("plain.pcx", rgb)
    add("plain.tga", rgb)
    add("packed.tga", rgb.convert("RGBA"), compression="tga_rle")
    add("plain.qoi", rgb)
    add("plain.ppm", rgb)
    add("plain.pgm", grey)
    add("plain.pbm", rgb.convert("1"))
    found["deep.pgm"] = b"P5 64 48 4095\n" + deep.astype(">u2").tobytes()
    return found


def mutated(content: bytes, kind: str, rng: np.random.Generator) -> bytes:
    """Bits flipped, a block zeroed or doubled, or the end cut off."""
    damaged = bytearray(content)
    start = int(rng.integers(0, len(content)))
    stop = min(len(content), start + int(rng.integers(1, 64)))
    if kind == "flip":
        for place in rng.integers(0, len(content), rng.integers(1, 4)).tolist():
            damaged[place] ^= 1 << int(rng.integers(8))
    elif kind == "zero":
        damaged[start:stop] = bytes(stop - start)
    elif kind == "cut":
        del damaged[start:]
    else:
        damaged[stop:stop] = content[start:stop]
    return bytes(damaged)


def mutated_pixels(content: bytes, kind: str, rng: np.random.Generator, right: bool) -> bytes:
    """A PNG whose pixels alone are damaged, and its checksums right or left as they were."""
    chunks = list(chunks_of(content))
    changed = [(name, mutated(data, kind, rng) if name == b"IDAT" else data) for name, data in chunks]
    if right:
        return png_of(changed)
    whole = [struct.pack(">I", len(data)) + name + data for name, data in changed]
    sums = [png_of([chunk])[-4:] for chunk in chunks]
    return png_of([]) + b"".join(body + check for body, check in zip(whole, sums, strict=True))


def campaign(count: int, folder: Path) -> None:
    """Decode `count` damaged files; a line of JSON each on stdout, written before and after."""
    rng, originals = np.random.default_rng(0), sources()
    plain = {}
    for name, content in originals.items():
        (folder / name).write_bytes(content)
        plain[name] = decode(folder / name, (SIDE, SIDE), "squash", "auto").astype(int)
    names = list(originals)
    for number in range(count):
        name, kind = names[number % len(names)], KINDS[number // len(names) % len(KINDS)]
        how = "" if not name.endswith(".png") else ("anywhere", "right sum", "wrong sum")[int(rng.integers(3))]
        if how in ("", "anywhere"):
            content = mutated(originals[name], kind, rng)
        else:
            content = mutated_pixels(originals[name], kind, rng, how == "right sum")
        if content == originals[name]:
            continue
        path = folder / f"damaged_{name}"
        path.write_bytes(content)
        print(json.dumps([number, name, kind, how]), end=" ", flush=True)
        reason, far = "", False
        try:
            far = bool(np.abs(decode(path, (SIDE, SIDE), "squash", "auto").astype(int) - plain[name]).mean() > FAR)
        except UnreadableImageError as error:
            reason = str(error)
        print(json.dumps([reason, far]), flush=True)


def test_every_source_is_whole(tmp_path: Path) -> None:
    for name, content in sources().items():
        (tmp_path / name).write_bytes(content)
        assert decode(tmp_path / name, (SIDE, SIDE), "squash", "auto").std() > 20, name


@pytest.mark.slow
def test_damage_gives_pixels_or_a_reason_and_never_a_death(tmp_path: Path) -> None:
    count = int(os.environ.get("DEFECTCLS_MUTATIONS", "1500"))
    code = f"from pathlib import Path; from {__name__} import campaign; campaign({count}, Path({str(tmp_path)!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    assert done.returncode == 0, f"died of {done.returncode} after {lines[-1:]}: {done.stderr[-2000:]}"
    told = Counter()
    for line in lines:
        decoder = json.JSONDecoder()
        (_, name, _, how), end = decoder.raw_decode(line)
        reason, far = json.loads(line[end:])
        suffix = name.split(".")[1]
        told[suffix, "files"] += 1
        told[suffix, "reason" if reason else "other pixels" if far else "pixels"] += 1
        assert "\n" not in reason
        if how == "wrong sum":
            assert reason.startswith("damaged"), line
    for suffix in sorted({suffix for suffix, _ in told}):
        print(suffix, {what: told[suffix, what] for what in ("files", "reason", "pixels", "other pixels")})
    assert sum(told[key] for key in told if key[1] == "files") > 0.9 * count


@pytest.mark.parametrize("name", ["RGB.png", "deep.png", "animated.png"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_png_whose_pixels_are_damaged_is_named(tmp_path: Path, name: str, kind: str) -> None:
    """Of a flipped bit torchvision's decoder dies, and Pillow often gives other pixels without a word."""
    rng, content = np.random.default_rng(0), sources()[name]
    for _ in range(5):
        (tmp_path / name).write_bytes(mutated_pixels(content, kind, rng, right=False))
        with pytest.raises(UnreadableImageError, match="^damaged"):
            decode(tmp_path / name, (SIDE, SIDE), "squash", "auto")


@pytest.mark.parametrize("turn", UPRIGHT)
def test_a_damaged_jpeg_is_named_however_it_is_held(tmp_path: Path, turn: int) -> None:
    """Half of its pixels gone: Pillow alone fills them with grey once its buffer is refilled, without a word."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)).save(
        buffer, "JPEG", **turned(orientation=turn)
    )
    content = buffer.getvalue()
    middle = len(content) // 2
    (tmp_path / "photo.jpg").write_bytes(content[:middle] + content[middle + 2000 :])
    with pytest.raises(UnreadableImageError, match="Corrupt JPEG data|Premature end of JPEG"):
        decode(tmp_path / "photo.jpg", (SIDE, SIDE), "squash", "8")
