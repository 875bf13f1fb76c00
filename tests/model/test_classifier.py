"""The classifier: logits, validation against scikit-learn, training in stages, and checkpoints from strangers."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from scipy.special import softmax
from sklearn.metrics import accuracy_score, f1_score, log_loss, precision_score, recall_score, roc_auc_score
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader

from defectcls.config import CONF_DIR
from defectcls.data.batches import Batch
from defectcls.errors import UserError
from defectcls.evaluation.calibration import calibrated_loss
from defectcls.model.checkpoint import load_network
from defectcls.model.classifier import Classifier
from defectcls.model.features import FrozenFeatures
from defectcls.model.head import Head, LinearHead, fit_probe

TWO = {"sound": False, "defective": True}
THREE = {"good": False, "crack": True, "dent": True}
SIDE = 32


def preset(file: str, **changed: Any) -> dict[str, Any]:
    values = OmegaConf.to_container(OmegaConf.load(CONF_DIR / file))
    assert isinstance(values, dict)
    return values | changed


def classifier(
    classes: dict[str, bool] | None = None,
    class_weights: list[float] | None = None,
    members: int = 1,
    **changed: Any,
) -> Classifier:
    """A tiny network without pretrained weights, always the same."""
    parts = {
        "model": preset("model/timm.yaml", name="test_resnet.r160_in1k", pretrained=False, weights=None),
        "loss": preset("loss/cross_entropy.yaml", class_weights="none"),
        "finetune": preset("finetune/probe_then_full.yaml", probe=False),
        "optim": preset("optim/adamw.yaml", lr=1e-2),
        "augment": preset("augment/none.yaml"),
    }
    for name, values in changed.items():
        parts[name] = parts[name] | values
    torch.manual_seed(0)
    shape: dict[str, Any] = {"classes": classes or TWO, "image_size": (SIDE, SIDE), "members": members}
    return Classifier(**parts, **shape, class_weights=class_weights, seed=0)


def batches(count: int = 24, classes: int = 2, size: int = 8) -> DataLoader:
    """Bright images for high classes, noisy enough for mistakes."""
    rng = np.random.default_rng(0)
    target = np.arange(count) % classes
    image = rng.integers(0, 200, (count, 3, SIDE, SIDE)) + 20 * target[:, None, None, None]
    rows = [
        {
            "image": torch.from_numpy(image[start : start + size].astype(np.uint8)),
            "target": torch.from_numpy(target[start : start + size]),
            "index": torch.arange(100 + start, 100 + min(start + size, count)),
        }
        for start in range(0, count, size)
    ]
    return DataLoader(rows, batch_size=None)  # type: ignore[arg-type]


def trainer(tmp_path: Path, **options: Any) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=tmp_path,
        **options,
    )


def stages(**stages: Any) -> dict[str, Any]:
    defaults = {"epochs": 1, "trainable": "all", "lr_scale": 1}
    return {"stages": {name: defaults | changed for name, changed in stages.items()}, "patience": None}


# --- logits -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3])
def test_a_head_takes_over_a_probe_exactly(classes: int) -> None:
    rng = np.random.default_rng(0)
    features, targets = rng.normal(3, 2, (60, 10)).astype(np.float32), np.arange(60) % classes
    solved = fit_probe((features, targets), (features, targets), [0.1], None)
    head = Head(10, classes).eval()
    head.load(solved)
    assert head(torch.from_numpy(features)).detach().numpy() == pytest.approx(solved.logits(features), abs=1e-4)


def test_a_head_standardises_by_hand() -> None:
    head = Head(2, 2).eval()
    eye = np.eye(2)
    head.load(LinearHead(np.array([1.0, 2.0]), np.array([0.5, 4.0]), eye, np.array([10.0, -10.0]), 1.0))
    assert head(torch.tensor([[2.0, 6.0]])).tolist() == [[2 + 10, 1 - 10]]


@pytest.mark.parametrize(("features", "classes"), [(96, 2), (2048, 2), (2048, 12)])
@pytest.mark.parametrize("threads", [1, 2])
def test_logits_of_an_image_do_not_depend_on_its_batch(features: int, classes: int, threads: int) -> None:
    """A matrix product alone has other bits for one row than for many."""
    torch.manual_seed(0)
    head, batch, before = Head(features, classes).eval(), torch.randn(40, features), torch.get_num_threads()
    torch.set_num_threads(threads)
    whole = head(batch)
    for size in (1, 7, 16, 33):
        assert torch.equal(torch.cat([head(some) for some in batch.split(size)]), whole)
    order = torch.randperm(40)
    assert torch.equal(head(batch[order]), whole[order])
    torch.set_num_threads(before)
    torch.testing.assert_close(whole, nn.functional.linear(batch, *head.linear.parameters()))


def test_logits_are_float32_under_bf16_autocast() -> None:
    """bf16 has eight bits: close scores would tie, and a threshold could not part them."""
    model = classifier().eval()
    image = next(iter(batches()))["image"]
    with torch.no_grad():
        plain = model(image)
        with torch.autocast("cpu", torch.bfloat16):
            assert model.backbone(image).dtype == torch.bfloat16  # so that the test tests something
            mixed = model(image)
    assert mixed.dtype == torch.float32
    assert not torch.equal(mixed, mixed.bfloat16().float())
    assert torch.allclose(mixed, plain, atol=0.1)


@pytest.mark.parametrize("views", [2, 4, 8])
def test_test_views_average_the_logits_of_the_ways_an_image_can_lie(views: int) -> None:
    image = next(iter(batches()))["image"]
    turns = [image, image.flip(3), image.flip(2, 3), image.flip(2)]
    turns += [image.transpose(2, 3), image.transpose(2, 3).flip(2), image.transpose(2, 3).flip(3)]
    turns += [image.transpose(2, 3).flip(2, 3)]
    plain, averaged = classifier().eval(), classifier(model={"test_views": views}).eval()
    with torch.no_grad():
        expected = torch.stack([plain(turn) for turn in turns[:views]]).mean(0)
        assert torch.allclose(averaged(image), expected, atol=1e-5)
        assert not torch.allclose(averaged(image), plain(image), atol=1e-5)


@pytest.mark.parametrize("views", [4, 8])
def test_an_image_that_is_not_square_is_not_laid_on_its_side(views: int) -> None:
    given = classifier(model={"test_views": views}).hparams | {"image_size": [32, 64]}
    plain, averaged = Classifier(**classifier().hparams).eval(), Classifier(**given).eval()
    averaged.load_state_dict(plain.state_dict())
    image = torch.randint(0, 256, (3, 3, 32, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    with torch.no_grad():
        expected = torch.stack([plain(image.flip(axes)) for axes in ((), (3,), (2,), (2, 3))]).mean(0)
        assert torch.allclose(averaged(image), expected, atol=1e-5)


def test_training_sees_each_image_once_however_many_test_views() -> None:
    image = next(iter(batches()))["image"]
    plain, averaged = classifier().train(), classifier(model={"test_views": 8}).train()
    assert torch.equal(plain(image), averaged(image))


# --- validation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [TWO, THREE])
def test_validation_numbers_are_scikit_learns(tmp_path: Path, classes: dict[str, bool]) -> None:
    weights = [1.0, 3.0, 2.0][: len(classes)]
    model, loader = classifier(classes, class_weights=weights), batches(60, len(classes))
    with torch.no_grad():  # so that every class is predicted
        model.head.mean.copy_(model.eval().backbone(next(iter(loader))["image"]).mean(0))
        model.head.linear.weight.mul_(50)
    (logged,) = trainer(tmp_path).validate(model, loader, verbose=False)
    index, logits = model.evaluated
    target = np.arange(60) % len(classes)
    probabilities = softmax(logits.astype(np.float64), axis=1)
    predicted = probabilities.argmax(1)
    assert index.tolist() == list(range(100, 160))
    assert len(set(predicted)) == len(classes)
    averaged: dict[str, Any] = {"average": "binary" if len(classes) == 2 else "macro", "zero_division": 0}
    assert logged == {
        "val/loss": pytest.approx(log_loss(target, probabilities), abs=1e-4),
        "val/calibrated_loss": pytest.approx(calibrated_loss(probabilities, target), abs=1e-5),
        "val/auroc": pytest.approx(roc_auc_score(target > 0, 1 - probabilities[:, 0]), abs=1e-4),
        "val/accuracy": pytest.approx(accuracy_score(target, predicted), abs=1e-4),
        "val/precision": pytest.approx(precision_score(target, predicted, **averaged), abs=1e-4),
        "val/recall": pytest.approx(recall_score(target, predicted, **averaged), abs=1e-4),
        "val/f1": pytest.approx(f1_score(target, predicted, **averaged), abs=1e-4),
    }


def test_evaluated_images_come_in_the_order_of_their_rows_each_once(tmp_path: Path) -> None:
    """As when two processes deal an odd number of images: the padding repeats a row."""
    model, (first, second, third) = classifier(), list(batches(24))
    loader = DataLoader([third, first, second, first], batch_size=None)  # type: ignore[arg-type]
    trainer(tmp_path).test(model, loader, verbose=False)
    index, logits = model.evaluated
    assert index.tolist() == list(range(100, 124))
    with torch.no_grad():
        expected = torch.cat([model(batch["image"]) for batch in (first, second, third)]).numpy()
    assert logits == pytest.approx(expected, abs=1e-5)
    assert logits.dtype == np.float32


def test_a_second_evaluation_does_not_remember_the_first(tmp_path: Path) -> None:
    model = classifier()
    (first,) = trainer(tmp_path).validate(model, batches(24), verbose=False)
    trainer(tmp_path).validate(model, batches(16), verbose=False)
    assert len(model.evaluated[0]) == 16
    (again,) = trainer(tmp_path).validate(model, batches(24), verbose=False)
    assert again == first


# --- training ---------------------------------------------------------------------------------------------------------


class Watch(L.Callback):
    """Keeps what holds at every step: stage, learning rate, which part trains."""

    def __init__(self) -> None:
        self.steps: list[tuple] = []
        self.weights: list[torch.Tensor] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        trains = pl_module.backbone.body.conv1[0].weight.requires_grad
        self.steps.append((pl_module.stage.name, trainer.optimizers[0].param_groups[0]["lr"], trains))
        self.weights.append(pl_module.backbone.body.conv1[0].weight.detach().clone())


def test_stages_run_one_after_another_and_the_run_ends_with_the_last(tmp_path: Path) -> None:
    """Three batches an epoch: an epoch of the head, then two of everything; the fourth epoch never comes."""
    settings = stages(head={"trainable": "head"}, full={"epochs": 2, "lr_scale": 0.5})
    model, watch = classifier(finetune=settings, optim={"warmup": 0, "schedule": "constant", "lr": 0.01}), Watch()
    before = model.backbone.body.conv1[0].weight.detach().clone()
    trainer(tmp_path, max_epochs=5, callbacks=[watch]).fit(model, batches(), batches())
    assert [step[0] for step in watch.steps] == ["head"] * 3 + ["full"] * 6
    assert [step[1] for step in watch.steps] == pytest.approx([0.01] * 3 + [0.005] * 6)
    assert [step[2] for step in watch.steps] == [False] * 3 + [True] * 6
    assert all(torch.equal(weight, before) for weight in watch.weights[:3])
    assert not torch.equal(watch.weights[3], before)


@pytest.mark.parametrize("batchnorm", ["frozen", "train"])
def test_a_frozen_backbone_stays_bit_for_bit_through_training_and_validation(tmp_path: Path, batchnorm: str) -> None:
    model = classifier(finetune=stages(head={"epochs": 2, "trainable": "head"}) | {"batchnorm": batchnorm})
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer(tmp_path, max_epochs=2).fit(model, batches(), batches())
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"head.linear.weight", "head.linear.bias"}


@pytest.mark.parametrize(("batchnorm", "moves"), [("frozen", False), ("train", True)])
def test_batchnorm_statistics_move_only_where_asked_to(tmp_path: Path, batchnorm: str, moves: bool) -> None:
    """Also after a validation, which puts every module into evaluation mode."""
    model = classifier(finetune=stages(full={"epochs": 2}) | {"batchnorm": batchnorm})
    trainer(tmp_path, max_epochs=2).fit(model, batches(), batches())
    counts = {int(m.num_batches_tracked) for m in model.modules() if isinstance(m, nn.BatchNorm2d)}
    assert counts == {6 if moves else 0}


def test_the_draws_of_a_step_depend_on_seed_and_step_alone(tmp_path: Path) -> None:
    """So that a resumed run goes on exactly as one that never stopped."""

    def fitted(seed_before: int) -> dict[str, torch.Tensor]:
        model = classifier(finetune=stages(full={}), augment={"brightness": 0.5, "rotation": 20})
        torch.manual_seed(seed_before)
        trainer(tmp_path, max_epochs=1).fit(model, batches(), batches())
        return model.state_dict()

    one, other = fitted(1), fitted(2)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("finetune", [stages(full={"epochs": 2}), stages(head={"epochs": 2, "trainable": "head"})])
def test_after_the_first_a_step_of_an_epoch_reads_no_value_and_seeds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finetune: dict[str, Any]
) -> None:
    """A GPU would have to be waited for, and a graph of it could not be replayed."""

    class Called(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            called[-1].append(str(func))
            return func(*args, **kwargs or {})

    def watched(self: Classifier, batch: Batch, batch_idx: int) -> torch.Tensor:
        called.append([])
        with Called():
            return step(self, batch, batch_idx)

    called: list[list[str]] = []
    seeds: list[int] = []
    step, seed = Classifier.training_step, torch.manual_seed
    model = classifier(finetune=finetune, augment={"brightness": 0.5, "rotation": 20})
    monkeypatch.setattr(Classifier, "training_step", watched)
    monkeypatch.setattr(torch, "manual_seed", lambda number: seeds.append(number) or seed(number))
    trainer(tmp_path, max_epochs=2).fit(model, batches(), batches())
    assert len(seeds) == 2
    reads = ["aten._local_scalar_dense.default" in names for names in called]
    assert reads == [True, False, False] * 2


def test_every_step_draws_anew(tmp_path: Path) -> None:
    """Three batches of one image, each brightened by its own factor."""
    model = classifier(finetune=stages(full={}), augment={"brightness": 0.5})
    means: list[float] = []
    model.augment.register_forward_hook(lambda _module, _given, result: means.append(result[0].mean().item()))
    same = [next(iter(batches()))] * 3
    trainer(tmp_path, max_epochs=1).fit(model, DataLoader(same, batch_size=None), batches())  # type: ignore[arg-type]
    assert len(set(means)) == 3


def test_a_loss_that_is_not_finite_stops_the_run_with_a_way_out(tmp_path: Path) -> None:
    model = classifier(finetune=stages(full={}))
    with torch.no_grad():
        model.head.linear.bias[0] = float("nan")
    with pytest.raises(UserError, match=r"^the loss is nan at step 0: lower optim.lr"):
        trainer(tmp_path, max_epochs=1).fit(model, batches(), batches())


# --- checkpoints ------------------------------------------------------------------------------------------------------


def checkpoint(model: Classifier, path: Path, **more: Any) -> Path:
    content = {
        "state_dict": model.state_dict(),
        "hyper_parameters": dict(model.hparams),
        "defectcls": {"config": {"a": 1}},
    }
    torch.save(content | more, path)
    return path


@pytest.fixture(scope="module")
def trained() -> Iterator[Classifier]:
    model = classifier(THREE)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    yield model.eval()


def test_a_checkpoint_gives_the_same_model_ready_to_predict(trained: Classifier, tmp_path: Path) -> None:
    model, about = load_network(checkpoint(trained, tmp_path / "best.ckpt"))
    image = next(iter(batches()))["image"]
    assert not model.training
    assert model.classes == THREE
    assert about == {"config": {"a": 1}}
    with torch.no_grad():
        assert torch.equal(model(image), trained(image))


class Trap:
    """Unpickled, it touches a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple:
        return Path.touch, (self.file,)


