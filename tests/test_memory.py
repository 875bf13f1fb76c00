"""A run whose head is the memory alone: it needs no defective image, and says clearly what cannot be had without."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from defectcls.deployment.predictor import load
from defectcls.evaluation.predictions import read_predictions
from defectcls.model.checkpoint import load_trained
from defectcls.model.head import FOLDS
from defectcls.model.memory import PRIOR
from defectcls.pages import report
from defectcls.training.build import build_data
from tests.conftest import command, paint, sentence

MEMORY = ("model.head=memory", "finetune=probe")
EXACT = "donot_use_mm_for_euclid_dist"
SOUND, SCRATCHED = (40, 90, 200), (70, 90, 180)


def numbers(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


@pytest.fixture(scope="module")
def bottles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MVTec AD's layout: 24 sound photos for training, and for the test 6 sound and 8 of another colour."""
    root = tmp_path_factory.mktemp("mvtec")
    for folder, numbers, colour in (
        ("train/good", range(24), SOUND),
        ("test/good", range(24, 30), SOUND),
        ("test/scratch", range(8), SCRATCHED),
    ):
        for number in numbers:
            paint(root / "bottle" / folder / f"{number:03d}.png", tuple(np.add(colour, 7 * number % 30)))
    return root


@pytest.fixture(scope="module")
def published(tiny: list[str], bottles: Path) -> list[str]:
    """The published split, which shows no defect before the test."""
    plain = [given for given in tiny if not given.startswith("dataset")]
    return [*plain, "dataset=mvtec", f"dataset.root={bottles}", "dataset.split.published=true"]


def trained(folder: Path, *arguments: str) -> Path:
    outcome = command("train", *arguments, *MEMORY, f"hydra.run.dir={folder}")
    assert outcome.code == 0, outcome.err
    return folder


