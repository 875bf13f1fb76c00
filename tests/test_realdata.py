"""What the probe reaches on real photos; DEFECTCLS_DATA and DEFECTCLS_WEIGHTS say where they and its weights lie."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageFilter

import defectcls
from defectcls.evaluation.predictions import read_predictions
from tests.conftest import command

pytestmark = pytest.mark.realdata


def probe(folder: Path, *arguments: str) -> dict[str, Any]:
    """Numbers of the test part after finetune=probe."""
    given = ("finetune=probe", "trainer=cpu", "logger=csv", f"hydra.run.dir={folder}")
    outcome = command("train", *arguments, *given)
    assert outcome.code == 0, outcome.err
    return json.loads((folder / "metrics.json").read_text())["test"]


def test_cracks_in_concrete(tmp_path: Path) -> None:
    counts = ("dataset.split.train=300", "dataset.split.val=100", "dataset.split.test=300")
    found = probe(tmp_path, "dataset=concrete_crack", *counts)
    assert found["n"] == 600
    assert found["accuracy"] >= 0.985


def test_broken_bottles(tmp_path: Path) -> None:
    found = probe(tmp_path, "dataset=mvtec", "dataset.categories=[bottle]")
    assert found["auroc"] >= 0.99


def test_bottles_of_which_five_broken_ones_are_known(tmp_path: Path) -> None:
    few = ("dataset=mvtec", "dataset.categories=[bottle]", "dataset.split.anomalies=5")
    found = probe(tmp_path, *few, "model.head=joined", "finetune.probe_c=[0.01]")
    assert found["n"] > 70
    assert found["auroc"] >= 0.999


def test_bad_castings(tmp_path: Path) -> None:
    counts = ("dataset.split.train=200", "dataset.split.val=60", "dataset.split.test=150")
    found = probe(tmp_path, "dataset=casting", *counts)
    assert found["n"] == 300
    assert found["auroc"] >= 0.98


def test_parts_of_a_railway_track(tmp_path: Path) -> None:
    found = probe(tmp_path, "dataset=railway_components", "target=defect_type")
    assert len(found["confusion_matrix"]) == 7
    assert found["f1_macro"] > 0.7


@pytest.mark.parametrize("name", ["transistor", "screw"])
def test_photos_unlike_those_measured(tmp_path: Path, name: str) -> None:
    """A third that it has not seen, as it is, darker by 30 %, blurred; and another part."""
    given = (f"dataset.categories=[{name}]", "dataset.split.published=false", "dataset.split.folds=3", "image_size=224")
    probe(tmp_path, "dataset=mvtec", *given)
    predictor, rows = defectcls.load(tmp_path, "cpu"), read_predictions(tmp_path / "predictions.csv")
    folder = Path(os.environ["DEFECTCLS_DATA"]) / "mvtec"
    photos = [Image.open(folder / path).convert("RGB") for path in rows["path"][rows["split"] == "test"]]

    def told(some: list[Image.Image]) -> tuple[float, Any]:
        found = predictor.predict(some)
        (window,) = predictor.drift(len(some)).windows(found.assign(path="it"))
        return found["unlike"].mean(), window

    mean, window = told(photos)
    assert 0.4 < mean < 0.6
    assert (window.since, window.chance > 0.01) == ("", True)
    changed = {
        "darker than any measured": [photo.point(lambda value: 0.7 * value) for photo in photos],
        "more blurred than any measured": [photo.filter(ImageFilter.GaussianBlur(10)) for photo in photos],
    }
    for cause, some in changed.items():
        _, window = told(some)
        assert (window.beyond, window.since, window.cause) == (len(photos), "it", cause)
    other = sorted((folder / "bottle").rglob("*.png"))[:40]
    assert told([Image.open(file) for file in other])[1].beyond == 40
