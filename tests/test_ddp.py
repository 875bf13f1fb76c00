"""Two processes measure what one does, and train through stages."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from tests.conftest import command, process, weights

pytestmark = pytest.mark.slow

TWO = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")


def alone(folder: Path, *arguments: str) -> dict[str, Any]:
    assert command("train", *arguments, f"hydra.run.dir={folder}").code == 0
    return json.loads((folder / "metrics.json").read_text())


def together(folder: Path, *arguments: str) -> dict[str, Any]:
    """The same with two processes on the CPU."""
    outcome = process("defectcls.train", *arguments, *TWO, f"hydra.run.dir={folder}", cwd=folder.parent)
    assert outcome.code == 0, outcome.err
    return json.loads((folder / "metrics.json").read_text())


def test_two_processes_measure_what_one_does(tiny: list[str], tmp_path: Path) -> None:
    """A probe is the same model either way. The test part does not divide by two batches of eight."""
    arguments = (*tiny, "finetune=probe", "batch_size=8", "dataset.split.test=17")
    one, two = alone(tmp_path / "one", *arguments), together(tmp_path / "two", *arguments)
    files = [tmp_path / name / "checkpoints/best.ckpt" for name in ("one", "two")]
    for name, value in weights(files[0]).items():
        torch.testing.assert_close(weights(files[1])[name], value, rtol=1e-4, atol=1e-5)
    for part in ("train", "val", "test"):
        assert one[part]["n"] == two[part]["n"] == sum(map(sum, two[part]["confusion_matrix"]))
        assert one[part]["confusion_matrix"] == two[part]["confusion_matrix"]
        assert one[part]["loss"] == pytest.approx(two[part]["loss"], abs=1e-4)
        assert one[part]["auroc"] == pytest.approx(two[part]["auroc"])
    assert one["test"]["n"] == 17 * 2
    tables = [pd.read_csv(tmp_path / name / "predictions.csv") for name in ("one", "two")]
    assert tables[0]["path"].tolist() == tables[1]["path"].tolist()
    assert tables[0]["score"].to_numpy() == pytest.approx(tables[1]["score"].to_numpy(), abs=1e-3)
    history = [pd.read_csv(tmp_path / name / "metrics.csv") for name in ("one", "two")]
    assert history[0]["val/auroc"].tolist() == pytest.approx(history[1]["val/auroc"].tolist())


@pytest.mark.parametrize("preset", ["full", "gradual"])
def test_two_processes_train_through_the_stages(tiny: list[str], tmp_path: Path, preset: str) -> None:
    arguments = (*tiny, f"finetune={preset}", "batch_size=8", "finetune.patience=null")
    one = alone(tmp_path / "one", *arguments, "batch_size=16")
    two = together(tmp_path / "two", *arguments)
    assert one.keys() == two.keys()
    assert one["test"].keys() == two["test"].keys()
    assert [(stage["name"], stage["epochs"]) for stage in one["stages"]] == [
        (stage["name"], stage["epochs"]) for stage in two["stages"]
    ]
    last = [torch.load(tmp_path / name / "checkpoints/last.ckpt", weights_only=True) for name in ("one", "two")]
    assert last[0]["global_step"] == last[1]["global_step"]
    predicted = pd.read_csv(tmp_path / "two/predictions.csv")
    assert len(predicted) == 90
    assert predicted["path"].is_unique
    assert np.isfinite(predicted["score"]).all()


def test_sweep_of_jobs_of_two_processes(tiny: list[str], tmp_path: Path) -> None:
    """No process repeats the sweep, or the other job."""
    given = (*tiny, *TWO, "finetune=full", "finetune.stages.full.epochs=1", "seed=0,1")
    outcome = process("defectcls.train", "-m", *given, f"hydra.sweep.dir={tmp_path}", cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    seeds = [json.loads((tmp_path / job / "metrics.json").read_text())["seed"] for job in "01"]
    assert seeds == [0, 1]
    assert {folder.name for folder in tmp_path.iterdir() if folder.is_dir()} == {"0", "1"}
    assert "Traceback" not in outcome.err


def test_mistake_is_one_sentence_from_two_processes(tiny: list[str], tmp_path: Path) -> None:
    given = (*tiny, *TWO, "finetune=full", "dataset.split.test=999", f"hydra.run.dir={tmp_path / 'run'}")
    outcome = process("defectcls.train", *given, cwd=tmp_path)
    assert outcome.code == 2
    assert "fewer than dataset.split asks for" in outcome.err.rpartition("\nerror: class ")[2]
    assert outcome.err.count("error: ") == 1