@pytest.fixture(scope="module")
def run(published: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was shown no defect, and promises few false rejects; to be read only."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "_pictures", lambda *_: (report.Text(), report.Text()))  # half of the time
        return trained(tmp_path_factory.mktemp("memory"), *published, "decision=fpr<=0.1", "inspect.heat_maps=true")


def test_shown_no_defect_it_finds_them_all(run: Path) -> None:
    metrics, rows = numbers(run), read_predictions(run / "predictions.csv")
    assert rows.groupby("split")["defective"].sum().to_dict() == {"test": 8, "train": 0, "val": 0}
    assert metrics["test"]["auroc"] == metrics["test"]["recall"] == 1
    assert metrics["train"]["auroc"] is metrics["val"]["auroc"] is None
    sound = int((rows["split"] == "train").sum())
    assert metrics["head"] == {"name": "memory", "memory": PRIOR[0], "classifier": 0, "bank": 4 * sound}
    assert metrics["heat_maps"] == "distance to the nearest patch of a sound part"
    assert f"bank {4 * sound}<" in (run / "report.html").read_text()
    assert metrics["decision"]["policy"] == "fpr<=0.1"
    assert metrics["decision"]["promises"][0]["independent"] == metrics["val"]["n"] == 4
    assert metrics["val"]["overkill_rate"] == 0


def test_a_score_is_the_distance_in_deviations_of_sound_images_alone(run: Path) -> None:
    """Computed from the network's maps; the classifier, which nobody trained, has no say."""
    model, data = (found := load_trained(run, "cpu")).network, build_data(found.settings)
    rows = read_predictions(run / "predictions.csv")
    assert model.joined is not None
    with torch.no_grad():
        maps = model.backbone.inference(with_map=True)(data.images[rows.index.to_numpy()])[1]
        cells = maps.float().permute(0, 2, 3, 1).flatten(1, 2)
    known = data.part("train")
    folds = data.folds(known, FOLDS)

    def hottest(image: int, member: int) -> float:
        bank = cells[known[folds != member]].flatten(0, 1)
        return float(torch.cdist(cells[image], bank, compute_mode=EXACT).amin(1).amax())

    apart = np.array([hottest(row, fold) for row, fold in zip(known, folds, strict=True)])
    said = []
    for member in range(FOLDS):
        others = apart[folds != member]
        distances = np.array([hottest(row, member) for row in range(len(rows))])
        said.append((distances - others.mean()) / others.std() * PRIOR[0] + PRIOR[2])
    expected = np.mean(said, 0)
    decision = numbers(run)["decision"]
    odds = (np.log(rows["p_defective"] / rows["p_sound"]) - np.diff(decision["shift"] or [0, 0])) / decision["scale"]
    new = (rows["split"] != "train") & np.isfinite(odds)  # of a known one the distance is 0 but for rounding
    assert new.sum() > 10
    assert odds[new].to_numpy() == pytest.approx(expected[new], abs=0.05)


@pytest.mark.usefixtures("no_pictures")
def test_evaluated_and_predicted_it_says_the_same(run: Path, tmp_path: Path) -> None:
    quick = ("inspect.heat_maps=false", "inspect.robustness=false")
    assert command("evaluate", f"checkpoint={run}", *quick, f"hydra.run.dir={tmp_path}").code == 0
    assert numbers(tmp_path)["test"] == numbers(run)["test"]
    rows, predictor = read_predictions(run / "predictions.csv").query("split == 'test'"), load(run, "cpu")
    root = load_trained(run, "cpu").settings.dataset.root
    found = predictor.predict([root / path for path in rows["path"]], 5)
    assert found["score"].tolist() == rows["score"].tolist()


@pytest.mark.usefixtures("no_pictures")
def test_photos_of_sound_parts_are_enough(published: list[str], bottles: Path, tmp_path: Path) -> None:
    shutil.copytree(bottles / "bottle/train/good", tmp_path / "photos/good")
    given = ("dataset=folder", f"dataset.root={tmp_path / 'photos'}", "dataset.sound=[good]")
    plain = [one for one in published if not one.startswith("dataset")]
    metrics = numbers(trained(tmp_path / "run", *plain, *given))
    assert metrics["class_names"] == ["sound", "defective"]
    assert metrics["test"]["auroc"] is None
    assert metrics["test"]["n"] > 0


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_a_new_defect_type_where_there_is_no_other(published: list[str], tmp_path: Path) -> None:
    held = ("dataset.split.published=false", "dataset.split.hold_out_defect_type=scratch")
    rows = read_predictions(trained(tmp_path, *published, *held) / "predictions.csv")
    assert rows[rows["defective"]]["split"].tolist() == ["test"] * 8


@pytest.mark.parametrize("head", ["linear", "joined"])
def test_without_defects_the_other_heads_say_what_to_type(head: str, published: list[str], tmp_path: Path) -> None:
    given = (*published, f"model.head={head}", "finetune=probe", f"hydra.run.dir={tmp_path}")
    assert sentence(command("train", *given)) == (
        f"model.head={head} learns from 'defective', and the split leaves none of its 8 images for training: "
        "model.head=memory finetune=probe needs sound ones alone, dataset.split.anomalies=10 shows ten, "
        "dataset.split.published=false its share"
    )


@pytest.mark.parametrize("policy", ["f1", "recall>=0.9"])
def test_a_policy_that_needs_defects_says_what_to_type(policy: str, published: list[str], tmp_path: Path) -> None:
    given = (*published, *MEMORY, f"decision={policy}", f"hydra.run.dir={tmp_path}")
    name = policy.split(">=", 1)[0]
    without = "decision=fpr needs sound ones alone, decision=balanced neither"
    text = f"decision={name} needs defective images to be chosen on, and there are none: {without}"
    assert sentence(command("train", *given)) == text
    assert not (tmp_path / "checkpoints").exists()  # told before anything is trained


def test_a_stage_is_refused(published: list[str], tmp_path: Path) -> None:
    text = sentence(command("train", *published, *MEMORY, "finetune=probe_then_full", f"hydra.run.dir={tmp_path}"))
    assert text == "a memory is of what a frozen backbone makes of sound parts: finetune=probe"
