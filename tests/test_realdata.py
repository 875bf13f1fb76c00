"""What the probe reaches on real photos; DEFECTCLS_DATA and DEFECTCLS_WEIGHTS say where they and its weights lie."""

import json
from pathlib import Path
from typing import Any

import pytest

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
