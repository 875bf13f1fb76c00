"""The package from Python: a configuration, its modules for any Trainer, and the verbs as functions."""

import signal
import subprocess
import sys
from pathlib import Path

import lightning as L
import pandas as pd
import pytest
import torch
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

import defectcls
from defectcls.config import CONF_DIR
from tests.conftest import composed, process


def test_every_public_name_is_there_and_documented() -> None:
    for name in defectcls.__all__:
        assert getattr(defectcls, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = defectcls.nothing  # type: ignore[attr-defined]


def test_import_takes_nothing_with_it() -> None:
    code = "import defectcls, sys; print(*({'torch', 'hydra', 'pandas', 'pydantic'} & sys.modules.keys()))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "\n"


# --- a configuration --------------------------------------------------------------------------------------------------


def test_compose_is_what_the_command_has() -> None:
    given = ("dataset=mvtec", "dataset.categories=[screw]", "model=resnet18", "decision=recall>=0.9")
    config = defectcls.compose(*given)
    spelled = (*given[:-1], "decision=recall", "decision.target=0.9")
    assert OmegaConf.to_container(config, resolve=True) == composed(*spelled)
    assert defectcls.compose("checkpoint=run", verb="evaluate").checkpoint == "run"


def test_compose_takes_presets_of_ones_own_and_leaves_others_hydra_alone(tmp_path: Path) -> None:
    (tmp_path / "loss").mkdir()
    (tmp_path / "loss/mine.yaml").write_text("_target_: torch.nn.MultiMarginLoss\nclass_weights: none\nmargin: 2\n")
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        theirs = GlobalHydra.instance().hydra
        config = defectcls.compose("dataset=synthetic", "loss=mine", config_dir=tmp_path)
        assert GlobalHydra.instance().hydra is theirs
    assert config.loss.margin == 2
    with pytest.raises(defectcls.UserError, match="none is no folder"):
        defectcls.compose("dataset=synthetic", config_dir=tmp_path / "none")


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ((), "dataset is not set: add dataset=<name>; there are archive, casting"),
        (("dataset=synthetic", "sed=1"), "unknown key 'sed', did you mean 'seed'"),
        (
            ("dataset=synthetic", "trainer.devcies=2"),
            "unknown key 'trainer.devcies' in trainer, did you mean 'devices'",
        ),
    ],
)
def test_a_mistake_is_an_error_that_one_can_catch(given: tuple[str, ...], text: str) -> None:
    with pytest.raises(defectcls.UserError) as caught:
        defectcls.compose(*given)
    assert str(caught.value).startswith(text)


def test_arguments_of_lightnings_classes_need_no_sign() -> None:
    config = defectcls.compose("dataset=synthetic", "trainer.accumulate_grad_batches=4", "logger.entity=me")
    assert (config.trainer.accumulate_grad_batches, config.logger.entity) == (4, "me")


# --- modules for any Trainer ------------------------------------------------------------------------------------------


def test_modules_are_trained_by_a_plain_trainer(tiny: list[str], tmp_path: Path) -> None:
    config = defectcls.compose(*tiny, "finetune=full", "batch_size=16", "optim.lr=0.01")
    data = defectcls.datamodule(config)
    model = defectcls.classifier(config, data)
    trainer = L.Trainer(max_epochs=2, accelerator="cpu", logger=False, default_root_dir=tmp_path)
    trainer.fit(model, data)
    assert trainer.current_epoch == 2
    assert trainer.callback_metrics["train/loss"] < 1
    assert data.class_names == ["sound", "defective"]
    with pytest.raises(defectcls.UserError, match="batch_size=0: "):
        defectcls.datamodule({**OmegaConf.to_container(config, resolve=True), "batch_size": 0})


# --- verbs as functions -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_verb_leaves_its_folder_and_the_process_as_it_was(tiny: list[str], tmp_path: Path) -> None:
    before = sys.argv, Path.cwd(), signal.getsignal(signal.SIGINT), sys.modules["__main__"]
    run = defectcls.run("train", *tiny, "finetune=full", "finetune.stages.full.epochs=1", f"hydra.run.dir={tmp_path}/a")
    assert (sys.argv, Path.cwd(), signal.getsignal(signal.SIGINT), sys.modules["__main__"]) == before
    assert run.folder == tmp_path / "a"
    assert run.checkpoint == tmp_path / "a/checkpoints/best.ckpt"
    assert len(run.predictions[run.predictions["split"] == "test"]) == run.metrics["test"]["n"]
    again = defectcls.run("evaluate", f"checkpoint={run.folder}", f"hydra.run.dir={tmp_path}/b")
    assert again.metrics["test"]["auroc"] == run.metrics["test"]["auroc"]
    assert again.checkpoint is None
    photos = Path(run.metrics["config"]["dataset"]["root"])
    predicted = defectcls.run("predict", f"checkpoint={run.folder}", f"input={photos}", f"hydra.run.dir={tmp_path}/c")
    assert predicted.metrics["images"] == len(predicted.predictions) > 0
    assert isinstance(predicted.predictions, pd.DataFrame)


@pytest.mark.parametrize("name", ["metrics", "audit", "compare", "summary", "export"])
def test_the_numbers_of_every_verb_are_found_in_its_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(defectcls.UserError, match="holds no numbers"):
        _ = defectcls.RunFolder(tmp_path).metrics
    (tmp_path / f"{name}.json").write_text('{"images": 3}')
    assert defectcls.RunFolder(tmp_path).metrics == {"images": 3}


class Mine(torch.nn.MultiMarginLoss):
    pass


def test_a_part_of_a_notebook_is_found_in_it(tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["__main__"], "Mine", Mine, raising=False)
    given = (*tiny, "finetune=full", "finetune.stages.full.epochs=1", f"hydra.run.dir={tmp_path}")
    run = defectcls.run("train", *given, "loss=own", "loss._target_=__main__.Mine", "+loss.margin=2", "imports=[json]")
    assert run.metrics["config"]["loss"] == {"_target_": "__main__.Mine", "class_weights": "auto", "margin": 2}
    assert run.metrics["command"].startswith("python -m defectcls.train dataset=synthetic ")


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (("trian",), "there is no verb 'trian', did you mean 'train'? there are audit, auto, compare, "),
        (("train", "-m", "seed=0,1"), "-m is for the command line: give key=value, and config_dir=<folder>"),
        (("train", "dataset=synthetic", "seed=x"), "seed=x: "),
        (("compare", "runs=[a,b]"), "a does not exist: "),
    ],
)
def test_a_verb_that_cannot_be_done(given: tuple[str, ...], text: str, tmp_path: Path) -> None:
    folder = (f"hydra.run.dir={tmp_path}/run",) if "=" in given[-1] else ()
    with pytest.raises(defectcls.UserError) as caught:
        defectcls.run(*given, *folder)
    assert str(caught.value).startswith(text)
    assert not (tmp_path / "run").exists()


# --- the console script -----------------------------------------------------------------------------------------------


def test_one_command_for_all_verbs(tmp_path: Path) -> None:
    text = "error: there is no verb 'trian', did you mean 'train'? there are audit, auto, compare, crossval, "
    found = process("defectcls", "trian", cwd=tmp_path)
    assert (found.code, found.out, found.err.startswith(text)) == (2, "", True)
    found = process("defectcls", "train", "dataset=synthetic", "sed=1", cwd=tmp_path)
    assert found == (2, "", "error: unknown key 'sed', did you mean 'seed'?\n")
