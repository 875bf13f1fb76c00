"""Contenders in turns, what their turns say, the plain recipe, and the whole verb from the command line."""

import itertools
import json
import os
import runpy
import signal
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from defectcls.benchmarking import summary
from defectcls.benchmarking.contenders import keep_few
from defectcls.benchmarking.plain import PlainRecipe, plain_transforms
from defectcls.benchmarking.turns import Played, Turns, take_turns
from defectcls.config import parse
from defectcls.errors import UserError
from defectcls.settings import AugmentSettings, BenchmarkSettings
from tests.conftest import CHECKOUT, command, composed, sentence

CPU = torch.device("cpu")


def steady(turns: Turns, settings: BenchmarkSettings, folder: Path) -> None:
    """Two images a turn; keeps the time of its turns."""
    moments = folder / "moments.txt"

    def work() -> int:
        with moments.open("a") as file:
            began = time.monotonic()
            time.sleep(0.02)
            file.write(f"{began} {time.monotonic()}\n")
        return 2

    turns.play(CPU, work)
    turns.about["answer"] = 42


def mistaken(turns: Turns, settings: BenchmarkSettings, folder: Path) -> None:
    raise UserError("there are no images")


def killed(turns: Turns, settings: BenchmarkSettings, folder: Path) -> None:
    turns.wait()
    turns.wait({"images": 1, "seconds": 1.0})
    os.kill(os.getpid(), signal.SIGKILL)


def asleep(turns: Turns, settings: BenchmarkSettings, folder: Path) -> None:
    (folder / "process.txt").write_text(str(os.getpid()))
    turns.wait()
    time.sleep(60)


def turn(images: int | None, seconds: float, **more: float) -> dict:
    return {"images": images, "seconds": seconds, **more}


@pytest.fixture(scope="module")
def settings(tiny: list[str]) -> BenchmarkSettings:
    return parse(BenchmarkSettings, composed(*tiny, "batch_size=8", "plain.workers=1", verb="benchmark"))


@pytest.mark.slow
def test_contenders_take_turns_and_failures_are_told(settings: BenchmarkSettings, tmp_path: Path) -> None:
    rivals = {"one": steady, "mistaken": mistaken, "killed": killed, "other": steady}
    played = take_turns(rivals, settings, tmp_path, rounds=3, warm_up=1)
    assert played["mistaken"].error == "there are no images"
    assert played["killed"].error == "its process ended with exit status -9"
    assert "UserError: there are no images" in (tmp_path / "mistaken/log.txt").read_text()
    moments = []
    for name in ("one", "other"):
        assert (len(played[name].turns), played[name].error) == (3, None)
        assert all(turn["images"] == 2 and 0.02 <= turn["seconds"] < 20 for turn in played[name].turns)
        assert played[name].about["answer"] == 42
        assert played[name].about["peak_mib"] > 50
        moments += np.loadtxt(tmp_path / name / "moments.txt").tolist()
    assert len(moments) == 8  # the warm-up is played, and not counted
    moments.sort()
    assert all(ended <= began for (_, ended), (began, _) in itertools.pairwise(moments))


