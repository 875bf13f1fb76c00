"""Photos that are not square, from the folder to the prediction, in their own aspect ratio."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import defectcls
from defectcls.data.images import decode
from defectcls.deployment.checkpoints import decided
from defectcls.evaluation.predictions import read_predictions
from defectcls.files import BEST, LAST
from defectcls.model.checkpoint import load_trained
from tests.conftest import command, sentence

TUNED = ("finetune=probe_then_full", "finetune.stages.full.epochs=1")
SHAPE = (40, 120)  # of the photos, which auto brings to 32 x 128
MODEL = ("model=timm", "model.name=test_resnet.r160_in1k", "model.pretrained=false", "augment=texture")
QUICK = ("trainer=cpu", "trainer.precision=32", "trainer.compile=false", "logger=csv", "logger.group=tests")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wide textured photos, forty sound ones and thirty with a bright scratch, and a mask of each scratch."""
    root, rng = tmp_path_factory.mktemp("wide"), np.random.default_rng(0)
    for folder, count in (("test/good", 20), ("train/good", 40), ("ground_truth/scratch", 0), ("test/scratch", 30)):
        (root / "part" / folder).mkdir(parents=True)
        for number in range(count):
            grey = rng.integers(40, 120, SHAPE, dtype=np.uint8)
            if folder == "test/scratch":
                row, column = rng.integers(4, 32), rng.integers(4, 60)
                mask = np.zeros(SHAPE, np.uint8)
                mask[row : row + 4, column : column + 50] = 255
                Image.fromarray(mask).save(root / f"part/ground_truth/scratch/{number:03d}_mask.png")
                grey = np.maximum(grey, mask)
            Image.fromarray(grey).save(root / "part" / folder / f"{number:03d}.png")
    return root


def of(photos: Path) -> tuple[str, ...]:
    return "dataset=mvtec", f"dataset.root={photos}", "dataset.categories=[part]", "dataset.split.published=false"


