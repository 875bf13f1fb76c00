import io

import numpy as np
import pytest
from PIL import Image

from defectcls.pages.photos import overlay, thumbnail_files, worst_errors
from tests.pages.test_pictures import TWO, predictions_of


def shown(root, name, side, depth="8"):
    """The thumbnail of one photo."""
    return Image.open(io.BytesIO(thumbnail_files([name], root, side, depth)[name][0]))


def test_a_thumbnail_is_as_dark_as_the_network_sees_it_and_upright(tmp_path):
    """255 x 1,000 / 4,095 is 62.3; where no model tells the depth, 3,000 says that it was 12 bits."""
    deep = np.repeat(np.repeat(np.array([[1000, 1000], [3000, 2000]], np.uint16), 8, axis=0), 8, axis=1)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    for depth, grey in {"12": [62, 62, 187, 125], "16": [4, 4, 12, 8], "auto": [62, 62, 187, 125]}.items():
        pixels = np.asarray(shown(tmp_path, "deep.png", 16, depth)).astype(int)
        assert pixels[4::8, 4::8].ravel().tolist() == pytest.approx(grey, abs=2)  # as JPEG keeps it
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    Image.new("L", (400, 200)).save(tmp_path / "turned.jpg", exif=exif)
    assert shown(tmp_path, "turned.jpg", 100).size == (100, 200)
    Image.new("L", (500, 1260)).save(tmp_path / "tall.png")  # 87 x 220 px could not be read
    assert shown(tmp_path, "tall.png", 220).size == (143, 360)
    Image.new("L", (1260, 500)).save(tmp_path / "wide.png")
    assert shown(tmp_path, "wide.png", 220).size == (220, 87)


def test_an_overlay_is_the_grey_photo_where_it_is_cold_and_still_shows_it_where_it_is_hot():
    photo = Image.new("RGB", (40, 20), (100, 100, 100))
    photo.paste((200, 200, 200), (0, 0, 40, 10))  # the upper half is brighter
    heat = np.zeros((8, 8), np.float32)
    heat[:, 4:] = 1
    tinted = np.asarray(overlay(photo, heat)).astype(int)
    assert tinted.shape == (20, 40, 3)
    assert tinted[5, 2].tolist() == [200, 200, 200]
    assert tinted[15, 2].tolist() == [100, 100, 100]
    vermilion = np.array([0xD5, 0x5E, 0x00])
    assert tinted[5, 37] == pytest.approx(0.4 * 200 + 0.6 * vermilion, abs=1)
    assert (tinted[5, 37] - tinted[15, 37]).tolist() == [40, 40, 40]
    coloured = Image.new("RGB", (4, 4), (255, 0, 0))
    assert len(set(overlay(coloured, np.zeros((4, 4))).getpixel((0, 0)))) == 1


def test_worst_errors_are_the_most_confident_of_either_kind():
    predictions = predictions_of([1, 1, 1, 0, 0, 0], [0.4, 0.1, 0.9, 0.6, 0.8, 0.2])
    errors = worst_errors(predictions, TWO)
    assert errors["path"].tolist() == ["1.png", "0.png", "4.png", "3.png"]
    reviewed = predictions.assign(decision=["review"] * 6)
    assert worst_errors(reviewed, TWO)["path"].tolist() == ["1.png", "0.png"]
    assert worst_errors(predictions, TWO, limit=1)["path"].tolist() == ["1.png", "4.png"]


def test_files_are_those_that_can_be_read_and_heat_stands_beside(tmp_path):
    for name in ("0.png", "1.png"):
        Image.new("RGB", (500, 250), (200, 30, 30)).save(tmp_path / name)
    files = thumbnail_files(["0.png", "1.png", "gone.png", "0.png"], tmp_path, 240, "8", {"1.png": np.ones((4, 4))})
    assert {name: [bool(file) for file in each] for name, each in files.items()} == {
        "0.png": [True],
        "1.png": [True, True],
        "gone.png": [False],
    }
    shown = np.asarray(Image.open(io.BytesIO(files["0.png"][0])), np.float64)
    assert shown.shape == (120, 240, 3)
    assert np.abs(shown - (200, 30, 30)).max() <= 4
