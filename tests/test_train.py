"""A whole training run: its numbers against scikit-learn, its table against the disk, its seed, its stages."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pandas as pd
import pytest
import torch
from sklearn import metrics as sk

from defectcls.model.backbone import Backbone
from defectcls.model.classifier import Classifier
from defectcls.settings import TrainSettings
from defectcls.training.build import build_classifier, build_data, class_weights
from defectcls.training.run import TrainingRun
from tests.conftest import CHECKOUT, FINISHED, command, composed, equal, weights

PARTS = ("train", "val", "test")


def numbers(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "metrics.json").read_text())


def table(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "predictions.csv", keep_default_na=False, float_precision="round_trip")


def run(folder: Path, *arguments: str) -> dict[str, Any]:
    outcome = command("train", *arguments, f"hydra.run.dir={folder}")
    assert outcome.code == 0, outcome.err
    return numbers(folder)


def evaluated(run: Path, folder: Path) -> dict[str, Any]:
    arguments = (f"checkpoint={run}", "inspect.heat_maps=false", "inspect.robustness=false")
    assert command("evaluate", *arguments, f"hydra.run.dir={folder}").code == 0
    return numbers(folder)


# --- what a run leaves ------------------------------------------------------------------------------------------------


def against_scikit_learn(found: dict[str, Any], defective: pd.Series, rejected: pd.Series, score: pd.Series) -> None:
    """The numbers of sound against defective."""
    assert found["precision"] == pytest.approx(sk.precision_score(defective, rejected, zero_division=np.nan))
    assert found["recall"] == pytest.approx(sk.recall_score(defective, rejected))
    assert found["f1"] == pytest.approx(sk.f1_score(defective, rejected))
    assert found["auroc"] == pytest.approx(sk.roc_auc_score(defective, score))
    assert found["average_precision"] == pytest.approx(sk.average_precision_score(defective, score))


@pytest.mark.parametrize("part", PARTS)
def test_numbers_of_two_classes_are_those_of_scikit_learn(finished: Path, part: str) -> None:
    found, rows = numbers(finished)[part], table(finished).query("split == @part")
    truth, answer = rows["label"], rows["prediction"]
    assert found["n"] == len(rows) > 10
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(truth, answer))
    assert found["loss"] == pytest.approx(sk.log_loss(truth == "defective", rows[["p_sound", "p_defective"]]))
    assert found["f1_macro"] == pytest.approx(sk.f1_score(truth, answer, average="macro"))
    assert found["confusion_matrix"] == sk.confusion_matrix(truth, answer, labels=["sound", "defective"]).tolist()
    against_scikit_learn(found, rows["defective"], answer == "defective", rows["score"])
    assert (rows["score"] == rows["p_defective"]).all()


@pytest.mark.parametrize("part", PARTS)
def test_numbers_of_defect_types_are_those_of_scikit_learn(finished_types: Path, part: str) -> None:
    metrics, rows = numbers(finished_types), table(finished_types).query("split == @part")
    found, names = metrics[part], metrics["class_names"]
    assert names == ["sound", *sorted(set(names) - {"sound"})]
    truth, answer, probabilities = rows["label"], rows["prediction"], rows[[f"p_{name}" for name in names]]
    assert set(truth) == set(names)
    assert (truth == rows["defect_type"]).all()
    assert found["n"] == len(rows) > 10
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(truth, answer))
    order = np.argsort(names)  # scikit-learn wants the columns in the order of the sorted names
    assert found["loss"] == pytest.approx(sk.log_loss(truth, probabilities.iloc[:, order]))
    assert found["f1_macro"] == pytest.approx(sk.f1_score(truth, answer, average="macro"))
    assert found["recall_macro"] == pytest.approx(sk.recall_score(truth, answer, average="macro"))
    assert found["confusion_matrix"] == sk.confusion_matrix(truth, answer, labels=names).tolist()
    one_hot = truth.to_numpy()[:, None] == np.array(names)
    assert found["auroc"] == pytest.approx(sk.roc_auc_score(one_hot, probabilities, average="macro"))
    assert found["average_precision"] == pytest.approx(sk.average_precision_score(one_hot, probabilities))
    assert rows["score"].to_numpy() == pytest.approx(1 - rows["p_sound"])
    against_scikit_learn(found["defect"], rows["defective"], answer != "sound", rows["score"])


def test_every_image_is_predicted_once_and_no_photo_straddles_the_split(finished: Path) -> None:
    rows, root = table(finished), Path(numbers(finished)["config"]["dataset"]["root"])
    (folder,) = {path.split("/")[0] for path in rows["path"]}
    on_disk = [path.relative_to(root).as_posix() for path in root.glob(f"{folder}/images/*")]
    assert len(on_disk) == 90
    assert sorted(rows["path"]) == sorted(on_disk)
    assert set(rows["split"]) == set(PARTS)
    assert (rows.groupby("group")["split"].nunique() == 1).all()
    assert rows["group"].nunique() == 45


def test_metrics_say_how_they_came_about(finished: Path, tiny: list[str]) -> None:
    metrics = numbers(finished)
    assert (metrics["dataset"], metrics["model"], metrics["seed"]) == ("synthetic", "test_resnet.r160_in1k", 0)
    assert metrics["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert metrics["versions"]["lightning"] == L.__version__
    head = subprocess.run(["git", "-C", CHECKOUT, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    assert (metrics["commit"] or "").removesuffix("-dirty") == head.stdout[:12]
    assert TrainSettings(**metrics["config"]) == TrainSettings(**composed(*tiny, *FINISHED, "dataset.depth='8'"))
    assert " ".join((*tiny, *FINISHED)) in metrics["command"]
    assert metrics["unreadable"] == []
    assert set(metrics["seconds"]) == {
        *("data", "probe", "fit", "inspect"),
        *(f"evaluate {part}" for part in PARTS),
    }
    counts = {part: metrics[part]["n"] for part in PARTS}
    probed = counts["train"] * (1 + metrics["config"]["finetune"]["probe_views"]) + counts["val"]
    for phase, images in {"probe": probed, "evaluate test": counts["test"]}.items():
        assert metrics["seconds"][phase] * metrics["images_per_second"][phase] == pytest.approx(images)


def test_metrics_of_the_best_epoch_are_in_the_history(finished: Path) -> None:
    metrics, history = numbers(finished), pd.read_csv(finished / "metrics.csv")
    assert history["epoch"].tolist() == [0, 1, 2]
    assert history["stage"].tolist() == ["probe", "full", "full"]
    best = history.sort_values("val/calibrated_loss", kind="stable").iloc[0]
    assert metrics["val"]["auroc"] == pytest.approx(best["val/auroc"], abs=1e-6)  # no threshold is in it


@pytest.mark.usefixtures("no_pictures")
def test_what_is_left_to_the_machine_is_chosen_and_computed_in_again(tiny: list[str], tmp_path: Path) -> None:
    """Precision and memory layout as conf/ has them, from the probe to an evaluation of the checkpoint."""
    given = [argument for argument in tiny if not argument.startswith("trainer.")]
    of_run = run(tmp_path / "run", *given, "finetune.probe=true", "finetune.stages.full.epochs=1")
    chosen = of_run["config"]["trainer"]
    assert (chosen["precision"] in ("32", "bf16"), chosen["compile"]) == (True, False)
    assert [stage["name"] for stage in of_run["stages"]] == ["probe", "full"]
    again = evaluated(tmp_path / "run", tmp_path / "evaluated")["test"]
    assert again["auroc"] == pytest.approx(of_run["test"]["auroc"], abs=1e-9)


# --- the seed ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_pictures")
def test_one_seed_is_one_result_and_another_seed_another(tiny: list[str], tmp_path: Path) -> None:
    random = (
        "finetune=full",
        "finetune.stages.full.epochs=2",
        "batch_size=16",
        "augment=any_angle",
    )
    first, again, other = (tmp_path / name for name in ("first", "again", "other"))
    for folder, seed in ((first, 0), (again, 0), (other, 1)):
        run(folder, *tiny, *random, f"seed={seed}")
    assert (first / "predictions.csv").read_bytes() == (again / "predictions.csv").read_bytes()
    for name in ("best", "last"):
        one, same, another = (weights(folder / f"checkpoints/{name}.ckpt") for folder in (first, again, other))
        assert equal(one, same)
        assert not equal(one, another)
    assert table(first)["split"].tolist() != table(other)["split"].tolist()


# --- fine-tuning ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize(
    "preset", [*(pytest.param(one, marks=pytest.mark.slow) for one in ("probe", "full")), "probe_then_full", "gradual"]
)
def test_preset_runs_its_stages_in_order(tiny: list[str], tmp_path: Path, preset: str) -> None:
    arguments = (*tiny, f"finetune={preset}", "finetune.patience=null")
    if preset != "full":
        arguments += ("finetune.probe=true",)
    metrics, asked = run(tmp_path, *arguments), composed(*arguments)["finetune"]
    expected = [("probe", 1)] if asked["probe"] else []
    expected += [(name, stage["epochs"]) for name, stage in asked["stages"].items() if stage]
    assert len(expected) == {"probe": 1, "full": 1, "probe_then_full": 2, "gradual": 4}[preset]
    assert [(stage["name"], stage["epochs"]) for stage in metrics["stages"]] == expected
    history = pd.read_csv(tmp_path / "metrics.csv")
    assert history["stage"].tolist() == [name for name, epochs in expected for _ in range(epochs)]
    assert history["val/auroc"].notna().all()
    best = min((stage["best"] for stage in metrics["stages"]), key=lambda best: best["calibrated_loss"])
    assert best["auroc"] == pytest.approx(metrics["val"]["auroc"])


@pytest.mark.usefixtures("no_pictures")
def test_probe_leaves_the_backbone_as_it_was(tiny: list[str], tmp_path: Path) -> None:
    run(tmp_path, *tiny, "finetune=probe", "model.head=linear")
    settings = TrainSettings(**composed(*tiny, "finetune=probe", "model.head=linear"))
    data = build_data(settings)
    L.seed_everything(settings.seed, verbose=False)
    untrained, trained = build_classifier(settings, data).state_dict(), weights(tmp_path / "checkpoints/best.ckpt")
    changed = {name for name in trained if not torch.equal(trained[name], untrained[name])}
    assert changed == {"head.mean", "head.std", "head.linear.weight", "head.linear.bias"}


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_collapsed_stage_is_rolled_back_to_the_probe(tiny: list[str], tmp_path: Path) -> None:
    probe = run(tmp_path / "probe", *tiny, "finetune=probe", "model.head=linear")
    arguments = ("finetune.probe=true", "finetune.stages.full.epochs=2", "optim.lr=10")
    outcome = command("train", *tiny, *arguments, f"hydra.run.dir={tmp_path / 'collapsed'}")
    metrics = numbers(tmp_path / "collapsed")
    assert [(stage["name"], stage["rolled_back"]) for stage in metrics["stages"]] == [("probe", False), ("full", True)]
    for part in PARTS:
        assert metrics[part] == probe[part]
    best = [weights(tmp_path / name / "checkpoints/best.ckpt") for name in ("probe", "collapsed")]
    assert equal(*best)
    assert "stage 'full' did not better what came before it: rolled back" in outcome.err


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_stage_after_a_collapsed_one_starts_from_the_probe(tiny: list[str], tmp_path: Path) -> None:
    """Its learning rate is next to nothing: what it starts from is what it ends with."""
    stages = (
        "finetune=gradual",
        "finetune.stages.deepest_third.lr_scale=1e5",
        "finetune.stages.two_thirds.lr_scale=1e-9",
        "finetune.stages.whole=null",
        "finetune.patience=null",
    )
    run(tmp_path, *tiny, *stages, "finetune.probe=true")
    best, last = (weights(tmp_path / f"checkpoints/{name}.ckpt") for name in ("best", "last"))
    for name, value in best.items():
        torch.testing.assert_close(value, last[name], rtol=1e-6, atol=1e-6, msg=name)


@pytest.mark.usefixtures("no_pictures")
def test_patience_ends_a_stage_and_the_next_one_runs(tiny: list[str], tmp_path: Path) -> None:
    """A plateau in the first stage once ended the run, without a word."""
    stages = (
        "finetune=gradual",
        *("finetune.stages.deepest_third.epochs=6", "finetune.stages.deepest_third.lr_scale=1e-9"),
        *("finetune.stages.two_thirds.epochs=2", "finetune.stages.whole=null", "finetune.patience=2"),
    )
    outcome = command("train", *tiny, *stages, f"hydra.run.dir={tmp_path}")
    assert "stage 'deepest_third' ends: 2 epochs in a row did not better it" in outcome.err
    history = pd.read_csv(tmp_path / "metrics.csv")
    counts = history["stage"].value_counts()
    assert 3 <= counts["deepest_third"] < 6
    assert counts["two_thirds"] == 2
    last = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)
    assert last["global_step"] == history["step"].iloc[-1] == len(history) * history["step"].iloc[0]


def test_defects_have_half_of_the_loss(tiny: list[str]) -> None:
    settings = TrainSettings(**composed(*tiny, "batch_size=1"))
    data = build_data(settings)
    targets = torch.cat([batch["target"] for batch in data.train_dataloader()])
    weights = torch.tensor(class_weights(settings, data))
    share = weights[targets[targets == 1]].sum() / weights[targets].sum()
    assert share.item() == pytest.approx(0.5, abs=1e-6)
    counts = np.bincount(data.targets[data.part("train")])
    assert weights.tolist() == pytest.approx(counts.sum() / (2 * counts))


OPTIONS = (
    "callbacks=ema",
    "loss.label_smoothing=0.2",
    "loss.class_weights=none",
    "optim=sgd",
    "optim.schedule=constant",
    "optim.warmup=0.9",
    "optim.clip=0.01",
    "+optim.options.betas=[0.5,0.6]",
    "finetune.batchnorm=frozen",
    "model.pool=catavgmax",
    "augment=any_angle",
)


@pytest.fixture(scope="module")
def plain(tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The weights after two epochs without any option."""
    folder = tmp_path_factory.mktemp("plain")
    return fitted(folder, *tiny)


