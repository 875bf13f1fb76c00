"""A file and its checkpoint judge every kind of photo alike: one way to decode, and the network again as a graph."""

from pathlib import Path

import imagecodecs
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from defectcls.deployment.predictor import load
from tests.conftest import command

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of photos of 12 bits; with its file beside it."""
    folder = tmp_path_factory.mktemp("run")
    assert command("train", *tiny, "finetune=probe", "dataset.depth=12", f"hydra.run.dir={folder}").code == 0
    done = command("export", f"checkpoint={folder}", f"output={folder}/model.onnx", f"hydra.run.dir={folder}/export")
    assert done.code == 0, done.err
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One photo in every format and mode that is read, those that are refused, and damaged ones."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 7, 3), dtype=np.uint8))
    photo = coarse.resize((190, 230), Image.Resampling.BICUBIC)
    grey, deep = photo.convert("L"), np.asarray(photo.convert("L")).astype(np.uint16) * 16
    for suffix in ("png", "jpg", "tif", "webp", "avif", "gif", "bmp", "jp2", "ppm", "tga", "pcx", "qoi"):
        photo.save(folder / f"colour.{suffix}")
    for mode in ("L", "P", "1", "LA", "RGBA", "CMYK"):
        photo.convert(mode).save(folder / f"{mode}.{'jpg' if mode == 'CMYK' else 'png'}")
    grey.save(folder / "grey.jpg")
    large = photo.resize((900, 700))
    large.save(folder / "large.jpg", quality=90)  # which is decoded at a fraction of its size
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        photo.save(folder / f"turned {orientation}.jpg", exif=exif)
        photo.save(folder / f"turned {orientation}.png", exif=exif)
    Image.fromarray(deep).save(folder / "12 bits.png")
    Image.fromarray(deep).save(folder / "12 bits.tif")
    Image.fromarray(deep * 16).save(folder / "16 bits.png")
    colour = np.asarray(photo).astype(np.uint16) * 16
    (folder / "12 bits, colour.png").write_bytes(imagecodecs.png_encode(colour))
    (folder / "12 bits, colour.tif").write_bytes(imagecodecs.tiff_encode(colour) if imagecodecs.TIFF.available else b"")
    photo.save(folder / "pages.tif", save_all=True, append_images=[photo, photo])
    whole = (folder / "colour.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])
    (folder / "cut.jpg").write_bytes((folder / "colour.jpg").read_bytes()[:2000])
    (folder / "flipped.png").write_bytes(whole[:-40] + bytes([whole[-40] ^ 1]) + whole[-39:])
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("no pixels")
    for shape in ((1, 1), (1, 900), (2000, 3), (33, 31)):
        Image.fromarray(rng.integers(0, 256, (*shape, 3), dtype=np.uint8)).save(folder / f"{shape}.png")
    return folder


def test_every_kind_of_photo_has_the_row_that_the_checkpoint_gives_it(run: Path, photos: Path) -> None:
    files = sorted(photos.iterdir())
    checkpoint, file = load(run, "cpu", "32"), load(run / "model.onnx", "cpu")
    expected, found = checkpoint.predict(files, 7), file.predict(files, 16)
    words = ["path", "decision", "prediction", "error"]
    pd.testing.assert_frame_equal(found[words], expected[words])
    numbers = ["score", "p_sound", "p_defective"]
    np.testing.assert_allclose(found[numbers], expected[numbers], atol=1e-5)
    refused = {Path(path).name for path in found["path"][found["error"] != ""]}
    assert {"16 bits.png", "cut.png", "cut.jpg", "empty.png", "text.png"} <= refused
    assert {"12 bits.png", "12 bits.tif", "12 bits, colour.png", "pages.tif", "turned 6.jpg"}.isdisjoint(refused)
    assert len(refused) < len(files) / 4
    assert file.paged == checkpoint.paged == 1
    for one in files:  # before the network: to the bit
        mine, theirs = file.read(one), checkpoint.read(one)
        assert mine.error == theirs.error
        assert (mine.pixels is None) == (theirs.pixels is None)
        assert mine.pixels is None or np.array_equal(mine.pixels, theirs.pixels)


def test_the_verb_writes_the_same_rows_whichever_it_is_given(run: Path, photos: Path, tmp_path: Path) -> None:
    tables = []
    for model in (run, run / "model.onnx"):
        given = (f"checkpoint='{model}'", f"input='{photos}'", "device=cpu", "precision=32")
        assert command("predict", *given, f"hydra.run.dir={tmp_path / model.name}").code == 1
        tables.append(pd.read_csv(tmp_path / model.name / "predictions.csv", keep_default_na=False))
    words = ["path", "decision", "prediction", "error"]
    assert tables[0][words].equals(tables[1][words])
    assert (tmp_path / "model.onnx/gallery.html").is_file()
