"""The command line: who overrules whom, and what a typo reads like."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from defectcls.arguments import spelled_out, with_text_quoted
from defectcls.config import CONF_DIR
from defectcls.errors import FULL_ERROR, UserError
from defectcls.training.command import run_verb
from defectcls.training.jobs import recorded_command
from tests.conftest import command, composed, process, sentence

SYNTHETIC = "dataset=synthetic"


# --- who overrules whom -----------------------------------------------------------------------------------------------


def test_dataset_chooses_the_augmentation_and_the_command_line_overrules_it() -> None:
    assert composed("dataset=mvtec")["augment"]["rotation"] == 3
    assert composed("dataset=casting")["augment"]["rotation"] == 180
    assert composed("dataset=casting", "augment=none")["augment"]["rotation"] == 0
    assert composed("dataset=casting", "augment=none", "augment.rotation=7")["augment"]["rotation"] == 7


def test_experiment_overrules_the_presets_and_the_command_line_the_experiment() -> None:
    preset, config = OmegaConf.load(CONF_DIR / "experiment/railway_h2o.yaml"), composed("experiment=railway_h2o")
    assert (config["dataset"]["name"], config["finetune"]["name"]) == ("railway", "full")
    assert config["optim"]["lr"] == preset.optim.lr != composed(SYNTHETIC)["optim"]["lr"]
    config = composed("experiment=railway_h2o", "optim.lr=1", "finetune=probe")
    assert (config["optim"]["lr"], config["finetune"]["name"]) == (1, "probe")


def test_probe_follows_the_pretrained_weights() -> None:
    tuned = (SYNTHETIC, "finetune=probe_then_full")
    assert composed(*tuned)["finetune"]["probe"] is True
    assert composed(*tuned, "model.pretrained=false")["finetune"]["probe"] is False
    assert composed(SYNTHETIC, "model.pretrained=false")["finetune"]["probe"] is True


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
    (): f"dataset is not set: add dataset=<name>; there are {DATASETS}",
    (SYNTHETIC, "sed=1"): "unknown key 'sed', did you mean 'seed'?",
    (SYNTHETIC, "batchsize=1"): "unknown key 'batchsize', did you mean 'batch_size'?",
    (SYNTHETIC, "modle=resnet18"): "unknown key 'modle', did you mean 'model'?",
    (SYNTHETIC, "optim.lrr=1"): "unknown key 'optim.lrr' in optim, did you mean 'lr'?",
    (SYNTHETIC, "dataset.split.trian=0.5"): (
        "unknown key 'dataset.split.trian' in dataset.split, did you mean 'train'?"
    ),
    (SYNTHETIC, "optim.banana=1"): (
        "unknown key 'optim.banana' in optim; known here are name, lr, weight_decay, options, schedule, "
        "warmup, min_lr_ratio, clip"
    ),
    ("dataset=mvtek",): f"dataset has no preset 'mvtek', did you mean 'mvtec'? there are {DATASETS}",
    (SYNTHETIC, "model=resnet81"): f"model has no preset 'resnet81', did you mean 'resnet18'? there are {MODELS}",
    (SYNTHETIC, "model=zzz"): f"model has no preset 'zzz', there are {MODELS}",
    ("dataset=folder",): "dataset.root is not set: add dataset.root=<value>",
    (SYNTHETIC, "model=timm"): "model.name is not set: add model.name=<value>",
    (SYNTHETIC, "optim.options=[a,b"): (
        "optim.options=[a,b is no key=value: as a text, type \"optim.options='[a,b'\"; as a list, 'key=[a,b]'"
    ),
    (SYNTHETIC, "lr=1"): "unknown key 'lr': optim.lr=<value> sets it",
    (SYNTHETIC, "batch=1"): "unknown key 'batch', did you mean 'batch_size'?",
    (SYNTHETIC, "weights=x"): "unknown key 'weights': model.weights=<value> sets it",
    (SYNTHETIC, "dataset.batch_size=1"): "unknown key 'dataset.batch_size': batch_size=<value> sets it",
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


def test_only_what_a_verb_knows_is_named() -> None:
    assert sentence(command("train", SYNTHETIC, "banana=1")).endswith(", experiment")
    assert sentence(command("evaluate", "banana=1")).endswith(", augment")


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


# --- names that Hydra's grammar takes for something else --------------------------------------------------------------

NAMES = (
    *(
        "photos (1)",
        "50%#1",
        "a=b",
        "良品",
        "o'brien",
        "a,b",
        "[1]",
        "br [1]/good/*.png",
        "C:\\new\\",
        'say "ah"',
        "\\'",
    ),
    *(
        "2024",
        "1e5",
        ".5",
        "true",
        "null/x",
        "nan",
        "runs/mvtec/resnet18/2026-11-28_21-44-48-123456",
        "../x",
        "-x",
        " x ",
    ),
)


def read_by_hydra(argument: str) -> Any:
    return OverridesParser.create().parse_override(argument).value()


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_text_whatever_the_grammar_makes_of_it(name: str) -> None:
    argument = with_text_quoted(f"dataset.root={name}", sweeps=False)
    assert read_by_hydra(argument) == name
    assert with_text_quoted(argument, sweeps=False) == argument  # recorded, and typed again by resume=


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("[0,null,good part]", ["0", "null", "good part"]),
        ("[true, nan,1e5]", ["true", "nan", "1e5"]),
        ("['a,b','true']", ["a,b", "true"]),
        ("[]", []),
        ("0", "0"),
        ("null", None),
    ],
)
def test_names_in_a_list_are_text(typed: str, read: Any) -> None:
    for key in ("dataset.sound", "+dataset.labels", "dataset.categories"):
        assert read_by_hydra(with_text_quoted(f"{key}={typed}", sweeps=False)) == read


def test_what_means_something_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    quoted = {
        "dataset.root=/mnt/photos": "dataset.root=/mnt/photos",
        "dataset.root='a b'": "dataset.root='a b'",
        "model.weights=null": "model.weights=null",
        "hydra.run.dir=runs/${now:%H}": "hydra.run.dir=runs/${now:%H}",
        "batch_size=16": "batch_size=16",
        "output=~/a.csv": "output=/home/ada/a.csv",
        "+dataset.table=~root/b": "+dataset.table=/root/b",
        "resume=~": "resume=/home/ada",
        "dataset.sound=~root": "dataset.sound='~root'",
        "output=~nobody here/a": "output='~nobody here/a'",
    }
    assert {argument: with_text_quoted(argument, sweeps=False) for argument in quoted} == quoted


def test_a_sweep_goes_over_the_elements_of_a_list() -> None:
    quoted = {
        "dataset.root=a b,c,[1]": "dataset.root='a b',c,'[1]'",
        "dataset.root='a b',c,'d,e'": "dataset.root='a b',c,'d,e'",
        "dataset.categories=[screw],[0,good part]": "dataset.categories=[screw],['0','good part']",
        "model.name=resnet18,resnet34": "model.name=resnet18,resnet34",
        "model.name=choice(resnet18,resnet34)": "model.name=choice(resnet18,resnet34)",
    }
    assert {argument: with_text_quoted(argument, sweeps=True) for argument in quoted} == quoted


def test_a_list_without_brackets_is_ambiguous() -> None:
    text = sentence(command("train", "dataset=folder", "dataset.root=x", "dataset.sound=good,0"))
    assert text.startswith("dataset.sound=good,'0' has several values: add -m for a sweep over them, or write one list")


def test_what_cannot_be_read_comes_with_what_to_type() -> None:
    assert sentence(command("train", SYNTHETIC, "+dataset.camera=no#1")) == (
        "+dataset.camera=no#1 is no key=value: as a text, type \"+dataset.camera='no#1'\"; as a list, 'key=[a,b]'"
    )


# --- a run begun again ------------------------------------------------------------------------------------------------


def composed_by(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> dict[str, Any]:
    """The configuration that `python -m defectcls.train` would train with."""
    found: list[dict[str, Any]] = []
    monkeypatch.setattr(sys, "argv", ["defectcls.train", *arguments])
    monkeypatch.setenv(FULL_ERROR, "0")
    monkeypatch.setattr("defectcls.train.train", lambda config, _: found.append(config))
    run_verb("train")
    return found[0]


def test_resume_repeats_the_presets_and_later_words_win(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my conf/model").mkdir(parents=True)
    (tmp_path / "more/augment").mkdir(parents=True)
    shutil.copy(CONF_DIR / "model/resnet18.yaml", tmp_path / "my conf/model/mine.yaml")
    shutil.copy(CONF_DIR / "augment/texture.yaml", tmp_path / "more/augment/own.yaml")
    monkeypatch.chdir(tmp_path)
    begun = composed_by(
        *(monkeypatch, SYNTHETIC, "dataset.root=good (1)", "--config-dir", "my conf", "model=mine", "trainer=gpu"),
        *(f"hydra.searchpath=[file://{tmp_path}/more]", "augment=own", "hydra.run.dir=run 1"),
    )
    monkeypatch.chdir("/")
    again = composed_by(monkeypatch, f"resume={tmp_path}/run 1", "trust=true", "trainer=cpu")
    assert begun["dataset"]["root"] == again["dataset"]["root"] == "good (1)"
    assert (begun["model"], begun["augment"]) == (again["model"], again["augment"])
    assert (begun["trainer"]["accelerator"], again["trainer"]["accelerator"]) == ("gpu", "cpu")
    assert again["resume"] == f"{tmp_path}/run 1"
    presets = f"hydra.searchpath=['file://{tmp_path}/my conf','file://{tmp_path}/more']"
    assert recorded_command(tmp_path / "run 1")[1][:2] == [presets, SYNTHETIC]


@pytest.mark.parametrize("content", [b"\0" * 9, b"[a", b"a: b", b"\xff\xfe", b"- 1", b""])
def test_damaged_record_of_a_run(tmp_path: Path, content: bytes) -> None:
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra/hydra.yaml").write_bytes(content)
    expected = f"{tmp_path}/.hydra/hydra.yaml is damaged: repeat the command that began this, in another folder"
    assert sentence(command("train", f"resume={tmp_path}")) == expected


# --- wrong values -----------------------------------------------------------------------------------------------------

WRONG = {
    "seed=abc": "seed=abc: it has to be a valid integer",
    "seed=-1": "seed=-1: it has to be greater than or equal to 0",
    "batch_size=-1": "batch_size=-1: it has to be greater than 0",
    **{
        f"image_size={given}": f"image_size={shown}: it has to be a side of 32 pixels or more, or [height,width]; "
        "it has to be 'auto'"
        for given, shown in (("abc", "abc"), ("8", "8"), ("[224]", "[224]"), ("[224,224,3]", "[224, 224, 3]"))
    },
    "optim.lr=fast": "optim.lr=fast: it has to be a valid number",
    "optim.lr=0": "optim.lr=0: it has to be greater than 0",
    "dataset.resize=crop": "dataset.resize=crop: it has to be 'squash' or 'pad'",
    "dataset.resize=pda": "dataset.resize=pda: it has to be 'squash' or 'pad'",
    "target=defects": "target=defects: it has to be 'defect' or 'defect_type'",
    "+finetune.stages.more.epochs=3": "finetune.stages.more.trainable: Field required",
    "dataset.split.val=null": ("dataset.split: at most one of train, val and test may be null (all that is left)"),
    "dataset.image_count=0": "dataset.image_count=0: it has to be greater than or equal to 1",
    "dataset.image_count=many": ("dataset.image_count=many: it has to be a valid integer"),
}


@pytest.mark.parametrize("argument", WRONG)
def test_wrong_value_is_one_sentence(argument: str, tmp_path: Path) -> None:
    folder = f"hydra.run.dir={tmp_path}"
    outcome = command("train", SYNTHETIC, f"dataset.root={tmp_path}", "logger=csv", argument, folder)
    assert sentence(outcome) == WRONG[argument]
    assert outcome.err.count("\n") == 1


TOGETHER = {
    ("model.head=memory", "finetune=probe", "model.test_views=2"): (
        "model.head=memory compares an image as it lies: model.test_views=1"
    ),
}


@pytest.mark.parametrize("arguments", TOGETHER)
def test_values_that_exclude_each_other_are_one_sentence(arguments: tuple[str, ...], tmp_path: Path) -> None:
    outcome = command("train", SYNTHETIC, "logger=csv", *arguments, f"hydra.run.dir={tmp_path}")
    assert sentence(outcome) == TOGETHER[arguments]


def test_wrong_value_names_every_way_out(tmp_path: Path) -> None:
    wrong = {
        "dataset.split.train=-3": "dataset.split.train=-3: ",
        "finetune.probe_c=[none]": "finetune.probe_c=none: ",
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
    for text in (
        "batch_size: 32",
        "dataset: archive, casting, concrete_crack, folder, ",
        "python -m defectcls.train -m ",
    ):
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
        "import sys; from defectcls.training.command import run_verb\n"
        "sys.argv += ['dataset=synthetic', 'sed=1']\n"
        "try: run_verb('train')\n"
        "finally: assert 'torch' not in sys.modules and 'pandas' not in sys.modules"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.stderr == "error: unknown key 'sed', did you mean 'seed'?\n"


@pytest.mark.parametrize("typed", ["decision=recal>=0.95", "decision=recall<=0.9", "decision=escape<=0.05"])
def test_a_decision_that_there_is_not(typed: str) -> None:
    known = "there are recall>=<number>, precision>=<number>, fpr<=<number>"
    near = ", did you mean 'recall'?" if "rec" in typed else ","
    assert sentence(command("train", SYNTHETIC, typed)) == f"{typed}{near} {known}"


def test_a_decision_with_its_target_isspelled_out() -> None:
    assert spelled_out("decision=fpr<=0.02") == ["decision=fpr", "decision.target=0.02"]
    assert spelled_out("decision=recall>=.9, 5e-1") == ["decision=recall", "decision.target=.9, 5e-1"]  # a sweep
    assert spelled_out("decision=review") == ["decision=review"]
    assert spelled_out("dataset.root=a<=b") == ["dataset.root=a<=b"]


@pytest.mark.parametrize("given", ["95", "0", "1", "nan", "0.9,95", "-0.5", "95%", "0.9.5", ""])
def test_a_target_that_is_no_share_is_told_as_it_was_typed(given: str) -> None:
    with pytest.raises(UserError) as caught:
        spelled_out(f"decision=fpr<={given}")
    assert str(caught.value) == f"decision=fpr<={given}: give a share between 0 and 1, such as decision=fpr<=0.05"
    if given == "95":
        told = "decision=recall>=95: give a share between 0 and 1, such as decision=recall>=0.95"
        assert sentence(command("train", SYNTHETIC, "decision=recall>=95")) == told


@pytest.mark.parametrize("kept", ["", "checkpoints/best.ckpt", "notes.log", "tried/0/0/predictions.csv"])
def test_a_run_that_fails_leaves_its_folder_only_if_it_kept_something(
    kept: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def task(config: dict, folder: Path) -> None:
        for file in filter(None, ("wandb/files/debug.log", "compare.log", kept)):
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).touch()
        (folder / "tried" / "1" / "0").mkdir(parents=True)
        assert (folder / ".hydra").is_dir()
        raise UserError("no")

    monkeypatch.setattr("defectcls.compare.compare", task)
    with pytest.raises(SystemExit):
        run_verb("compare", [f"hydra.run.dir={tmp_path / 'run'}"])
    assert (tmp_path / "run").exists() == bool(kept)
    assert not kept or (tmp_path / "run" / kept).exists()


def test_a_command_that_fails_at_once_leaves_no_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    sentence(
        command("train", "dataset=folder", f"dataset.root={tmp_path / 'none'}", "logger=csv", f"hydra.run.dir={folder}")
    )
    assert not folder.exists()
