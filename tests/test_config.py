"""The command line: who overrules whom, and what a typo reads like."""

import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from defectcls.config import CONF_DIR, _spelled_out
from tests.conftest import command, composed, process, sentence

SYNTHETIC = "dataset=synthetic"


# --- who overrules whom -----------------------------------------------------------------------------------------------


def test_dataset_chooses_the_augmentation_and_the_command_line_overrules_it() -> None:
    assert composed("dataset=mvtec")["augment"]["rotation"] == 3
    assert composed("dataset=casting")["augment"]["rotation"] == 180
    assert composed("dataset=casting", "augment=none")["augment"]["rotation"] == 0
    assert composed("dataset=casting", "augment=none", "augment.rotation=7")["augment"]["rotation"] == 7


def test_experiment_overrules_the_presets_and_the_command_line_the_experiment() -> None:
    demo, config = OmegaConf.load(CONF_DIR / "experiment/demo.yaml"), composed("experiment=demo")
    assert (config["dataset"]["name"], config["finetune"]["name"]) == ("synthetic", "full")
    assert config["optim"]["lr"] == demo.optim.lr != composed(SYNTHETIC)["optim"]["lr"]
    config = composed("experiment=demo", "optim.lr=1", "finetune=probe")
    assert (config["optim"]["lr"], config["finetune"]["name"]) == (1, "probe")


def test_probe_follows_the_pretrained_weights() -> None:
    assert composed(SYNTHETIC)["finetune"]["probe"] is True
    assert composed(SYNTHETIC, "model.pretrained=false")["finetune"]["probe"] is False
    assert composed(SYNTHETIC, "model.pretrained=false", "finetune=probe")["finetune"]["probe"] is True


def test_data_and_weights_are_found_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEFECTCLS_DATA", raising=False)
    monkeypatch.delenv("DEFECTCLS_WEIGHTS", raising=False)
    config = composed("dataset=mvtec")
    assert (config["dataset"]["root"], config["model"]["weights"]) == ("data/mvtec", None)
    monkeypatch.setenv("DEFECTCLS_DATA", "/mnt/photos")
    monkeypatch.setenv("DEFECTCLS_WEIGHTS", "/mnt/weights")
    config = composed("dataset=mvtec")
    assert (config["dataset"]["root"], config["model"]["weights"]) == ("/mnt/photos/mvtec", "/mnt/weights")


# --- typos, all found before torch is imported ------------------------------------------------------------------------

DATASETS = ", ".join(sorted(file.stem for file in CONF_DIR.glob("dataset/*.yaml")))
MODELS = ", ".join(sorted(file.stem for file in CONF_DIR.glob("model/*.yaml")))
TYPOS = {
    (): f"dataset is not set: add dataset=<name>, one of {DATASETS}",
    (SYNTHETIC, "sed=1"): "unknown key 'sed', did you mean 'seed'?",
    (SYNTHETIC, "batchsize=1"): "unknown key 'batchsize', did you mean 'batch_size'?",
    (SYNTHETIC, "modle=resnet18"): "unknown key 'modle', did you mean 'model'?",
    (SYNTHETIC, "optim.lrr=1"): "unknown key 'optim.lrr' in optim, did you mean 'lr'?",
    (SYNTHETIC, "dataset.split.trian=0.5"): (
        "unknown key 'dataset.split.trian' in dataset.split, did you mean 'train'?"
    ),
    (SYNTHETIC, "optim.banana=1"): (
        "unknown key 'optim.banana' in optim; known here are name, lr, weight_decay, layer_decay, options, schedule, "
        "warmup, min_lr_ratio, clip, ema"
    ),
    ("dataset=mvtek",): f"dataset has no preset 'mvtek', did you mean 'mvtec'? there are {DATASETS}",
    (SYNTHETIC, "model=resnet81"): f"model has no preset 'resnet81', did you mean 'resnet18'? there are {MODELS}",
    (SYNTHETIC, "model=zzz"): f"model has no preset 'zzz', there are {MODELS}",
    ("dataset=folder",): "dataset.root is not set: add dataset.root=<value>",
    (SYNTHETIC, "model=timm"): "model.name is not set: add model.name=<value>",
    (SYNTHETIC, "optim.options=[a,b"): (
        "no viable alternative at input '[a,b'; quote values with brackets, commas or spaces: 'key=[a,b]'"
    ),
}