@pytest.mark.slow
def test_interrupt_ends_the_processes(settings: BenchmarkSettings, tmp_path: Path) -> None:
    file, began = tmp_path / "asleep/process.txt", time.monotonic()

    def interrupt(*_: object) -> None:
        if file.is_file() and file.read_text():
            raise KeyboardInterrupt
        signal.setitimer(signal.ITIMER_REAL, 0.05)

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        with pytest.raises(KeyboardInterrupt):
            take_turns({"asleep": asleep}, settings, tmp_path, rounds=1, warm_up=0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - began < 50
    with pytest.raises(ProcessLookupError):
        os.kill(int(file.read_text()), 0)


PLAYED = {
    # The machine is half as fast in the second round, and much faster in the third.
    "step": Played(
        [
            turn(100, 1.0, augment_seconds=0.05),
            turn(100, 2.0, augment_seconds=0.12),
            turn(100, 0.1, augment_seconds=0.004),
        ],
        {"peak_mib": 500.0, "precision": "bf16-mixed", "channels_last": True, "compiled": False, "threads": 2},
        None,
    ),
    "end_to_end": Played([turn(90, 1.0), turn(80, 2.0), turn(100, 0.125)], {"peak_mib": 600.0}, None),
    "plain": Played([], {}, "no weights"),
    "probe": Played([turn(None, 2.0, auroc=0.9)], {"peak_mib": 400.0, "gpu_peak_mib": 1234.0}, None),
    "plain_frozen": Played([turn(None, 50.0, auroc=0.8)], {}, None),
}


@pytest.fixture
def found() -> dict:
    return summary.summarise(PLAYED) | {
        "dataset": "screws",
        "model": "resnet18",
        "image_size": 224,
        "batch_size": 32,
        "augment": {"horizontal_flip": True, "rotation": 0, "blur": 0.0, "brightness": 0.1},
        "sections": [["step", "end_to_end", "plain"], ["probe", "plain_frozen"]],
        "hardware": "a CPU",
    }


def test_ratios_are_taken_round_by_round(found: dict) -> None:
    assert found["contenders"]["step"]["images_per_second"] == {"median": 100.0, "low": 50.0, "high": 1000.0}
    assert found["contenders"]["end_to_end"]["images_per_second"] == {"median": 90.0, "low": 40.0, "high": 800.0}
    ratio = found["ratios"]["end_to_end/step"]
    assert ratio["rounds"] == pytest.approx([0.9, 0.8, 0.8])
    assert (ratio["median"], ratio["low"], ratio["high"]) == pytest.approx((0.8, 0.8, 0.9))
    assert found["ratios"]["probe/plain_frozen"]["median"] == 25
    assert set(found["ratios"]) == {"end_to_end/step", "probe/plain_frozen"}  # none of what failed
    assert found["augmentation_share"]["rounds"] == pytest.approx([0.05, 0.06, 0.04])
    json.dumps(found)


def test_table_and_sentences(found: dict) -> None:
    assert summary.table_rows(found) == [
        ("bare step", "100 img/s", "50.0 to 1,000", "", "500"),
        ("training", "90.0 img/s", "40.0 to 800", "0.80 × bare step", "600"),
        ("plain recipe", "failed", "", "", ""),
        ("probe", "2.00 s", "once", "25.0 × plain, frozen", "400 + GPU 1,234"),
        ("plain, frozen", "50.0 s", "once", "", ""),
    ]
    assert summary.sentences(found) == [
        "plain recipe: no weights",
        "augmentation (horizontal flip, brightness) takes 5.0 % of the bare step (4.0 to 6.0)",
        "test AUROC: probe 0.9000; plain, frozen 0.8000",
    ]
    assert summary.title(found) == ("screws · resnet18 · 224 px, batch 32 · bf16-mixed, channels last, threads: 2")


def test_numbers_have_three_digits() -> None:
    values = (0.0312, 9.994, 12.34, 123.4, 9876.5, 86_241, 1_234_567)
    assert list(map(summary.number, values)) == ["0.03", "9.99", "12.3", "123", "9,876", "86k", "1,235k"]


def test_picture_has_a_bar_each(found: dict) -> None:
    figure = summary.plot_benchmark(found)
    first, second = figure.axes
    assert [label.get_text() for label in first.get_yticklabels()] == ["bare step", "training"]
    assert [bar.get_width() for bar in first.patches] == [100, 90]
    assert [bar.get_width() for bar in second.patches] == [2, 50]
    assert [text.get_text().strip() for text in first.texts] == ["… 100 (50.0 to 1,000)", "… 90.0 (40.0 to 800)"]
    assert second.get_xlabel().startswith("seconds")


def test_few_images_keep_the_classes_in_proportion(settings: BenchmarkSettings) -> None:
    data = PlainRecipe(settings, frozen=False).data
    before = {part: np.bincount(data.targets[data.part(part)]) for part in ("train", "val", "test")}
    keep_few(data, before["train"].sum() // 2, seed=0)
    for part, share in (("train", 0.5), ("val", 0.5), ("test", 1)):
        assert np.bincount(data.targets[data.part(part)]) == pytest.approx(before[part] * share, abs=1)


def test_plain_recipe_weighs_classes_and_learns(settings: BenchmarkSettings, tmp_path: Path) -> None:
    """Nine dark images and three bright ones, one of each in validation and in test."""
    for number in range(12):
        sound = number < 9
        file = tmp_path / ("good" if sound else "bad") / f"{number}.png"
        file.parent.mkdir(exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 60, (32, 32, 3), np.uint8)
        Image.fromarray(noise + np.uint8(0 if sound else 190)).save(file)
    split = ["dataset.split.val=1", "dataset.split.test=1", "dataset.split.together=[]"]
    changed = ["dataset=folder", f"dataset.root={tmp_path}", "model=timm", "model.name=test_resnet.r160_in1k"]
    changed += ["model.pretrained=false", "image_size=32", "trainer=cpu", "batch_size=4", "plain.workers=1"]
    recipe = PlainRecipe(parse(BenchmarkSettings, composed(*changed, *split, verb="benchmark")), frozen=False)
    counts = np.array([7, 1])
    expected = {"sound": 8 / (2 * 7), "defective": 8 / (2 * 1)}
    assert np.bincount(recipe.data.targets[recipe.data.part("train")]).tolist() == counts.tolist()
    assert recipe.class_weights().tolist() == pytest.approx([expected[name] for name in recipe.data.classes])
    loader = recipe.loader("train")
    losses = [recipe.train_epoch(loader)[1] for _ in range(12)]
    assert recipe.train_epoch(recipe.loader("train", 4))[0] == 4
    assert losses[-1] < 0.8 * losses[0]
    assert recipe.auroc() == 1


def test_frozen_layers_of_the_plain_recipe_stay(settings: BenchmarkSettings) -> None:
    recipe = PlainRecipe(settings, frozen=True)
    body = {name: value.clone() for name, value in recipe.body.state_dict().items()}
    head = recipe.head.weight.detach().clone()
    recipe.train_epoch(recipe.loader("train", 16))
    assert all(torch.equal(value, body[name]) for name, value in recipe.body.state_dict().items())
    assert not torch.equal(recipe.head.weight, head)


def test_plain_transforms_are_those_of_the_run(settings: BenchmarkSettings) -> None:
    image = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    constants = ((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    pixels = np.asarray(image).transpose(2, 0, 1) / 255
    expected = (pixels - np.reshape(constants[0], (3, 1, 1))) / np.reshape(constants[1], (3, 1, 1))
    assert plain_transforms(4, *constants, None)(image).numpy() == pytest.approx(expected, abs=1e-6)
    off = {name: type(value)(0) for name, value in settings.augment.model_dump().items()}
    asked = {"horizontal_flip": "HorizontalFlip", "vertical_flip": "VerticalFlip", "quarter_turns": "RandomRotation"}
    asked |= {"rotation": "RandomAffine(degrees=[-1", "shift": "translate=(0.5, 0.5)", "scale": "scale=(0.5, 1.5)"}
    asked |= {"brightness": "brightness=(0.5, 1.5)", "hue": "hue=(-0.5, 0.5)"}
    for name, word in asked.items():
        value = {"rotation": 1.0}.get(name, True if isinstance(off[name], bool) else 0.5)
        steps = str(plain_transforms(4, *constants, AugmentSettings(**off | {name: value})))
        assert word in steps


def test_collected_tables_are_those_of_the_runs(found: dict, tmp_path: Path) -> None:
    file = tmp_path / "benchmark.json"
    about = {"commit": "c0ffee", "versions": {"torch": "2"}, "seed": 0, "command": "python -m defectcls.benchmark"}
    file.write_text(json.dumps(found | about))
    collect = runpy.run_path(str(CHECKOUT / "experiments" / "speed" / "collect.py"))
    rows = collect["rows"](json.loads(file.read_text()))
    assert [(row["what"], row["median"], row["unit"]) for row in rows] == [
        ("bare step", 100.0, "img/s"),
        ("training", 90.0, "img/s"),
        ("probe", 2.0, "s"),
        ("probe", 0.9, "test AUROC"),
        ("plain, frozen", 50.0, "s"),
        ("plain, frozen", 0.8, "test AUROC"),
        ("training / bare step", 0.8, "times"),
        ("probe / plain, frozen", 25.0, "times"),
        ("augmentation, of the bare step", 5.0, "%"),
    ]
    assert all(row["commit"] == "c0ffee" and row["version_torch"] == "2" for row in rows)


MISTAKES = {
    "against=[plain,ultralytics]": "ultralytics is not installed: pip install ultralytics, or leave against=[plain]",
    "measure=[]": "give measure, such as measure=[training,evaluation]",
    "measure=[trainin]": "did you mean 'training'?",
    "against=[keras]": "against",
    "rounds=0": "rounds=0: Input should be greater than 0",
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_one_sentence(mistake: str, tiny: list[str], tmp_path: Path) -> None:
    if "ultralytics" in mistake and find_spec("ultralytics"):
        pytest.skip("it is installed")
    text = sentence(command("benchmark", *tiny, mistake, f"hydra.run.dir={tmp_path / 'run'}"))
    assert MISTAKES[mistake] in text


@pytest.mark.slow
def test_what_fails_for_all_is_one_sentence(tiny: list[str], tmp_path: Path) -> None:
    lost = ["dataset=folder", f"dataset.root={tmp_path / 'none'}", "measure=[first_pass,training]"]
    given = [word for word in tiny if not word.startswith("dataset")]
    text = sentence(command("benchmark", *given, *lost, f"hydra.run.dir={tmp_path / 'run'}"))
    assert text.startswith(f"the folder {tmp_path / 'none'} does not exist")


@pytest.mark.slow
def test_whole_benchmark(tiny: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    few = ["rounds=2", "steps=2", "batch_size=8", "plain.epochs=2", "plain.workers=1", "probe_images=30"]
    outcome = command("benchmark", *tiny, *few, f"hydra.run.dir={folder}")
    assert outcome.code == 0, outcome.out
    found = json.loads((folder / "benchmark.json").read_text())
    assert set(found["contenders"]) == set(summary.WHAT) - {"ultralytics"}
    for name, entry in found["contenders"].items():
        once = name in ("probe", "probe_views", "plain_frozen")
        assert (entry["error"], len(entry["rounds"])) == (None, 1 if once else 2)
        assert entry["peak_mib"] > 100
    for names, images in ((("step", "end_to_end", "plain"), 2 * 8), (("forward", "evaluate"), 7 * 8)):
        assert {turn["images"] for name in names for turn in found["contenders"][name]["rounds"]} == {images}
    assert [turn["images"] for turn in found["contenders"]["decode"]["rounds"]] == [90, 90]
    assert found["contenders"]["end_to_end"]["precision"] == "32-true"
    assert {"seed", "commit", "versions", "hardware", "command"} <= set(found)
    assert (folder / "benchmark.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in folder.iterdir()) == [".hydra", "benchmark.json", "benchmark.png"]
    for what in (entry["what"] for entry in found["contenders"].values()):
        assert what in outcome.out
