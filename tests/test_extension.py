"""What a package of one's own adds to a run, and how its checkpoint is loaded."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from timm.models import _registry

from defectcls.train import train
from tests.conftest import command, composed, paint, sentence

OWN = '''
import lightning as L
import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, ResNet

from defectcls.data.datamodule import DefectDataModule
from defectcls.data.samples import samples_in
from defectcls.model.classifier import Classifier


class Plates(DefectDataModule):
    """Photos of a day's plates."""

    day: str

    def list_samples(self):
        folders = {f"{self.day}/{kind}": {"defective": kind == "bad"} for kind in ("good", "bad")}
        return samples_in(self.root, folders, "<day>/{good,bad}/<image>")


class Counting(L.Callback):
    """Writes how many batches an epoch had."""

    def __init__(self, file):
        self.file, self.batches = file, 0

    def on_train_batch_end(self, *_):
        self.batches += 1

    def on_fit_end(self, *_):
        open(self.file, "w").write(str(self.batches))


class Margin(torch.nn.Module):
    """Of logits and targets; `margin` is its own argument."""

    def __init__(self, margin, weight=None):
        super().__init__()
        self.margin, self.weight = margin, weight

    def forward(self, logits, target):
        return torch.nn.functional.multi_margin_loss(logits, target, margin=self.margin, weight=self.weight)


class Doubled(Classifier):
    """Logits twice as large."""

    def forward(self, image):
        return 2 * super().forward(image)


default_cfgs = generate_default_cfgs({
    "thin_resnet": {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "first_conv": "conv1", "classifier": "fc"}
})


@register_model
def thin_resnet(pretrained=False, **options):
    thin = {"block": BasicBlock, "layers": [1, 1, 1, 1], "channels": (8, 8, 16, 16), "stem_width": 8}
    return build_model_with_cfg(ResNet, "thin_resnet", pretrained, **thin | options)
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on the path with the package `own_parts` and presets in conf/; forgotten afterwards."""
    (tmp_path / "own_parts").mkdir()
    (tmp_path / "own_parts/__init__.py").write_text(OWN)
    conf = tmp_path / "conf"
    for group, text in {
        "callbacks/counting": f"counting: {{_target_: own_parts.Counting, file: {tmp_path}/count}}",
        "loss/margin": "_target_: own_parts.Margin\nclass_weights: auto\nmargin: 0.5",
        "dataset/plates": (
            f"defaults: [/dataset_base@_here_, _self_]\nname: plates\n_target_: own_parts.Plates\n"
            f"root: {tmp_path}/plates\nday: monday"
        ),
    }.items():
        (conf / group).parent.mkdir(parents=True, exist_ok=True)
        (conf / group).with_suffix(".yaml").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    forget()


def forget() -> None:
    """As in another process."""
    sys.modules.pop("own_parts", None)
    for known in (_registry._model_entrypoints, _registry._model_to_module, _registry._model_pretrained_cfgs):
        known.pop("thin_resnet", None)


@pytest.mark.usefixtures("no_pictures")
def test_a_callback_of_ones_own(tiny: list[str], own: Path) -> None:
    given = (f"--config-dir={own / 'conf'}", *tiny, "callbacks=counting", "finetune=full", "batch_size=16")
    done = command("train", *given, f"hydra.run.dir={own / 'run'}")
    assert done.code == 0, done.err
    assert int((own / "count").read_text()) == 3 * 3  # epochs, and whole batches of the training part


@pytest.mark.usefixtures("no_pictures")
def test_arguments_of_the_trainer_pass_through(tiny: list[str], tmp_path: Path) -> None:
    given = ("+trainer.limit_train_batches=2", "+trainer.max_epochs=1", "finetune=full", "batch_size=8")
    done = command("train", *tiny, *given, f"hydra.run.dir={tmp_path / 'run'}")
    assert done.code == 0, done.err
    history = pd.read_csv(tmp_path / "run/metrics.csv")
    assert history["step"].tolist() == [2]


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("given", ["fast_dev_run=true", "deterministic=true", "profiler=simple", "num_nodes=1"])
def test_a_run_finishes_with_an_argument_of_the_trainer(tiny: list[str], tmp_path: Path, given: str) -> None:
    done = command("train", *tiny, f"+trainer.{given}", "finetune=full", f"hydra.run.dir={tmp_path / 'run'}")
    assert done.code == 0, done.err
    assert (tmp_path / "run/metrics.json").is_file()


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_gradients_of_several_batches_make_one_step(tiny: list[str], tmp_path: Path) -> None:
    """A stage ends after its epochs all the same."""
    given = ("+trainer.accumulate_grad_batches=3", "finetune=full", "batch_size=8", "finetune.stages.full.epochs=2")
    done = command("train", *tiny, *given, f"hydra.run.dir={tmp_path / 'run'}")
    assert done.code == 0, done.err
    history = pd.read_csv(tmp_path / "run/metrics.csv")
    assert history["step"].tolist() == [3, 6]  # of 7 batches an epoch


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("+trainer.limit_train_batch=2", "Lightning's Trainer: Trainer.__init__() got an unexpected keyword argument"),
        ("+trainer.profiler=fast", "Lightning's Trainer: "),
        ("trainer.strategy=fast", "Lightning's Trainer: "),
        ("+callbacks.mine._target_=torch.nn.ReLU", "torch.nn has no Callback ReLU"),
        ("+callbacks.progress.refresh=2", "callbacks.progress: "),
        ("+callbacks.mine._target_=own_part.Counting", "own_part cannot be imported"),
    ],
)
def test_mistakes(tiny: list[str], tmp_path: Path, given: str, told: str) -> None:
    assert sentence(command("train", *tiny, given, f"hydra.run.dir={tmp_path / 'run'}")).startswith(told)


@pytest.mark.usefixtures("no_pictures")
def test_a_loss_of_ones_own(tiny: list[str], own: Path) -> None:
    """Its checkpoint is evaluated without it."""
    given = (f"--config-dir={own / 'conf'}", *tiny, "loss=margin", "finetune=full")
    done = command("train", *given, f"hydra.run.dir={own / 'run'}")
    assert done.code == 0, done.err
    history = pd.read_csv(own / "run/metrics.csv")
    assert (history["train/loss"] < history["val/loss"]).all()  # of logits near 0: a margin of 0.5, and log(2)
    forget()
    again = command("evaluate", f"checkpoint={own / 'run'}", f"hydra.run.dir={own / 'again'}")
    assert again.code == 0, again.err
    assert "own_parts" not in sys.modules


PARTS = {
    "a model": ("model._target_=own_parts.Doubled", "imports=[]"),
    "a timm model": ("model.name=thin_resnet", "imports=[own_parts]"),
}


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("part", ["a model", pytest.param("a timm model", marks=pytest.mark.slow)])
def test_a_network_of_ones_own_is_loaded_where_the_user_has_imported_it(tiny: list[str], own: Path, part: str) -> None:
    forget()
    done = command("train", *tiny, *PARTS[part], "finetune=full", f"hydra.run.dir={own / 'run'}")
    assert done.code == 0, done.err
    evaluate = ("evaluate", f"checkpoint={own / 'run'}", f"hydra.run.dir={own / 'again'}")
    forget()
    assert "imports=[own_parts]" in sentence(command(*evaluate))
    assert "own_parts" not in sys.modules  # not because the file says so
    again = command(*evaluate, "imports=[own_parts]")
    assert again.code == 0, again.err
    before, after = (json.loads((own / name / "metrics.json").read_text())["test"] for name in ("run", "again"))
    assert before == after


@pytest.mark.usefixtures("no_pictures")
def test_a_model_of_ones_own(tiny: list[str], own: Path) -> None:
    """A class of one's own on a network that its module registers, in the precision of the default."""
    made = ("model._target_=own_parts.Doubled", "model.name=thin_resnet", "imports=[own_parts]")
    auto = ("trainer.precision=auto",)
    done = command("train", *tiny, *made, *auto, "finetune=probe_then_full", f"hydra.run.dir={own / 'run'}")
    assert done.code == 0, done.err
    forget()
    evaluate = ("evaluate", f"checkpoint={own / 'run'}", f"hydra.run.dir={own / 'again'}")
    told = "was trained with imports=[own_parts]: own_parts.Doubled is of a module that is not imported"
    assert told in sentence(command(*evaluate))
    again = command(*evaluate, "imports=[own_parts]")
    assert again.code == 0, again.err
    first, second = (json.loads((own / name / "metrics.json").read_text())["test"] for name in ("run", "again"))
    assert first == second