@pytest.mark.parametrize("arguments", TYPOS, ids=" ".join)
def test_typo_is_one_sentence(arguments: tuple[str, ...], tmp_path: Path) -> None:
    outcome = command("train", *arguments, f"hydra.run.dir={tmp_path}")
    assert sentence(outcome) == TYPOS[arguments]
    assert outcome.err.count("\n") == 1


def test_unknown_group_names_the_groups() -> None:
    text = sentence(command("train", SYNTHETIC, "banana=1"))
    assert text.startswith("unknown key 'banana'; known here are ")
    for name in ("dataset", "model", "finetune", "optim", "augment", "seed", "image_size"):
        assert name in text.split("are ")[1].split(", ")


def test_terminal_shows_the_sentence_and_nothing_else(tmp_path: Path) -> None:
    found = process("defectcls.train", SYNTHETIC, "optim.lrr=1", cwd=tmp_path)
    assert found == (2, "", "error: unknown key 'optim.lrr' in optim, did you mean 'lr'?\n")
    assert list(tmp_path.iterdir()) == []
    found = process("defectcls.evaluate", "part=test", cwd=tmp_path)
    assert found == (2, "", "error: give checkpoint=<run folder> or predictions=<csv>, one of both\n")


def test_full_error_shows_the_traceback(tmp_path: Path) -> None:
    found = process("defectcls.train", SYNTHETIC, "optim.lrr=1", cwd=tmp_path, HYDRA_FULL_ERROR="1")
    assert (found.code, found.out) == (1, "")
    assert found.err.startswith("Traceback (most recent call last):\n")
    assert "Key 'lrr' is not in struct" in found.err


# --- wrong values -----------------------------------------------------------------------------------------------------

WRONG = {
    "seed=abc": "seed=abc: Input should be a valid integer, unable to parse string as an integer",
    "seed=-1": "seed=-1: Input should be greater than or equal to 0",
    "batch_size=-1": "batch_size=-1: Input should be greater than 0",
    "image_size=abc": "image_size=abc: Input should be a valid integer, unable to parse string as an integer",
    "image_size=8": "image_size=8: Input should be greater than or equal to 32",
    "optim.lr=fast": "optim.lr=fast: Input should be a valid number, unable to parse string as a number",
    "optim.lr=0": "optim.lr=0: Input should be greater than 0",
    "dataset.resize=crop": "dataset.resize=crop: Input should be 'squash' or 'pad'",
    "dataset.resize=pda": "dataset.resize=pda: Input should be 'squash' or 'pad', did you mean 'pad'?",
    "sampler=balance": "sampler=balance: Input should be 'shuffle' or 'balanced', did you mean 'balanced'?",
    "target=defects": "target=defects: Input should be 'defect' or 'defect_type', did you mean 'defect'?",
    "+finetune.stages.more.epochs=3": (
        "finetune: finetune=probe_then_full has no stage more, but epochs of it is given: "
        "finetune.stages.more=null leaves it out"
    ),
    "finetune.stages.full.steps=5": "finetune.stages.full: give epochs or steps, and null for the other",
    "dataset.prevalence=1": "dataset.prevalence=1: Input should be less than 1",
    "dataset.split.val=null": ("dataset.split: at most one of train, val and test may be null (all that is left)"),
    "dataset.images=0": "dataset.images=0 is not from 1 to 1000000",
    "dataset.images=many": (
        "dataset.images=many: Input should be a valid integer, unable to parse string as an integer"
    ),
}


@pytest.mark.parametrize("argument", WRONG)
def test_wrong_value_is_one_sentence(argument: str, tmp_path: Path) -> None:
    folder = f"hydra.run.dir={tmp_path}"
    outcome = command("train", SYNTHETIC, f"dataset.root={tmp_path}", "logger=csv", argument, folder)
    assert sentence(outcome) == WRONG[argument]
    assert outcome.err.count("\n") == 1


