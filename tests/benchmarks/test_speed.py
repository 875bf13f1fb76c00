"""What turns say, the plain recipe, and the whole benchmark from the command line."""

from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from benchmarks.contenders import Plan, keep_few
from benchmarks.plain import PlainRecipe, plain_transforms
from benchmarks.results import keep, number
from benchmarks.speed import SECTIONS, main, settings_of, summarise
from defectcls.settings import AugmentSettings
from tests.conftest import process


@pytest.fixture(scope="module")
def plan(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return Plan(settings_of(*tiny, "batch_size=8"), 2, 2, 30, 2, 1, tmp_path_factory.mktemp("plan"))


# --- from turns to lines ----------------------------------------------------------------------------------------------

# The machine is half as fast in the second round, and much faster in the third.
TURNS = pd.DataFrame(
    [
        ("bare step", 0, 100, 1.0, 0.05, None, 500.0),
        ("training", 0, 90, 1.0, None, None, 600.0),
        ("bare step", 1, 100, 2.0, 0.12, None, 500.0),
        ("training", 1, 80, 2.0, None, None, 610.0),
        ("bare step", 2, 100, 0.1, 0.004, None, 500.0),
        ("training", 2, 100, 0.125, None, None, 600.0),
        ("probe", 0, None, 2.0, None, 0.9, 400.0),
        ("plain, frozen", 0, None, 50.0, None, 0.8, None),
    ],
    columns=["contender", "round", "images", "seconds", "augment_seconds", "auroc", "peak_mib"],
)


def test_ratios_are_taken_round_by_round() -> None:
    found = {(line["what"], line["unit"]): line for line in summarise(TURNS)}
    expected = {
        ("bare step", "img/s"): (100, 50, 1000),
        ("training", "img/s"): (90, 40, 800),
        ("probe", "s"): (2, 2, 2),
        ("probe", "test AUROC"): (0.9, 0.9, 0.9),
        ("plain, frozen", "s"): (50, 50, 50),
        ("plain, frozen", "test AUROC"): (0.8, 0.8, 0.8),
        ("training / bare step", "times"): (0.8, 0.8, 0.9),
        ("probe / plain, frozen", "times"): (25, 25, 25),
        ("augmentation, of the bare step", "%"): (5, 4, 6),
    }
    assert list(found) == list(expected)
    for key, line in found.items():
        assert (line["median"], line["low"], line["high"]) == pytest.approx(expected[key])
    assert found["training", "img/s"]["peak_mib"] == 610
    assert "gpu_peak_mib" not in found["training", "img/s"]
    on_a_gpu = summarise(TURNS.assign(gpu_peak_mib=np.arange(8)))
    assert {line["what"]: line.get("gpu_peak_mib") for line in on_a_gpu}["training"] == 5


def test_numbers_have_three_digits() -> None:
    values = (0.0312, 9.994, 12.34, 123.4, 9876.5, 86_241, 1_234_567)
    assert list(map(number, values)) == ["0.03", "9.99", "12.3", "123", "9,876", "86k", "1,235k"]


def test_results_take_the_place_of_those_of_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "benchmarks.csv"
    for model, median in (("a", 1.0), ("b", 2.0), ("a", 3.0)):
        line = {"what": "training", "median": median, "low": 0.5, "high": 4.0, "unit": "img/s"}
        keep([line], {"dataset": "screws", "model": model}, 7, file)
    found = pd.read_csv(file)
    assert found[["model", "median", "seed"]].to_numpy().tolist() == [["b", 2.0, 7], ["a", 3.0, 7]]
    assert found["version_torch"].eq(version("torch")).all()
    assert {"commit", "hardware", "command", "date"} <= set(found)


# --- the plain recipe -------------------------------------------------------------------------------------------------


def test_few_images_keep_the_classes_in_proportion(plan: Plan) -> None:
    data = PlainRecipe(plan, frozen=False).data
    before = {part: np.bincount(data.targets[data.part(part)]) for part in ("train", "val", "test")}
    keep_few(data, before["train"].sum() // 2, seed=0)
    for part, share in (("train", 0.5), ("val", 0.5), ("test", 1)):
        assert np.bincount(data.targets[data.part(part)]) == pytest.approx(before[part] * share, abs=1)


def test_plain_recipe_weighs_classes_and_learns(plan: Plan, tmp_path: Path) -> None:
    """Nine dark images and three bright ones, one of each in validation and in test."""
    for index in range(12):
        sound = index < 9
        file = tmp_path / ("good" if sound else "bad") / f"{index}.png"
        file.parent.mkdir(exist_ok=True)
        noise = np.random.default_rng(index).integers(0, 60, (32, 32, 3), np.uint8)
        Image.fromarray(noise + np.uint8(0 if sound else 190)).save(file)
    split = ["dataset.split.val=1", "dataset.split.test=1", "dataset.split.together=[]"]
    changed = ["dataset=folder", f"dataset.root={tmp_path}", "model=timm", "model.name=test_resnet.r160_in1k"]
    changed += ["model.pretrained=false", "image_size=32", "trainer=cpu", "batch_size=4"]
    recipe = PlainRecipe(plan._replace(settings=settings_of(*changed, *split)), frozen=False)
    expected = {"sound": 8 / (2 * 7), "defective": 8 / (2 * 1)}
    assert np.bincount(recipe.data.targets[recipe.data.part("train")]).tolist() == [7, 1]
    assert recipe.loss.weight.tolist() == pytest.approx([expected[name] for name in recipe.data.classes])
    loader = recipe.loader("train")
    losses = [recipe.train_epoch(loader)[1] for _ in range(12)]
    assert recipe.train_epoch(recipe.loader("train", 4))[0] == 4
    assert losses[-1] < 0.8 * losses[0]
    assert recipe.auroc() == 1


def test_frozen_layers_of_the_plain_recipe_stay(plan: Plan) -> None:
    recipe = PlainRecipe(plan, frozen=True)
    body = {name: value.clone() for name, value in recipe.body.state_dict().items()}
    head = recipe.head.weight.detach().clone()
    recipe.train_epoch(recipe.loader("train", 16))
    assert all(torch.equal(value, body[name]) for name, value in recipe.body.state_dict().items())
    assert not torch.equal(recipe.head.weight, head)


def test_plain_transforms_are_those_of_the_run(plan: Plan) -> None:
    image = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    constants = ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    pixels = np.asarray(image).transpose(2, 0, 1) / 255
    expected = (pixels - np.reshape(constants[0], (3, 1, 1))) / np.reshape(constants[1], (3, 1, 1))
    assert plain_transforms(4, *constants, None)(image).numpy() == pytest.approx(expected, abs=1e-6)
    off = {name: type(value)(0) for name, value in plan.settings.augment.model_dump().items()}
    asked = {"horizontal_flip": "HorizontalFlip", "vertical_flip": "VerticalFlip", "quarter_turns": "RandomRotation"}
    asked |= {"rotation": "RandomAffine(degrees=[-1", "shift": "translate=(0.5, 0.5)", "scale": "scale=(0.5, 1.5)"}
    asked |= {"brightness": "brightness=(0.5, 1.5)", "hue": "hue=(-0.5, 0.5)"}
    for name, word in asked.items():
        value = {"rotation": 1.0}.get(name, True if isinstance(off[name], bool) else 0.5)
        steps = str(plain_transforms(4, *constants, AugmentSettings(**off | {name: value})))
        assert word in steps


# --- the whole --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_whole_benchmark(tiny: list[str], tmp_path: Path) -> None:
    few = ["--rounds=2", "--steps=2", "--epochs=2", "--workers=1", "--probe-images=30"]
    file = tmp_path / "benchmarks.csv"
    outcome = process("benchmarks.speed", *few, f"--write={file}", *tiny, "batch_size=8", cwd=Path.cwd())
    assert outcome.code == 0, outcome.err
    found = pd.read_csv(file)
    contenders = {name for section in SECTIONS.values() for name in section}
    assert contenders <= set(found["what"])
    assert (found[found["what"].isin(contenders)].query("unit != 'test AUROC'")["peak_mib"] > 100).all()
    assert found.set_index("what").loc["training", "computed"] == "32-true, 1 threads"
    assert found["command"].str.startswith("python -m benchmarks.speed --rounds=2 ").all()
    assert "training / bare step" in outcome.out


def test_a_section_that_there_is_not(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["speed", "--measure=trainin", "dataset=synthetic"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "choose from" in capsys.readouterr().err