def fitted(folder: Path, *arguments: str) -> dict[str, torch.Tensor]:
    """The weights after two epochs of a run that draws no pictures."""
    arguments = (*arguments, "finetune=full", "finetune.stages.full.epochs=2", "batch_size=16")
    TrainingRun(TrainSettings(**composed(*arguments)), folder, None).train()
    return weights(folder / "checkpoints/last.ckpt")


@pytest.mark.parametrize("option", OPTIONS)
def test_option_changes_what_is_learnt(
    tiny: list[str], plain: dict[str, torch.Tensor], tmp_path: Path, option: str
) -> None:
    found = fitted(tmp_path, *tiny, option)
    assert all(value.isfinite().all() for value in found.values())
    assert not equal(found, plain)


def test_ema_is_the_average_of_the_steps(tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(
        Classifier, "on_train_batch_end", lambda self, *_: seen.append(self.head.linear.weight.detach().clone())
    )
    found = fitted(tmp_path, *tiny, "callbacks=ema", "callbacks.ema.decay=0.75")
    average = seen[0]
    for value in seen[1:6]:
        average = 0.75 * average + 0.25 * value
    torch.testing.assert_close(found["head.linear.weight"], average)


# --- frozen features --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_second_probe_of_the_same_images_computes_no_feature(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not for another penalty, nor for another split; and a run's numbers are those of its checkpoint, computed."""
    monkeypatch.setenv("DEFECTCLS_CACHE", str(tmp_path / "cache"))
    quick, seen = Backbone.inference, []

    def counted(self: Backbone, with_map: bool = False) -> Callable[[torch.Tensor], tuple[torch.Tensor, ...]]:
        look = quick(self, with_map)

        def count(image: torch.Tensor) -> tuple[torch.Tensor, ...]:
            seen.append(len(image))
            return look(image)

        return count

    monkeypatch.setattr(Backbone, "inference", counted)
    probe = (*tiny, "finetune=probe", "finetune.probe=true", "finetune.probe_views=0")
    of_run = run(tmp_path / "one", *probe)
    assert sum(seen) == 90
    run(tmp_path / "other", *probe, "finetune.probe_c=[0.5]", "dataset.split.test=0.3")
    assert sum(seen) == 90
    assert evaluated(tmp_path / "one", tmp_path / "evaluated")["test"] == of_run["test"]
    assert sum(seen) == 90 + of_run["test"]["n"]


def test_a_head_is_trained_on_features_of_one_pass_and_evaluates_as_the_network_that_it_is(
    tiny: list[str], tmp_path: Path
) -> None:
    of_run = run(
        tmp_path / "run", *tiny, "finetune=head", "finetune.stages.head.epochs=4", "augment=texture", "optim.lr=0.01"
    )
    assert [(stage["name"], stage["epochs"]) for stage in of_run["stages"]] == [("head", 4)]
    loss = pd.read_csv(tmp_path / "run" / "metrics.csv")["train/loss"]
    assert loss.iloc[-1] < loss.iloc[0]
    assert evaluated(tmp_path / "run", tmp_path / "evaluated")["test"] == of_run["test"]
