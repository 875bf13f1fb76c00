"""A run that is killed and resumed is the run that was never killed."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from defectcls.errors import UserError
from defectcls.files import BEST, LAST
from defectcls.model.classifier import Classifier
from defectcls.pages.wording import percent
from defectcls.training import results
from defectcls.training.record import Record, read_checkpoint
from tests.conftest import command, equal, process, sentence, weights

pytestmark = pytest.mark.usefixtures("no_pictures")

NUMBERS = ("train", "val", "test", "stages", "class_names")
TIMES = ["seconds", "images_per_second"]


class PowerCutError(Exception):
    """Nobody expects it."""


def before(owner: Any, name: str, when: Callable[..., bool], monkeypatch: pytest.MonkeyPatch) -> None:
    """The power goes once, where the method is called and `when` holds."""
    method, cut = getattr(owner, name), []

    def until_then(*arguments: Any, **options: Any) -> Any:
        if not cut and when(*arguments):
            cut.append(True)
            raise PowerCutError
        return method(*arguments, **options)

    monkeypatch.setattr(owner, name, until_then)


def assert_same_run(one: Path, other: Path) -> None:
    """`other` was resumed; all that a run leaves is the same but for times."""
    for name in ("best", "last"):
        file = f"checkpoints/{name}.ckpt"
        assert equal(weights(one / file), weights(other / file)), name
    states = [torch.load(folder / "checkpoints/last.ckpt", weights_only=True) for folder in (one, other)]
    assert states[0]["global_step"] == states[1]["global_step"]
    assert str(states[0]["optimizer_states"]) == str(states[1]["optimizer_states"])
    assert (one / "predictions.csv").read_bytes() == (other / "predictions.csv").read_bytes()
    numbers = [json.loads((folder / "metrics.json").read_text()) for folder in (one, other)]
    for name in NUMBERS:
        assert numbers[0][name] == numbers[1][name]
    assert numbers[0]["config"] | {"resume": str(other)} == numbers[1]["config"]
    history = [pd.read_csv(folder / "metrics.csv").drop(columns=TIMES) for folder in (one, other)]
    pd.testing.assert_frame_equal(*history)
    assert history[0]["epoch"].is_unique


STAGES = ("finetune.probe=true", "finetune.stages.full.epochs=3", "batch_size=16")
RECIPES = {
    "random": (*STAGES, "augment=any_angle"),
    "ema": (*STAGES, "callbacks=ema", "callbacks.ema.decay=0.9"),
    "sgd": (*STAGES, "optim=sgd", "finetune.batchnorm=train"),
    "gradual": (
        *("finetune=gradual", "finetune.probe=true", "batch_size=16", "finetune.stages.deepest_third.epochs=1"),
        *("finetune.stages.two_thirds.epochs=1", "finetune.stages.whole.epochs=1"),
    ),
    "rollback": (
        *("finetune=gradual", "finetune.probe=true", "batch_size=16", "finetune.stages.deepest_third.epochs=4"),
        *("finetune.stages.deepest_third.lr_scale=1e5", "finetune.stages.two_thirds.epochs=1"),
        *("finetune.stages.whole=null", "finetune.patience=1"),  # which ends the first stage before its time
    ),
    "full": ("finetune=full", "finetune.stages.full.epochs=3", "batch_size=16"),
    "impatient": ("finetune=full", "finetune.stages.full.epochs=9", "finetune.patience=1", "optim.lr=0.01"),
}


@pytest.fixture(scope="module")
def straight(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a run of one recipe that was never interrupted."""
    folders: dict[str, Path] = {}

    def folder_of(recipe: str) -> Path:
        if recipe not in folders:
            folders[recipe] = tmp_path_factory.mktemp(recipe)
            assert command("train", *tiny, *RECIPES[recipe], f"hydra.run.dir={folders[recipe]}").code == 0
        return folders[recipe]

    return folder_of


MOMENTS = {
    "between best and last": (Record, "on_train_epoch_end", lambda self, trainer, module: trainer.current_epoch == 1),
    "in the midst of epoch 2": (Classifier, "training_step", lambda self, batch, number: self.global_step == 4),
    "while it measures": (results, "write_results", lambda *_: True),
}