def test_code_in_a_checkpoint_is_not_run(trained: Classifier, tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    path = checkpoint(trained, tmp_path / "trap.ckpt", more=Trap(sprung))
    with pytest.raises(
        UserError, match=r"trap.ckpt is damaged, or no checkpoint of plain values; nothing in it was run"
    ):
        load_network(path)
    assert not sprung.exists()
    torch.load(path, weights_only=False)
    assert sprung.exists()  # the trap does work


@pytest.mark.parametrize("content", [{"state_dict": {}, "hyper_parameters": {}}, {}, [1, 2], torch.zeros(3)])
def test_a_checkpoint_of_another_tool_is_refused(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(
        UserError, match=r"other.ckpt is a checkpoint of another tool: give one that defectcls.train wrote$"
    ):
        load_network(tmp_path / "other.ckpt")


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99])
def test_a_truncated_checkpoint_is_refused(trained: Classifier, tmp_path: Path, share: float) -> None:
    whole = checkpoint(trained, tmp_path / "whole.ckpt").read_bytes()
    (tmp_path / "cut.ckpt").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(UserError, match=r"cut.ckpt is damaged, or no checkpoint of plain values"):
        load_network(tmp_path / "cut.ckpt")


def test_a_text_file_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "notes.ckpt").write_text("these are not the weights you are looking for")
    with pytest.raises(UserError, match=r"notes.ckpt is damaged, or no checkpoint of plain values"):
        load_network(tmp_path / "notes.ckpt")