@pytest.fixture(scope="module", params=[pytest.param("squash", marks=pytest.mark.slow), "pad"])
def run(request: pytest.FixtureRequest, photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole run with image_size=auto: a probe, an epoch of all weights, heat maps, robustness, the report."""
    folder = tmp_path_factory.mktemp("run")
    given = (f"dataset.resize={request.param}", *TUNED, "model.test_views=8", "image_size=auto")
    done = command("train", *of(photos), *MODEL, *QUICK, *given, f"hydra.run.dir={folder}")
    assert done.code == 0, done.err
    return folder


def test_a_run_keeps_the_size_that_it_found(run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["config"]["image_size"] == [32, 128]
    assert metrics["localisation"]["n"] > 0
    assert metrics["robustness"]
    for file in (BEST, LAST):
        content = torch.load(run / file, weights_only=True)
        assert [*content["hyper_parameters"]["image_size"]] == content["defectcls"]["config"]["image_size"] == [32, 128]


def test_what_evaluates_and_predicts_sees_what_the_run_saw(run: Path, photos: Path, tmp_path: Path) -> None:
    then = read_predictions(run / "predictions.csv")
    test = then[then["split"] == "test"].set_index("path")
    done = command("evaluate", f"checkpoint={run}", "device=cpu", f"hydra.run.dir={tmp_path / 'again'}")
    assert done.code == 0, done.err
    again = read_predictions(tmp_path / "again/predictions.csv").set_index("path")
    assert again["score"].to_dict() == pytest.approx(test["score"].to_dict(), abs=1e-6)
    given = (f"checkpoint={run}", f"input={photos}/part/test/scratch", "device=cpu", "heat_maps=true")
    done = command("predict", *given, f"hydra.run.dir={tmp_path / 'new'}")
    assert done.code == 0, done.err
    table = pd.read_csv(tmp_path / "new/predictions.csv").set_index("path")["score"]
    for path, score in test["score"].filter(like="scratch").items():
        assert table[Path(str(path)).name] == pytest.approx(score, abs=1e-6)


def test_a_predictor_has_the_frame_and_maps_of_its_shape(run: Path, photos: Path) -> None:
    predictor = defectcls.load(run, "cpu")
    assert predictor.image_size == (32, 128)
    path = photos / "part/test/scratch/000.png"
    (heat,) = predictor.heat_maps([path])
    assert heat is not None and heat.shape == (32, 128)
    seen = torch.from_numpy(decode(path, (32, 128), predictor.resize, "8"))[None]
    with torch.inference_mode():
        network = load_trained(run, "cpu").network
        expected = torch.stack([network.head(network.backbone(seen.flip(a))) for a in ((), (3,), (2,), (2, 3))]).mean(0)
    rows = decided(expected.numpy(), predictor.classes, predictor.decision)
    assert predictor.judge(seen.numpy())["score"].tolist() == pytest.approx(rows["score"].tolist(), abs=1e-3)


@pytest.mark.slow
def test_a_run_with_auto_goes_on_at_its_own_size_though_other_photos_came(photos: Path, tmp_path: Path) -> None:
    folder, more = tmp_path / "run", (*MODEL, *QUICK, "inspect.heat_maps=false", "inspect.robustness=false")
    arguments = (*of(photos), *more, *TUNED, f"hydra.run.dir={folder}")
    assert command("train", *arguments, "image_size=auto").code == 0
    (folder / "metrics.json").unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("defectcls.data.datamodule.typical_size", lambda _: (64, 64))
        assert command("train", f"resume={folder}").code == 0
    assert json.loads((folder / "metrics.json").read_text())["config"]["image_size"] == [32, 128]
    (folder / "metrics.json").unlink()
    told = sentence(command("train", *arguments, "image_size=[32,64]"))
    assert told.startswith("this run was begun with image_size=[32, 128], and now it is [32, 64]: leave that out of")


@pytest.mark.parametrize("for_trainer", [False, True])
def test_a_checkpoint_from_when_the_size_was_one_number_is_still_read(
    finished: Path, tmp_path: Path, for_trainer: bool
) -> None:
    content = torch.load(finished / BEST, weights_only=True)
    content["hyper_parameters"]["image_size"] = content["defectcls"]["config"]["image_size"] = 32
    torch.save(content, tmp_path / "old.ckpt")
    trained = load_trained(tmp_path / "old.ckpt", "cpu", for_trainer=for_trainer)
    assert trained.network.backbone.image_size == trained.settings.image_size == (32, 32)


@pytest.mark.parametrize(("given", "expected"), [("auto", (32, 128)), ([64, 32], (64, 32)), (64, (64, 64))])
def test_a_data_module_takes_a_size_in_each_way(photos: Path, tmp_path: Path, given: Any, expected: Any) -> None:
    options: Any = {"root": photos, "categories": ["part"], "cache_dir": tmp_path, "image_size": given, "batch_size": 4}
    data = defectcls.MVTec(**options)
    data.setup()
    assert data.image_size == data.images.size == expected
    assert next(iter(data.train_dataloader()))["image"].shape == (4, 3, *expected)


def test_the_library_s_classifier_is_of_the_size_that_its_photos_have(photos: Path) -> None:
    config = defectcls.compose(*of(photos), *MODEL, *QUICK, "image_size=auto")
    data = defectcls.datamodule(config)
    model = defectcls.classifier(config, data)
    assert model.backbone.image_size == (32, 128)
    assert [*model.hparams["image_size"]] == [32, 128]


def test_a_backbone_of_patches_says_which_size_fits(photos: Path, tmp_path: Path) -> None:
    vit = ("model=dinov2_small", "model.pretrained=false", "image_size=auto", f"hydra.run.dir={tmp_path}")
    assert sentence(command("train", *of(photos), *QUICK, *vit)) == (
        "model.name=vit_small_patch14_reg4_dinov2.lvd142m looks at patches of 14 px, which do not tile "
        "image_size=[32, 128]: 'image_size=[42, 140]'"
    )
