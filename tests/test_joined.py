"""A run whose head joins a memory with a classifier: it evaluates, predicts and explains as any other does."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from defectcls.deployment.predictor import load
from defectcls.evaluation.predictions import read_predictions
from defectcls.model.checkpoint import load_trained
from defectcls.model.head import FOLDS
from defectcls.model.memory import PRIOR
from defectcls.pages import report
from defectcls.training.build import build_data
from tests.conftest import command, equal, sentence, weights

JOINED = ("model.head=joined", "finetune=probe", "dataset.image_count=60", "dataset.crops_per_photo=1")
CHECKPOINT = Path("checkpoints/best.ckpt")
FROZEN = "a memory is of what a frozen backbone makes of sound parts: finetune=probe"


def near(value: float) -> Any:
    return pytest.approx(value, abs=0.4)


def numbers(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


def joined_run(folder: Path, *arguments: str) -> Path:
    outcome = command("train", *arguments, *JOINED, f"hydra.run.dir={folder}")
    assert outcome.code == 0, outcome.err
    return folder


@pytest.fixture(scope="module")
def joined(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that knows a single defect; to be read only."""
    given = ("dataset.split.anomalies=1", "model.test_views=2", "inspect.heat_maps=true")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "_pictures", lambda *_: (report.Text(), report.Text()))  # half of the time
        return joined_run(tmp_path_factory.mktemp("joined"), *tiny, *given)


@pytest.mark.slow
def test_it_knows_few_defects_and_says_how_it_weighs(joined: Path) -> None:
    metrics, rows = numbers(joined), read_predictions(joined / "predictions.csv")
    train, val = (rows.query("split == @part") for part in ("train", "val"))
    assert train["defective"].sum() == 1
    assert not val["defective"].any()
    head, cells = metrics["head"], 2 * 2
    assert (head["name"], head["memory"], head["classifier"]) == ("joined", near(PRIOR[0]), near(PRIOR[1]))
    assert head["bank"] == cells * (~train["defective"]).sum()
    assert metrics["heat_maps"] == "distance to the nearest patch of a sound part"
    assert metrics["localisation"]["n"] > 3
    assert metrics["seconds"]["memory"] > 0


def test_the_bank_is_of_sound_training_images_alone(joined: Path) -> None:
    trained = load_trained(joined, "cpu")
    data, memory = build_data(trained.settings), trained.network.joined.memory  # type: ignore[union-attr]
    with torch.no_grad():
        maps = trained.network.backbone.inference(with_map=True)(data.images[np.arange(len(data.samples))])[1].float()
    cells = maps.permute(0, 2, 3, 1).flatten(1, 2)
    rows, folds = data.part("train"), np.full(len(cells), -1)
    folds[rows] = data.folds(rows, FOLDS)
    for fold in range(FOLDS):  # each part of the bank is of the sound images of its fold
        nearest = torch.cdist(cells, memory.bank[fold, : memory.sizes[fold]]).amin(2).amax(1).numpy()
        known = ((folds == fold) & ~data.samples["defective"]).to_numpy()
        assert nearest[known].max() < 1e-2 * np.median(nearest[~known])
        assert nearest[~known].min() > 1e-2 * np.median(nearest[~known])


@pytest.mark.usefixtures("no_pictures")
def test_evaluated_again_it_has_the_same_numbers(joined: Path, tmp_path: Path) -> None:
    arguments = (f"checkpoint={joined}", "inspect.heat_maps=false", "inspect.robustness=false")
    assert command("evaluate", *arguments, f"hydra.run.dir={tmp_path}").code == 0
    again, metrics = numbers(tmp_path), numbers(joined)
    assert again["test"] == metrics["test"]
    assert again["head"] == metrics["head"]


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_photos_are_judged_as_in_the_run_in_any_batch_and_order(joined: Path, batch_size: int) -> None:
    predictor = load(joined, "cpu")
    rows = read_predictions(joined / "predictions.csv").query("split == 'test'").sample(frac=1, random_state=batch_size)
    root = load_trained(joined, "cpu").settings.dataset.root
    found = predictor.predict([root / path for path in rows["path"]], batch_size)
    columns = ["prediction", "decision", "score", "p_sound", "p_defective"]
    expected = rows.reset_index(drop=True)[columns].astype({"decision": str})
    pd.testing.assert_frame_equal(found[columns], expected, check_exact=True, check_dtype=False)