@pytest.mark.parametrize(
    ("part", "value", "reason"),
    [
        ("hyper_parameters", None, "must be a mapping"),
        ("state_dict", [1], "state_dict to be dict-like"),
        ("defectcls", "x", "TypeError: "),
        ("state_dict", {}, 'Missing key(s) in state_dict: "backbone.body'),
        ("state_dict", {"head.linear.weight": torch.zeros(2, 2)}, 'Missing key(s) in state_dict: "backbone.body'),
        ("classes", {1: False, 2: True}, "classes=1: it has to be a valid string"),
        ("classes", {"sound": False}, "classes={'sound': False}: Dictionary should have at least 2 items"),
        ("classes", {"sound": "no idea", "dent": True}, "classes.sound=no idea: it has to be a valid boolean"),
        ("image_size", "large", "image_size=large: it has to be a side of 32 pixels or more, or [height,width]"),
        ("augment", {}, "augment.horizontal_flip: Field required"),
        ("temperature", 3, "temperature=3: Extra inputs are not permitted"),
    ],
)
def test_a_checkpoint_with_parts_missing_or_wrong(
    trained: Classifier, tmp_path: Path, part: str, value: Any, reason: str
) -> None:
    whole = part in ("hyper_parameters", "state_dict", "defectcls")
    more = {part: value} if whole else {"hyper_parameters": dict(trained.hparams) | {part: value}}
    with pytest.raises(UserError) as error:
        load_network(checkpoint(trained, tmp_path / "best.ckpt", **more))
    assert str(error.value).startswith(f"{tmp_path / 'best.ckpt'} is damaged")
    assert reason in str(error.value)


