"""A run that sets nothing aside: a photo is judged by the member that has not seen it, and the mean of all is kept."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from defectcls.data.datamodule import DefectDataModule
from defectcls.deployment.predictor import Predictor, load
from defectcls.evaluation.predictions import read_predictions
from defectcls.files import BEST
from defectcls.model.checkpoint import load_trained
from defectcls.model.network import Network
from defectcls.settings import TrainSettings
from defectcls.training.build import build_data
from defectcls.training.run import TrainingRun
from tests.conftest import BY_DEFAULT, command, composed, paint, sentence

QUICK = ("inspect.heat_maps=false", "inspect.robustness=false")
FOLDS = 5


def numbers(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


def odds_of(rows: pd.DataFrame) -> np.ndarray:
    return np.log(rows["p_defective"] / rows["p_sound"]).to_numpy()


def calibrated(logits: torch.Tensor, folder: Path) -> np.ndarray:
    """Log-odds of "defective" as the decision of a run calibrates them."""
    decision = numbers(folder)["decision"]
    return np.diff(logits.double().numpy())[:, 0] * decision["scale"] + np.diff(decision["shift"] or [0, 0])


def dealt(trained: Any) -> tuple[DefectDataModule, np.ndarray]:
    """The data of a run as it dealt them, and the fold of each image, -1 of those that were for a test."""
    data = build_data(trained.settings)
    rows, folds = data.part("train"), np.full(len(data.samples), -1)
    folds[rows] = data.folds(rows, FOLDS)
    return data, folds


def folder_of(root: Path, **counts: int) -> list[str]:
    """Class folders of photos, with a new texture each, and how they are trained on."""
    for name, count in counts.items():
        for number in range(count):
            colour = (90, 90 + 3 * number, 200) if name == "good" else (200, 90 + 3 * number, 90)
            paint(root / f"photos/{name}/{number:02d}.png", colour)
    return ["dataset=folder", f"dataset.root={root / 'photos'}", "dataset.sound=[good]"]


@pytest.fixture
def train(tiny: list[str], tmp_path: Path, no_pictures: None) -> Callable[..., Any]:
    """Trains on a folder by default, into the folder `run`."""
    plain = [given for given in tiny if not given.startswith(("dataset", "evaluation", "finetune"))]

    def trained(*given: str, folder: str = "run") -> Any:
        return command("train", *plain, "finetune=probe", *given, f"hydra.run.dir={tmp_path / folder}")

    return trained


# --- what is said of each photo ---------------------------------------------------------------------------------------


def test_all_photos_are_learned_from_and_judged_once_out_of_fold(crossvalidated: Path) -> None:
    metrics, rows = numbers(crossvalidated), read_predictions(crossvalidated / "predictions.csv")
    assert (metrics["config"]["evaluation"], metrics["config"]["image_size"]) == ("crossval", 64)
    assert rows["split"].tolist() == ["test"] * 90
    assert metrics["test"] == metrics["val"]
    assert metrics["test"]["n"] == rows["path"].nunique() == 90
    assert metrics["head"]["name"] == "joined"
    assert metrics["localisation"]["n"] > 3
    assert metrics["robustness"]
    assert "train" not in metrics


def test_out_of_fold_scores_are_those_of_the_members_that_have_not_seen_the_photo(crossvalidated: Path) -> None:
    trained, rows = load_trained(crossvalidated, "cpu"), read_predictions(crossvalidated / "predictions.csv")
    data, folds = dealt(trained)
    assert set(folds) == set(range(FOLDS))
    images = data.images[np.arange(90)]
    logits = trained.network.inference()(images, torch.from_numpy(folds))
    assert odds_of(rows) == pytest.approx(calibrated(logits, crossvalidated), abs=5e-3)
    everyone = trained.network.inference()(images)
    assert abs(calibrated(everyone, crossvalidated) - odds_of(rows)).max() > 0.2  # else the data would not tell


def test_a_prediction_is_by_the_mean_of_the_members(crossvalidated: Path) -> None:
    predictor, trained = load(crossvalidated, "cpu"), load_trained(crossvalidated, "cpu")
    data, _ = dealt(trained)
    files = [trained.settings.dataset.root / path for path in data.samples["path"][:20]]
    images, of_members = data.images[np.arange(20)], []
    infer = trained.network.inference()
    for fold in range(FOLDS):
        of_members.append(infer(images, torch.full((20,), fold)))
    expected = calibrated(torch.stack(of_members).mean(0), crossvalidated)
    assert odds_of(predictor.predict(files, 7)) == pytest.approx(expected, abs=5e-3)


def test_what_is_tied_stands_in_one_fold(crossvalidated: Path) -> None:
    data, folds = dealt(load_trained(crossvalidated, "cpu"))
    groups = pd.Series(folds).groupby(data.samples["group"].to_numpy())
    assert groups.size().tolist() == [2] * 45
    assert groups.nunique().max() == 1
    counts = pd.crosstab(folds, data.samples["defective"])
    assert (counts.max() - counts.min()).max() <= 2  # of each class every fold has its share


def test_copies_and_near_twins_stand_in_one_fold(tmp_path: Path) -> None:
    folder_of(tmp_path, good=20, scratch=20)
    for number in range(0, 20, 2):
        photo = tmp_path / f"photos/good/{number:02d}.png"
        shutil.copy(photo, photo.with_name(f"{number:02d}_copy.png"))
        with Image.open(photo) as image:
            image.save(photo.with_name(f"{number:02d}_near.jpg"), quality=95)
    given = ("dataset=folder", f"dataset.root={tmp_path / 'photos'}", "dataset.sound=[good]", "image_size=32")
    data, folds = dealt(type("Trained", (), {"settings": TrainSettings(**composed(*given))}))
    photos = pd.Series(folds).groupby([path[:-4].split("_")[0] for path in data.samples["path"]])
    assert photos.size().value_counts().to_dict() == {1: 30, 3: 10}
    assert photos.nunique().max() == 1


def test_a_photo_does_not_change_the_member_that_judges_it(tiny: list[str], tmp_path: Path) -> None:
    """Not one weight of its classifier, and not one patch that it remembers; those of all others change."""
    plain = [given for given in tiny if not given.startswith("dataset")]
    given = (*plain, *folder_of(tmp_path, good=15, scratch=10), *BY_DEFAULT, "finetune.probe_c=[0.1]")
    settings, found = TrainSettings(**composed(*given)), []
    for name in ("before", "after"):
        run = TrainingRun(settings, tmp_path / name, None)
        run.train()
        found.append((run.classifier.eval(), *dealt(run)))
        paint(tmp_path / "photos/good/07.png", (10, 250, 10))
    (one, data, folds), (other, _, again) = found
    assert one.joined is not None and other.joined is not None
    assert folds.tolist() == again.tolist()
    own = folds[data.samples["path"].tolist().index("good/07.png")]
    parts = [torch.equal(*two) for two in zip(one.joined.memory.bank, other.joined.memory.bank, strict=True)]
    assert parts == [fold != own for fold in range(FOLDS)]
    features = torch.rand(50, one.backbone.feature_count)
    with torch.no_grad():
        gaps = (one.head(features) - other.head(features)).unflatten(1, (FOLDS, 2)).abs().amax((0, 2))
    assert gaps[own] < 1e-4
    assert all(gap > 1e-2 for fold, gap in enumerate(gaps) if fold != own)


# --- the verbs --------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_pictures")
def test_a_finished_run_that_lost_its_numbers_tells_the_same_again(crossvalidated: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(crossvalidated, folder)
    (folder / "metrics.json").unlink()
    (folder / BEST).unlink()
    overrides = folder / ".hydra/overrides.yaml"
    overrides.write_text(overrides.read_text().replace(str(crossvalidated), str(folder)))
    assert command("train", f"resume={folder}").code == 0
    for part in ("val", "test", "decision"):
        assert numbers(folder)[part] == numbers(crossvalidated)[part]
    assert (folder / "predictions.csv").read_bytes() == (crossvalidated / "predictions.csv").read_bytes()


def test_evaluated_it_tells_the_same_of_its_own_photos(crossvalidated: Path, tmp_path: Path) -> None:
    assert command("evaluate", f"checkpoint={crossvalidated}", *QUICK, f"hydra.run.dir={tmp_path}").code == 0
    found, rows = (read_predictions(folder / "predictions.csv") for folder in (tmp_path, crossvalidated))
    assert odds_of(found) == pytest.approx(odds_of(rows), abs=5e-3)
    assert numbers(tmp_path)["test"]["confusion_matrix"] == numbers(crossvalidated)["test"]["confusion_matrix"]


def test_predicted_and_shown(crossvalidated: Path, tmp_path: Path) -> None:
    rows = read_predictions(crossvalidated / "predictions.csv")
    folder = (load_trained(crossvalidated, "cpu").settings.dataset.root / rows["path"][0]).parent
    given = (f"checkpoint={crossvalidated}", f"input={folder}/photo_000*.jpg", "device=cpu", "heat_maps=true")
    done = command("predict", *given, f"hydra.run.dir={tmp_path}")
    assert done.code == 0, done.err
    assert len(pd.read_csv(tmp_path / "predictions.csv")) == 20


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_cross_validated_models_are_cross_validated(tiny: list[str], tmp_path: Path) -> None:
    """The photos of a fold of the verb are for the test; the others are dealt once more, and choose the decision."""
    given = (*tiny, "finetune=probe", "evaluation=auto", "folds=2", "repeats=1", f"hydra.run.dir={tmp_path}")
    assert command("crossval", *given).code == 0
    rows = read_predictions(tmp_path / "predictions.csv")
    assert len(rows) == rows["path"].nunique() == 90
    assert rows.groupby("group")["fold"].nunique().max() == 1
    for fold in range(2):
        run = tmp_path / f"repeat_0/fold_{fold}"
        trained = load_trained(run, "cpu")
        data, folds = dealt(trained)
        assert trained.settings.evaluation == "crossval"
        tested = rows[rows["fold"].astype(int) == fold]
        assert sorted(data.samples["path"][folds < 0]) == sorted(tested["path"])
        logits = trained.network.inference()(data.images[np.flatnonzero(folds < 0)])
        assert odds_of(tested) == pytest.approx(calibrated(logits, run), abs=5e-3)


def test_defect_types_are_told_apart_beside_a_memory(train: Callable[..., Any], tmp_path: Path) -> None:
    given = folder_of(tmp_path, good=15, scratch=8, dent=8)
    for number in range(8):
        paint(tmp_path / f"photos/dent/{number:02d}.png", (90, 200, 90 + 3 * number))
    done = train(*given, "target=defect_type")
    assert done.code == 0, done.err
    metrics, rows = numbers(tmp_path / "run"), read_predictions(tmp_path / "run/predictions.csv")
    assert metrics["class_names"] == ["good", "dent", "scratch"]
    assert metrics["head"]["name"] == "joined"
    assert (rows["prediction"] == rows["label"]).mean() > 0.9
    data, folds = dealt(trained := load_trained(tmp_path / "run", "cpu"))
    logits = trained.network.inference()(data.images[np.arange(31)], torch.from_numpy(folds)).double()
    decision = metrics["decision"]
    assert decision["shift"] is None or len(decision["shift"]) == 3
    expected = (logits * decision["scale"] + torch.tensor(decision["shift"] or [0.0] * 3)).softmax(1).numpy()
    assert rows[["p_good", "p_dent", "p_scratch"]].to_numpy() == pytest.approx(expected, abs=2e-3)


def test_a_memory_alone_judges_sound_photos_out_of_fold(train: Callable[..., Any], tmp_path: Path) -> None:
    done = train(*folder_of(tmp_path, good=20), "model.head=memory")
    assert done.code == 0, done.err
    metrics, rows = numbers(tmp_path / "run"), read_predictions(tmp_path / "run/predictions.csv")
    assert (metrics["config"]["evaluation"], metrics["test"]["n"], metrics["test"]["auroc"]) == ("crossval", 20, None)
    data, folds = dealt(trained := load_trained(tmp_path / "run", "cpu"))
    logits = trained.network.inference()(data.images[np.arange(20)], torch.from_numpy(folds))
    assert odds_of(rows) == pytest.approx(calibrated(logits, tmp_path / "run"), abs=5e-3)


def test_a_part_that_is_asked_for_is_tested_by_the_kept_model(train: Callable[..., Any], tmp_path: Path) -> None:
    folder_of(tmp_path / "test", good=5, scratch=4)
    folder_of(tmp_path / "train", good=15, scratch=10)
    (tmp_path / "both").mkdir()
    for part in ("train", "test"):
        shutil.move(tmp_path / part / "photos", tmp_path / "both" / part)
    for number, photo in enumerate(sorted((tmp_path / "both/test").glob("*/*.png"))):
        paint(photo, (90 + 100 * (photo.parent.name == "scratch"), 40 + number, 150))
    done = train("dataset=folder", f"dataset.root={tmp_path / 'both'}", "dataset.sound=[good]")
    assert done.code == 0, done.err
    metrics, rows = numbers(tmp_path / "run"), read_predictions(tmp_path / "run/predictions.csv")
    assert rows["split"].value_counts().to_dict() == {"val": 25, "test": 9}
    assert (metrics["val"]["n"], metrics["test"]["n"]) == (25, 9)
    predictor: Predictor = load(tmp_path / "run", "cpu")
    test = rows.query("split == 'test'")
    found = predictor.predict([tmp_path / "both" / path for path in test["path"]], 4)
    assert found["score"].tolist() == pytest.approx(test["score"].tolist(), abs=1e-6)


# --- few photos -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("good", "scratch"), [(12, 2), (2, 12), (4, 4), (3, 3)])
def test_a_few_photos_of_a_class_are_enough(good: int, scratch: int, train: Callable[..., Any], tmp_path: Path) -> None:
    done = train(*folder_of(tmp_path, good=good, scratch=scratch), "model.head=linear")
    assert done.code == 0, done.err
    rows = read_predictions(tmp_path / "run/predictions.csv")
    assert len(rows) == good + scratch
    assert np.isfinite(odds_of(rows)).all()
    assert len(load(tmp_path / "run", "cpu").predict([tmp_path / "photos/good/00.png"], 1)) == 1


@pytest.mark.parametrize(("good", "scratch"), [(12, 2), (8, 12)])
def test_a_few_photos_of_a_class_are_enough_for_a_memory(
    good: int, scratch: int, train: Callable[..., Any], tmp_path: Path
) -> None:
    done = train(*folder_of(tmp_path, good=good, scratch=scratch))
    assert done.code == 0, done.err
    assert numbers(tmp_path / "run")["head"]["name"] == "joined"
    assert np.isfinite(odds_of(read_predictions(tmp_path / "run/predictions.csv"))).all()


def test_one_photo_of_a_class_is_a_sentence(train: Callable[..., Any], tmp_path: Path) -> None:
    given = folder_of(tmp_path, good=12, scratch=1)
    for evaluation in ("auto", "crossval"):
        assert "'defective'" in sentence(train(*given, f"evaluation={evaluation}"))


def test_a_class_whose_photos_are_all_tied_is_a_sentence_or_judged_on_a_part(
    train: Callable[..., Any], tmp_path: Path
) -> None:
    given = folder_of(tmp_path, good=12, scratch=1)
    for number in range(1, 9):
        shutil.copy(tmp_path / "photos/scratch/00.png", tmp_path / f"photos/scratch/{number:02d}.png")
    assert sentence(train(*given, "evaluation=crossval")) == (
        "evaluation=crossval judges each image by a model that has learned of others of its class, and all of "
        "'defective' are tied to each other: add some, or evaluation=holdout"
    )
    assert not (tmp_path / "run/checkpoints").exists()
    assert sentence(train(*given)) == sentence(train(*given, "evaluation=holdout"))


@pytest.mark.parametrize("given", ["finetune=probe_then_full", "finetune=head"])
def test_what_is_trained_by_gradients_is_not_dealt_to_folds(
    given: str, train: Callable[..., Any], tmp_path: Path
) -> None:
    photos = folder_of(tmp_path, good=12, scratch=8)
    assert sentence(train(*photos, given, "evaluation=crossval")) == (
        "evaluation=crossval solves a head for each fold: finetune=probe, or evaluation=holdout"
    )
    done = train(*photos, given, "evaluation=auto")
    assert done.code == 0, done.err
    assert numbers(tmp_path / "run")["config"]["evaluation"] == "holdout"
    assert load_trained(tmp_path / "run", "cpu").network.members == 1


def test_with_many_defects_a_part_is_set_aside(
    train: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("defectcls.training.build.FEW_DEFECTS", 8)
    assert train(*folder_of(tmp_path, good=12, scratch=8)).code == 0
    rows = read_predictions(tmp_path / "run/predictions.csv")
    assert set(rows["split"]) == {"train", "val", "test"}
    network: Network = load_trained(tmp_path / "run", "cpu").network
    assert (network.members, network.joined) == (1, None)


def test_a_part_for_training_that_is_asked_for_sets_the_others_aside(train: Callable[..., Any], tmp_path: Path) -> None:
    photos = [*folder_of(tmp_path, good=20, scratch=14), "dataset.split.train=6"]
    assert sentence(train(*photos, "evaluation=crossval")) == (
        "evaluation=crossval learns from all: dataset.split.train=null, or evaluation=holdout"
    )
    assert train(*photos, "evaluation=auto").code == 0
    rows = read_predictions(tmp_path / "run/predictions.csv")
    assert rows["split"].value_counts()["train"] == 12


@pytest.mark.slow
def test_a_decision_is_chosen_anew_out_of_fold_and_new_photos_are_judged_alone(
    train: Callable[..., Any], tmp_path: Path
) -> None:
    photos, quick = folder_of(tmp_path, good=20, scratch=14), (*QUICK, f"checkpoint={tmp_path / 'run'}")
    assert train(*photos, "evaluation=auto").code == 0
    assert train(*photos, "evaluation=auto", "decision=f1", folder="f1").code == 0

    def evaluate(*given: str) -> dict[str, Any]:
        done = command("evaluate", *quick, *given, f"hydra.run.dir={tmp_path / 'evaluated'}")
        assert done.code == 0, done.err
        return numbers(tmp_path / "evaluated")

    anew = evaluate("decision=f1", "update_checkpoint=true")
    assert anew["decision"] == numbers(tmp_path / "f1")["decision"]
    assert (anew["out_of_fold"], anew["test"]["n"]) == ({"test": FOLDS}, 34)
    assert evaluate()["decision"] == anew["decision"]
    assert evaluate("part=train")["out_of_fold"] == {}
    none = sentence(command("evaluate", *quick, "part=val", f"hydra.run.dir={tmp_path / 'none'}"))
    assert none.startswith("no photo stands in part=val: give others by dataset=<name>, or part=train")
    paint(tmp_path / "photos/good/new.png", (90, 200, 250))
    found = evaluate()
    assert (found["test"]["n"], found["out_of_fold"], found["seen"]["n"]) == (1, {}, 34)