TOGETHER = {
    ("sampler=balanced", "loss.class_weights=balanced"): (
        "sampler=balanced and loss.class_weights=balanced both make all classes weigh alike, and together the rare "
        "ones outweigh the others: loss.class_weights=auto, or sampler=shuffle"
    ),
    ("dataset.prevalence=0.01", "decision.calibrate=false"): (
        "dataset.prevalence=0.01 moves calibrated scores: decision.calibrate=true, or dataset.prevalence=null"
    ),
}


@pytest.mark.parametrize("arguments", TOGETHER)
def test_values_that_exclude_each_other_are_one_sentence(arguments: tuple[str, ...], tmp_path: Path) -> None:
    outcome = command("train", SYNTHETIC, "logger=csv", *arguments, f"hydra.run.dir={tmp_path}")
    assert sentence(outcome) == TOGETHER[arguments]


def test_wrong_value_names_every_way_out(tmp_path: Path) -> None:
    wrong = {
        "dataset.split.train=-3": "dataset.split.train=-3: ",
        "finetune.stages.full.trainable=most": "finetune.stages.full.trainable=most: ",
        "loss.class_weights=heavy": "loss.class_weights=heavy: ",
        "trainer.devices=none": "trainer.devices=none: ",
    }
    for argument, start in wrong.items():
        text = sentence(command("train", SYNTHETIC, "logger=csv", argument, f"hydra.run.dir={tmp_path}"))
        assert text.startswith(start)
        assert "\n" not in text


# --- help -------------------------------------------------------------------------------------------------------------


def test_help_shows_every_key_without_a_dataset(tmp_path: Path) -> None:
    found = process("defectcls.train", "--help", cwd=tmp_path)
    assert (found.code, found.err) == (0, "")
    for text in ("batch_size: 32", "dataset: casting, concrete_crack, folder, mvtec", "python -m defectcls.train -m "):
        assert text in found.out


def test_package_lists_its_verbs(tmp_path: Path) -> None:
    found = process("defectcls", cwd=tmp_path)
    assert (found.code, found.err) == (0, "")
    lines = found.out.splitlines()
    for verb in ("train", "evaluate"):
        (line,) = (number for number, text in enumerate(lines) if text.split()[:1] == [verb])
        assert f"python -m defectcls.{verb}" in lines[line + 1]


def test_torch_is_not_imported_for_a_typo() -> None:
    """A third of a second instead of six."""
    code = (
        "import sys; from defectcls.train import train; from defectcls.config import run_verb\n"
        "sys.argv += ['dataset=synthetic', 'sed=1']\n"
        "try: run_verb('train', train)\n"
        "finally: assert 'torch' not in sys.modules and 'pandas' not in sys.modules"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.stderr == "error: unknown key 'sed', did you mean 'seed'?\n"


@pytest.mark.parametrize("typed", ["decision=recal>=0.95", "decision=recall<=0.9", "decision=escape<=0.05"])
def test_a_decision_that_there_is_not(typed: str) -> None:
    known = "there are recall>=<number>, precision>=<number>, fpr<=<number>"
    near = ", did you mean 'recall'?" if "rec" in typed else ","
    assert sentence(command("train", SYNTHETIC, typed)) == f"{typed}{near} {known}"


def test_a_decision_with_its_target_is_spelled_out() -> None:
    assert _spelled_out("decision=fpr<=0.02") == ["decision=fpr", "decision.target=0.02"]
    assert _spelled_out("decision=review") == ["decision=review"]
    assert _spelled_out("dataset.root=a<=b") == ["dataset.root=a<=b"]


def test_a_command_that_fails_at_once_leaves_no_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    sentence(
        command("train", "dataset=folder", f"dataset.root={tmp_path / 'none'}", "logger=csv", f"hydra.run.dir={folder}")
    )
    assert not folder.exists()