# --- in plain Lightning, and as a class of one's own ------------------------------------------------------------------


class Doubled(Classifier):
    """Logits as many times as large as its preset says, and a part that learns."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.scale = nn.Parameter(torch.tensor(float(self.options["times"])))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.scale * super().forward(image)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_it_is_an_ordinary_module_of_lightnings(tmp_path: Path, precision: Any) -> None:
    """No Trainer, callback or record of ours: what a notebook does; and its own checkpoint loads plainly."""
    model = classifier(finetune=stages(full={"epochs": 2}))
    plain = L.Trainer(max_epochs=3, accelerator="cpu", precision=precision, logger=False, default_root_dir=tmp_path)
    plain.fit(model, batches(), batches())
    assert plain.global_step == 2 * 3  # its stages end before the Trainer does
    (found,) = plain.validate(model, batches(), verbose=False)
    assert model.backbone.precision == ("32" if precision == "32-true" else "bf16")
    again = Classifier.load_from_checkpoint(next(tmp_path.rglob("*.ckpt")), weights_only=True)
    (loaded,) = plain.validate(again, batches(), verbose=False)
    assert loaded == found
    with torch.no_grad():
        logits = torch.cat([model.inference()(batch["image"]) for batch in batches()])
    assert np.array_equal(logits.numpy(), model.evaluated[1])


def test_without_a_stage_there_is_nothing_to_fit(tmp_path: Path) -> None:
    model = classifier(finetune={"probe": True, "stages": {}})
    with pytest.raises(UserError, match=r"^finetune=probe_then_full has no stage to train: "):
        trainer(tmp_path, max_epochs=1).fit(model, batches(), batches())


def test_a_class_of_ones_own_is_evaluated_by_its_own_forward_and_loaded_where_it_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = {"_target_": f"{__name__}.Doubled", "times": 2}
    plain, image = classifier().eval(), next(iter(batches()))["image"]
    model = Doubled(**plain.hparams | {"model": plain.hparams["model"] | own}).eval()
    model.load_state_dict(plain.state_dict(), strict=False)
    model.stored_features = FrozenFeatures(model.backbone, [bytes([row]) for row in range(200)])
    for evaluate in (model.inference(), lambda image: model.evaluation()({"image": image})):
        assert torch.allclose(evaluate(image), 2 * plain.inference()(image))
    trained = [parameter for group in model.configure_optimizers().param_groups for parameter in group["params"]]
    assert sorted(map(id, trained)) == sorted(map(id, model.parameters()))
    path = checkpoint(model, tmp_path / "own.ckpt", defectcls={"config": {"imports": ["own_parts"]}})
    loaded, _ = load_network(path)
    assert type(loaded) is Doubled
    assert torch.equal(loaded.inference()(image), model.inference()(image))
    monkeypatch.delitem(sys.modules, __name__)
    with pytest.raises(UserError) as error:
        load_network(path)
    assert str(error.value).startswith(f"{path} was trained with imports=[own_parts]: {__name__}.Doubled is of a ")


def test_a_loss_that_a_file_names_is_not_made_to_evaluate(trained: Classifier, tmp_path: Path) -> None:
    loss = dict(trained.hparams["loss"]) | {"_target_": "somewhere.else.Loss"}
    path = checkpoint(trained, tmp_path / "a.ckpt", hyper_parameters=dict(trained.hparams) | {"loss": loss})
    model, _ = load_network(path, for_trainer=True)
    pixels = next(iter(batches()))["image"]
    assert torch.equal(model(pixels), trained(pixels))
    assert torch.equal(load_network(path)[0](pixels), trained(pixels))  # without Lightning
    with pytest.raises(UserError, match=r"^somewhere.else.Loss is of a module that is not imported"):
        model.loss  # noqa: B018
