from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from defectcls.data import masks
from defectcls.data.images import decode
from defectcls.data.masks import load_mask, mask_sizes
from defectcls.errors import UserError


def drawn(path: Path, width: int, height: int, box: tuple[int, int, int, int], mode: str = "L") -> None:
    mask = Image.new(mode, (width, height))
    mask.paste(Image.new(mode, (box[2] - box[0], box[3] - box[1]), "white"), box)
    mask.save(path)


@pytest.mark.parametrize("mode", ["L", "1", "RGB"])
def test_masks_take_the_shape_of_their_images(tmp_path: Path, mode: str) -> None:
    drawn(tmp_path / "wide.png", 64, 32, (32, 0, 64, 32), mode)  # the right half
    squashed = load_mask(tmp_path / "wide.png", (16, 16), "squash")
    assert squashed[:, 9:].all() and not squashed[:, :7].any()
    padded = load_mask(tmp_path / "wide.png", (16, 16), "pad")
    assert padded[5:11, 9:].all() and not padded[:, :7].any()
    assert not padded[:3].any() and not padded[13:].any()


@pytest.mark.parametrize("resize", ["squash", "pad"])
def test_a_mask_lies_on_its_image_in_a_frame_of_any_shape(tmp_path: Path, resize: Any) -> None:
    drawn(tmp_path / "wide.png", 120, 60, (90, 0, 120, 30))
    mask = load_mask(tmp_path / "wide.png", (48, 64), resize)
    image = decode(tmp_path / "wide.png", (48, 64), resize, "8")[0]
    assert mask.shape == (48, 64)
    assert (mask == (image > 0)).all()
    rows, columns = np.nonzero(mask)
    assert (rows.min(), columns.max()) == ((0, 63) if resize == "squash" else (8, 63))  # 64 x 32 in the middle


def test_a_mask_of_16_bits_marks_whatever_is_not_0(tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 2, (16, 16)).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "mask.png")
    assert (load_mask(tmp_path / "mask.png", (16, 16), "squash") == values).all()


def test_a_thin_scratch_does_not_vanish(tmp_path: Path) -> None:
    drawn(tmp_path / "scratch.png", 512, 512, (100, 0, 101, 512))
    mask = load_mask(tmp_path / "scratch.png", (64, 64), "squash")
    assert mask[:, 12].all()
    assert not mask[:, :11].any() and not mask[:, 15:].any()


def test_a_broken_mask_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"the mask .*broken\.png cannot be read: not an image"):
        mask_sizes(pd.DataFrame({"mask": ["", "broken.png"]}), tmp_path, 8)


def test_sizes_of_defects_are_of_the_masks_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty mask has no size, a row without one is not even looked at."""
    for name, side in (("speck", 1), ("scratch", 5), ("dent", 20), ("hole", 64), ("nothing", 0)):
        drawn(tmp_path / f"{name}.png", 64, 64, (0, 0, side, side))
    names = ["", "hole", "speck", "", "nothing", "dent", "scratch", ""]
    table = pd.DataFrame({"mask": [name and f"{name}.png" for name in names]})
    read, opened = [], masks.open_photo
    monkeypatch.setattr(masks, "open_photo", lambda path, side: (read.append(path), opened(path, side))[1])
    expected = ["", "over 10 %", "under 0.1 %", "", "", "1 to 10 %", "0.1 to 1 %", ""]
    assert mask_sizes(table, tmp_path, 64) == expected  # 1, 25 and 400 of 4096 pixels, and all
    assert len(read) == 5


def test_the_size_of_a_defect_is_its_share_of_the_photo_whatever_the_model_sees(tmp_path: Path) -> None:
    """A scratch of one pixel in a wide photo, 0.05 %: neither borders count nor the pixels that it hardly touches."""
    drawn(tmp_path / "scratch.png", 2000, 500, (100, 0, 101, 500))
    assert mask_sizes(pd.DataFrame({"mask": ["scratch.png"]}), tmp_path, 64) == ["under 0.1 %"]