@pytest.mark.parametrize(
    ("recipe", "moment"),
    [
        ("ema", "in the midst of epoch 2"),
        *(
            pytest.param(recipe, moment, marks=pytest.mark.slow)
            for moment, recipes in {
                "in the midst of epoch 2": ("random", "sgd", "gradual"),
                "while it measures": ("random", "full", "ema", "impatient"),
                "between best and last": ("random", "rollback", "impatient", "full"),
            }.items()
            for recipe in recipes
        ),
    ],
)
def test_cut_and_resumed_is_the_same_run(
    tiny: list[str],
    straight: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    recipe: str,
    moment: str,
) -> None:
    expected = straight(recipe)
    before(*MOMENTS[moment], monkeypatch)
    with pytest.raises(PowerCutError):
        command("train", *tiny, *RECIPES[recipe], f"hydra.run.dir={tmp_path}")
    assert not (tmp_path / "metrics.json").exists()
    outcome = command("train", f"resume={tmp_path}")
    assert outcome.code == 0, outcome.err
    assert_same_run(expected, tmp_path)


@pytest.mark.slow
def test_cut_twice_and_before_the_first_epoch(
    tiny: list[str], straight: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = straight("random")
    before(Record, "on_train_epoch_start", lambda self, trainer, module: trainer.current_epoch == 2, monkeypatch)
    before(Record, "on_train_epoch_start", lambda self, trainer, module: trainer.current_epoch == 0, monkeypatch)
    for arguments in ((*tiny, *RECIPES["random"], f"hydra.run.dir={tmp_path}"), (f"resume={tmp_path}",)):
        with pytest.raises(PowerCutError):
            command("train", *arguments)
    assert command("train", f"resume={tmp_path}").code == 0
    assert_same_run(expected, tmp_path)


def test_finished_run_is_shown_again_and_left_alone(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)

    def state() -> dict[str, tuple[float, bytes]]:
        files = [file for file in folder.rglob("*") if file.is_file() and ".hydra" not in file.parts]
        return {str(file): (file.stat().st_mtime, file.read_bytes()) for file in files}

    left = state()
    outcome = command("train", f"resume={folder}")
    assert outcome.code == 0
    assert outcome.out.startswith("this run is finished:\n")
    accuracy = json.loads((folder / "metrics.json").read_text())["test"]["accuracy"]
    assert percent(accuracy) in outcome.out
    assert state() == left


def foreign(kind: str, whole: bytes, file: Path) -> None:
    """Put something else in the place of a checkpoint."""
    if kind == "another tool's":
        torch.save({"state_dict": {}, "callbacks": {}}, file)
    elif kind == "gone":
        file.unlink()
    else:
        file.write_bytes({"empty": b"", "half": whole[: len(whole) // 2], "text": b"hello"}[kind])


@pytest.mark.parametrize("kind", ["empty", "half", "text", "another tool's", "gone"])
def test_checkpoint_of_a_run_that_is_damaged(finished: Path, tmp_path: Path, kind: str) -> None:
    (tmp_path / "checkpoints").mkdir()
    whole = (finished / LAST).read_bytes()
    for name, delete in ((LAST, "it"), (BEST, f"it and {LAST}")):
        (tmp_path / name).write_bytes(whole)
        assert "history" in read_checkpoint(tmp_path / name)["defectcls"]
        foreign(kind, whole, tmp_path / name)
        with pytest.raises(UserError) as caught:
            read_checkpoint(tmp_path / name)
        assert str(caught.value) == f"{tmp_path / name} is damaged: delete {delete} to begin the fine-tuning anew"


@pytest.mark.parametrize("name", ["last", pytest.param("best", marks=pytest.mark.slow)])
def test_run_goes_on_once_what_is_damaged_is_deleted(finished: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / "metrics.json").unlink()
    (folder / f"checkpoints/{name}.ckpt").write_bytes(b"PK")
    arguments = (f"resume={folder}", "logger=csv", "inspect.heat_maps=false", "inspect.robustness=false")
    assert sentence(command("train", *arguments)).startswith(f"{folder}/checkpoints/{name}.ckpt is damaged: delete it ")
    (folder / LAST).unlink()
    (folder / BEST).unlink()
    assert command("train", *arguments).code == 0
    assert equal(weights(folder / BEST), weights(finished / BEST))


def test_a_run_goes_on_as_it_was_begun_or_not_at_all(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished, folder)
    (folder / "metrics.json").unlink()
    record = (folder / ".hydra/hydra.yaml").read_bytes()
    for changed in ("optim.lr=0.5", f"dataset.root={tmp_path}", "dataset.depth=14"):
        told = sentence(command("train", f"resume={folder}", changed))
        key, _, value = changed.partition("=")
        assert told.startswith(f"this run was begun with {key}=")
        assert told.endswith(f", and now it is {value}: leave that out of resume={folder}, or begin another run")
    assert (folder / ".hydra/hydra.yaml").read_bytes() == record  # what was typed in vain is not typed again


def test_a_run_from_before_some_keys_were_goes_on(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, folder := tmp_path / "run")
    (folder / "metrics.json").unlink()
    last = torch.load(folder / LAST, weights_only=True)
    dataset = last["defectcls"]["config"]["dataset"]
    for keys, later in ((last["defectcls"]["config"], "earlier"), (dataset, "verdicts"), (dataset["split"], "seed")):
        del keys[later]
    torch.save(last, folder / LAST)
    file = folder / ".hydra/config.yaml"
    file.write_text("".join(line for line in file.open() if not line.strip().startswith(("verdicts:", "earlier:"))))
    arguments = (f"resume={folder}", "logger=csv", "inspect.heat_maps=false", "inspect.robustness=false")
    assert command("train", *arguments).code == 0
    assert (
        json.loads((folder / "metrics.json").read_text())["test"]
        == (json.loads((finished / "metrics.json").read_text())["test"])
    )


@pytest.mark.parametrize("content", [b"", b'{"test": {', b"[1]", b"{}", b"\xff\xfe"])
def test_numbers_of_a_run_that_are_damaged(finished: Path, tmp_path: Path, content: bytes) -> None:
    shutil.copytree(finished / ".hydra", tmp_path / ".hydra")
    (tmp_path / "metrics.json").write_bytes(content)
    assert sentence(command("train", f"resume={tmp_path}", "logger=csv")) == (
        f"{tmp_path}/metrics.json is damaged: delete it and resume the run, which measures it again"
    )


def test_folder_that_is_no_run(tmp_path: Path) -> None:
    expected = f"{tmp_path} is no folder of a run or a sweep: give one such as runs/<dataset>/<model>/<time>"
    assert sentence(command("train", f"resume={tmp_path}")) == expected


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), pytest.param("SIGINT", 130, marks=pytest.mark.slow)])
def test_stopped_by_a_signal_it_says_what_goes_on_and_does(
    tiny: list[str],
    straight: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    status: int,
) -> None:
    step, killed = Classifier.training_step, []

    def stopped(self: Classifier, batch: Any, number: int) -> Any:
        if self.global_step == 4 and not killed:
            killed.append(name)
            os.kill(os.getpid(), signal.Signals[name])
        return step(self, batch, number)

    monkeypatch.setattr(Classifier, "training_step", stopped)
    outcome = command("train", *tiny, *RECIPES["full"], f"hydra.run.dir={tmp_path}")
    assert (outcome.code, outcome.out) == (status, "")
    assert outcome.err.splitlines()[-1] == f"stopped by {name}: resume={tmp_path} goes on"
    assert command("train", f"resume={tmp_path}").code == 0
    assert_same_run(straight("full"), tmp_path)


@pytest.mark.slow
def test_stopped_while_torch_is_imported(tiny: list[str], tmp_path: Path) -> None:
    arguments = [sys.executable, "-m", "defectcls.train", *tiny, f"hydra.run.dir={tmp_path}/run"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        while not (tmp_path / "run/.hydra/overrides.yaml").exists():
            assert running.poll() is None
            time.sleep(0.01)
        time.sleep(0.3)
        running.terminate()
        out, err = running.communicate()
    assert (running.returncode, out) == (143, "")
    assert f"stopped by SIGTERM: resume={tmp_path}/run goes on\n" in err


@pytest.mark.slow
@pytest.mark.parametrize(("name", "status"), [("SIGKILL", -9), ("SIGTERM", 143), ("SIGINT", 130)])
def test_killed_at_a_random_moment_and_resumed_is_the_same_run(
    tiny: list[str], tmp_path: Path, name: str, status: int
) -> None:
    long = ("finetune.probe=true", "finetune.stages.full.epochs=40", "finetune.patience=null", "image_size=64")
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    assert command("train", *tiny, *long, f"hydra.run.dir={straight}").code == 0

    arguments = [sys.executable, "-m", "defectcls.train", *tiny, *long, f"hydra.run.dir={killed}"]
    with subprocess.Popen(arguments, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        while not (killed / "checkpoints/last.ckpt").exists():
            assert running.poll() is None
            time.sleep(0.01)
        time.sleep(random.Random(name).random() * 2)
        running.send_signal(signal.Signals[name])
    assert running.returncode == status
    assert not (killed / "metrics.json").exists()
    outcome = process("defectcls.train", f"resume={killed}", cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    assert_same_run(straight, killed)