@pytest.mark.usefixtures("no_pictures")
def test_a_dataset_of_ones_own(tiny: list[str], own: Path) -> None:
    for number in range(20):
        paint(own / f"plates/monday/good/{number}.png", (10 * number, 90, 200))
        paint(own / f"plates/monday/bad/{number}.png", (200, 10 * number, 30))
    network = [argument for argument in tiny if not argument.startswith("dataset")]
    plates = (f"--config-dir={own / 'conf'}", "dataset=plates")
    done = command("train", *plates, *network, "finetune=full", f"hydra.run.dir={own / 'run'}")
    assert done.code == 0, done.err
    assert len(pd.read_csv(own / "run/predictions.csv")) == 40
    forget()
    evaluate = ("evaluate", f"checkpoint={own / 'run'}", f"hydra.run.dir={own / 'again'}")
    assert "own_parts.Plates, is not imported: name the dataset again, dataset=<name>" in sentence(command(*evaluate))
    for further in ((*plates, "part=test", "seen=keep"), ("imports=[own_parts]",)):
        again = command(*evaluate, *further)
        assert again.code == 0, again.err
        first, second = (json.loads((own / name / "metrics.json").read_text())["test"] for name in ("run", "again"))
        assert first == second


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_a_sweeper_is_told_the_objective(tiny: list[str], tmp_path: Path) -> None:
    config = composed(*tiny, "finetune=probe", "objective=test/recall")
    told = train(config, tmp_path)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert told == metrics["test"]["recall"]
    assert train(config | {"objective": "val/auroc"}, tmp_path) == metrics["val"]["auroc"]  # of a finished run too
    wrong = sentence(command("train", *tiny, "objective=val/auroq", f"hydra.run.dir={tmp_path / 'new'}"))
    assert wrong.startswith("objective=val/auroq is no <train, val or test>/<name of a number>, did you mean 'auroc'?")
