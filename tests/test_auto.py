"""A search from the command line: what it tried, what it keeps, and how it ends and goes on."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from defectcls.evaluation.calibration import calibrated_loss
from defectcls.evaluation.predictions import read_predictions
from defectcls.files import BEST
from defectcls.training.run import TrainingRun
from tests.conftest import command, leave_pictures_out, sentence

DEFAULT = "model=timm model.name=test_resnet.r160_in1k model.pretrained=false image_size=32"
OTHERS = (
    f"{DEFAULT} model.head=linear",
    "model=resnet18",
    f"{DEFAULT.removesuffix('32')}auto*1.9",
    f"{DEFAULT} seed=0",
)


@pytest.fixture(scope="module")
def quick(tiny: list[str]) -> list[str]:
    """A tiny run whose head alone is solved, out of fold."""
    return [word for word in tiny if not word.startswith(("finetune", "evaluation"))]


@pytest.fixture(scope="module")
def typed(quick: list[str]) -> list[str]:
    """Without the model and the size, which would hold for all candidates."""
    rest = [word for word in quick if not word.startswith(("model", "image_size"))]
    return [*rest, f"candidates=[{','.join(map(repr, (DEFAULT, *OTHERS)))}]", "repeats=2", "model.weights=null"]


def numbers(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


@pytest.fixture(scope="module")
def searched(typed: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("auto")
    with pytest.MonkeyPatch.context() as patch:
        leave_pictures_out(patch)
        done = command("auto", *typed, f"hydra.run.dir={folder}")
    assert done.code == 0, done.err
    assert f"{OTHERS[0]}: loss 0." in done.err and "model=resnet18: the weights of" in done.err
    return folder


@pytest.mark.slow
def test_numbers_are_those_of_the_out_of_fold_tables(searched: Path) -> None:
    found = numbers(searched)["auto"]
    assert [row["overrides"] for row in found["tried"]] == [DEFAULT, OTHERS[0], OTHERS[2]]
    for row, number in zip(found["tried"], (0, 1, 3), strict=True):
        tables = [read_predictions(file) for file in sorted(searched.glob(f"tried/{number}/*/predictions.csv"))]
        assert len(tables) == row["seeds"]
        for table in tables:
            assert table["path"].nunique() == len(table) == 90
            assert table.groupby("unit")["fold"].nunique().max() == 1
        losses = [
            calibrated_loss(table[["p_sound", "p_defective"]].to_numpy(), table["defective"].to_numpy(int))
            for table in tables
        ]
        assert row["loss"] == pytest.approx(np.mean(losses))
        areas = [roc_auc_score(table["defective"], table["score"]) for table in tables]
        assert row["auroc"] == pytest.approx(np.mean(areas))
        assert row["low"] <= row["difference"] <= row["high"]
        assert row["ms_per_photo"] > 0
    assert found["tried"][0]["seeds"] == 2
    assert found["seconds"] == pytest.approx(sum(row["seconds"] for row in found["tried"]))
    assert found["nested"]["n"] == 90
    assert found["nested"]["intervals"]["auroc"][0] < found["nested"]["auroc"]


def test_what_is_not_tried_is_named(searched: Path) -> None:
    found = numbers(searched)["auto"]
    assert found["skipped"] == {
        "model=resnet18": found["skipped"]["model=resnet18"],
        OTHERS[3]: "the same as another",
    }
    assert found["skipped"]["model=resnet18"].startswith("the weights of resnet18.a1_in1k are not on this machine")


def test_sides_are_those_of_the_default_times_a_factor(searched: Path) -> None:
    assert numbers(searched / "tried/3/0")["config"]["image_size"] == 64


def test_what_is_kept_is_an_ordinary_run(searched: Path, tmp_path: Path) -> None:
    metrics = numbers(searched)
    number = [DEFAULT, *OTHERS].index(metrics["auto"]["kept"])
    tried, kept = (
        read_predictions(searched / f"tried/{number}/0/predictions.csv"),
        read_predictions(searched / "predictions.csv"),
    )
    pd.testing.assert_series_equal(kept["score"], tried["score"], atol=1e-6)
    assert metrics["command"].startswith("python -m defectcls.auto ")
    assert (searched / BEST).is_file()
    assert not list(searched.glob(f"tried/**/{BEST.name}"))
    page = (searched / "report.html").read_text()
    assert "What was tried" in page and "Chosen among 3 by the photos that judge it" in page
    given = (f"checkpoint={searched}", "seen=keep", "device=cpu", "inspect.heat_maps=false", "inspect.robustness=false")
    assert command("evaluate", *given, f"hydra.run.dir={tmp_path}").code == 0


@pytest.mark.slow
def test_what_is_typed_holds_for_all(quick: list[str], tmp_path: Path, no_pictures: None) -> None:
    candidates = ["", "model=resnet18", "image_size=auto*2"]
    given = (*quick, f"candidates=[{','.join(map(repr, candidates))}]", f"hydra.run.dir={tmp_path}")
    assert command("auto", *given).code == 0
    found = numbers(tmp_path)["auto"]
    assert [row["overrides"] for row in found["tried"]] == ["default"]
    assert found["skipped"] == {
        "model=resnet18": "what is typed holds for all",
        "image_size=auto*2": "what is typed holds for all",
    }


@pytest.mark.slow
def test_a_signal_ends_the_search_and_the_best_is_kept(
    typed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_pictures: None
) -> None:
    trained: list[Path] = []

    def interrupted(self: TrainingRun, train: Any = TrainingRun.train) -> None:
        trained.append(self.folder.relative_to(tmp_path))
        if len(trained) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        train(self)

    monkeypatch.setattr(TrainingRun, "train", interrupted)
    done = command("auto", *typed, f"hydra.run.dir={tmp_path}")
    assert done.code == 0, done.err
    assert "stopped after 1 of 5 candidates" in done.err
    assert trained == [Path("tried/0/0"), Path("tried/1/0"), Path()]
    found = numbers(tmp_path)["auto"]
    assert found["kept"] == DEFAULT
    assert [*found["skipped"].values()] == ["the search was stopped"] * 4
    assert command("auto", f"resume={tmp_path}").out.startswith("this run is finished:")


@pytest.mark.slow
def test_too_few_minutes_keep_the_default_and_it_goes_on_with_more(
    typed: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_pictures: None
) -> None:
    done = command("auto", *typed, "minutes=0.001", f"hydra.run.dir={tmp_path}")
    assert done.code == 0, done.err
    assert "minutes=0.001 leaves no time to try another: the default took 0." in done.err
    found = numbers(tmp_path)["auto"]
    assert [row["overrides"] for row in found["tried"]] == [DEFAULT]
    assert found["skipped"] == dict.fromkeys(OTHERS, "no time was left")
    (tmp_path / "metrics.json").unlink()  # as a run that was killed has none

    trained: list[Path] = []
    train = TrainingRun.train
    monkeypatch.setattr(TrainingRun, "train", lambda self: (trained.append(self.folder), train(self))[1])
    assert command("auto", f"resume={tmp_path}", "minutes=5", "repeats=1").code == 0
    assert trained == [tmp_path / "tried/1/0", tmp_path / "tried/3/0", tmp_path]
    assert len(numbers(tmp_path)["auto"]["tried"]) == 3


def test_mistakes(quick: list[str], tmp_path: Path) -> None:
    place = f"hydra.run.dir={tmp_path}"
    said = sentence(command("auto", *quick, "trainer.strategy=ddp", place))
    assert said == "a search trains on one device: leave trainer.strategy=auto"
    said = sentence(command("auto", *quick, "evaluation=holdout", place))
    assert said == "evaluation=holdout: it has to be 'crossval'"
    said = sentence(command("auto", *quick, "candidates=['','model.haed=linear']", place))
    assert said.startswith("unknown key 'model.haed'")
    assert sentence(command("auto", *quick, "candidates=[]", place)).startswith("candidates=[]: ")
    assert not (tmp_path / "tried").exists()