def test_a_probability_is_of_the_weighed_deviations(joined: Path) -> None:
    """Computed from the layers, without what makes an evaluation quick."""
    trained, rows = load_trained(joined, "cpu"), read_predictions(joined / "predictions.csv").query("split == 'test'")
    model, data = trained.network, build_data(trained.settings)
    assert model.joined is not None
    joined_head = model.joined
    with torch.no_grad():
        images = data.images[rows.index.to_numpy()]
        features, maps = model.backbone.inference(with_map=True)(images)
        mirrored = model.backbone.inference(with_map=True)(images.flip(3))[0]
        cells, memory = maps.float().permute(0, 2, 3, 1).flatten(1, 2), joined_head.memory
        parts = [memory.bank[fold, : memory.sizes[fold]] for fold in range(FOLDS)]
        banks = [torch.cat(parts[:fold] + parts[fold + 1 :]) for fold in range(FOLDS)]
        remembered = torch.stack([torch.cdist(cells, bank).amin(2).amax(1) for bank in banks], 1)
        ways = [model.head.linear((way - model.head.mean) / model.head.std) for way in (features, mirrored)]
        linear = torch.stack(ways).mean(0).unflatten(1, (FOLDS, 2))
        scores = torch.stack([remembered, linear[..., 1] - linear[..., 0]], 2)
        members = ((scores - joined_head.mean) / joined_head.deviation * joined_head.weight).sum(2) + joined_head.bias
        odds = members.mean(1)
    decision = numbers(joined)["decision"]
    expected = odds.double().numpy() * decision["scale"] + np.diff(decision["shift"] or [0, 0])
    assert np.log(rows["p_defective"] / rows["p_sound"]).to_numpy() == pytest.approx(expected, abs=0.02)


@pytest.mark.slow
def test_its_seed_decides_and_a_killed_run_begins_again(tiny: list[str], tmp_path: Path) -> None:
    first, second = (joined_run(tmp_path / name, *tiny) for name in ("first", "second"))
    assert equal(weights(first / CHECKPOINT), weights(second / CHECKPOINT))
    expected = (first / "predictions.csv").read_bytes()
    assert (second / "predictions.csv").read_bytes() == expected
    (second / "metrics.json").unlink()
    (second / CHECKPOINT).unlink()
    assert command("train", f"resume={second}").code == 0
    assert (second / "predictions.csv").read_bytes() == expected
    third = joined_run(tmp_path / "third", *tiny, "seed=1")
    assert not equal(weights(first / CHECKPOINT), weights(third / CHECKPOINT))


@pytest.mark.slow
def test_cross_validation_and_augmented_copies(tiny: list[str], tmp_path: Path) -> None:
    arguments = (*tiny, *JOINED, "finetune.probe_views=2", "folds=2", f"hydra.run.dir={tmp_path}")
    assert command("crossval", *arguments).code == 0
    assert numbers(tmp_path)["test"]["n"] == 60


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (["finetune=probe_then_full"], FROZEN),
        (["finetune=head"], FROZEN),
        (
            ["model.head=memory", "model.test_views=2"],
            "model.head=memory compares an image as it lies: model.test_views=1",
        ),
        (["model.head=hybrid"], "model.head=hybrid: it has to be 'auto', 'linear', 'joined' or 'memory'"),
        (
            ["model.head=memory", "target=defect_type", "dataset.image_count=90"],
            "model.head=memory tells sound from defective, and the classes are sound, ",
        ),
    ],
)
def test_what_it_is_not_for_is_a_sentence(given: list[str], text: str, tiny: list[str], tmp_path: Path) -> None:
    found = sentence(command("train", *tiny, *JOINED, *given, f"hydra.run.dir={tmp_path}"))
    assert found.startswith(text)
