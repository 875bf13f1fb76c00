"""Frozen layers run once: the same numbers as when they run every time, in memory, from the store, and cut in two."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import nn

from defectcls.data.batches import Batch
from defectcls.data.store import Store
from defectcls.model.augment import Augment
from defectcls.model.classifier import Classifier
from defectcls.model.frozen import FrozenLayers, extract_features, identity
from tests.model.test_classifier import batches, classifier, preset, stages, trainer

IMAGES = 24
DIGESTS = [bytes([number]) * 16 for number in range(IMAGES)]


class Mean(nn.Module):
    """Stands in for a backbone: features are the channel means. Counts the images that it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.options, self.features, self.seen = nn.Linear(3, 3), {}, 3, 0

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.seen += len(image)
        return image.float().mean((2, 3))


def augment(**changed: Any) -> Augment:
    values = preset("augment/none.yaml", **changed)
    return Augment(**{name: value for name, value in values.items() if name not in ("mixup", "cutmix")})


def layers(backbone: Any, store: Store | None = None, **changed: Any) -> FrozenLayers:
    options: dict[str, Any] = {"digests": DIGESTS, "seed": 0, "augment": augment(brightness=0.5)} | changed
    return FrozenLayers(backbone, backbone, identity, store=store, **options)


def batch(*rows: int) -> Batch:
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (IMAGES, 3, 4, 4)).astype("uint8"))
    index = torch.tensor(rows)
    return {"image": pixels[index], "target": index % 2, "index": index}


# --- in memory --------------------------------------------------------------------------------------------------------


def test_an_image_is_computed_once_in_whatever_batch_it_comes() -> None:
    backbone = Mean()
    features = layers(backbone)
    for rows in ((0, 5, 3), (5, 1), (3, 0, 1, 5)):
        assert torch.equal(features.features(batch(*rows)), batch(*rows)["image"].float().mean((2, 3)))
    assert backbone.seen == 4


def test_a_copy_is_a_function_of_seed_image_and_number() -> None:
    one, other = layers(Mean()), layers(Mean())
    first = one.features(batch(2, 7, 9), 1)
    assert torch.equal(other.features(batch(9, 2), 1), first[[2, 0]])
    assert not torch.equal(one.features(batch(2, 7, 9), 2), first)
    assert not torch.equal(layers(Mean(), seed=1).features(batch(2, 7, 9), 1), first)
    # The brightness of a copy is one factor an image, at most half up or down.
    factors = one.images(batch(2, 7, 9), 1).mean((1, 2, 3)) / batch(2, 7, 9)["image"].float().mean((1, 2, 3))
    assert ((factors > 0.5) & (factors < 1.5)).all()
    assert len(set(factors.tolist())) == 3


def test_turned_views_are_the_ways_that_an_image_can_lie(tmp_path: Path) -> None:
    class Corner(Mean):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return image[:, :, 0, 0].float()

    found = layers(Corner(), Store(tmp_path, "f.sqlite", None))
    image = batch(2, 7)["image"].float()
    corners = [image[:, :, 0, 0], image[:, :, 0, -1], image[:, :, -1, -1], image[:, :, -1, 0]]
    for _ in range(2):  # computed, and read from the store
        assert all(torch.equal(found.features(batch(2, 7), -way), corner) for way, corner in enumerate(corners))
        found = layers(Corner(), Store(tmp_path, "f.sqlite", None), seed=1)  # which turns no image another way


def test_what_an_evaluation_computed_can_be_trained_on() -> None:
    features = layers(Mean())
    with torch.inference_mode():
        features.features(batch(0, 1))
    head = nn.Linear(3, 2)
    head(features.features(batch(1, 0))).sum().backward()
    assert head.weight.grad is not None


def test_features_of_a_part_are_the_images_and_then_their_copies() -> None:
    parts = [batch(4, 5, 6), batch(7)]
    features, targets = extract_features(layers(Mean()), parts, torch.device("cpu"), nullcontext(), range(3))  # type: ignore[arg-type]
    again = layers(Mean())
    expected = torch.cat([again.features(part, view) for view in (0, 1, 2) for part in parts])
    assert torch.equal(torch.from_numpy(features), expected)
    assert targets.tolist() == [0, 1, 0, 1] * 3


# --- in the store -----------------------------------------------------------------------------------------------------


def test_the_next_run_computes_nothing(tmp_path: Path) -> None:
    backbone = Mean()
    first = layers(backbone, Store(tmp_path, "f.sqlite", None))
    made = [first.features(batch(0, 1, 2), view) for view in (0, 1)]
    again = layers(backbone, Store(tmp_path, "f.sqlite", None))
    assert [torch.equal(again.features(batch(2, 0, 1), view), made[view][[2, 0, 1]]) for view in (0, 1)] == [True] * 2
    assert backbone.seen == 6
    assert torch.equal(again.features(batch(3, 0)), batch(3, 0)["image"].float().mean((2, 3)))  # one known, one not
    assert backbone.seen == 7


@pytest.mark.parametrize("entry", [b"", bytes(8), bytes(16), np.array([1, np.nan, 2], "f4").tobytes(), b"\xff" * 12])
def test_a_damaged_entry_is_computed_anew(tmp_path: Path, entry: bytes) -> None:
    backbone, store = Mean(), Store(tmp_path, "f.sqlite", None)
    layers(backbone, store).features(batch(0, 1, 2))
    (key,) = layers(backbone, store)._keys(batch(1), 0)
    store.put([(key, entry)])
    for seen in (4, 4):  # and stored anew
        found = layers(backbone, store).features(batch(2, 1, 0))
        assert torch.equal(found, batch(2, 1, 0)["image"].float().mean((2, 3)))
        assert backbone.seen == seen


def changed_weights(backbone: Mean) -> dict[str, Any]:
    nn.init.zeros_(backbone.body.bias)
    return {}


@pytest.mark.parametrize(
    ("view", "change"),
    [
        (0, changed_weights),
        (0, lambda _: {"digests": [bytes(15) + bytes([number + 1]) for number in range(IMAGES)]}),
        (0, lambda _: {"computed": "at another size"}),
        (1, lambda _: {"seed": 1}),
        (1, lambda _: {"copied": "by other settings"}),
    ],
)
def test_what_was_computed_otherwise_is_not_taken(
    tmp_path: Path, view: int, change: Callable[[Mean], dict[str, Any]]
) -> None:
    backbone = Mean()
    layers(backbone, Store(tmp_path, "f.sqlite", None)).features(batch(0, 1), view)
    options = change(backbone)
    layers(backbone, Store(tmp_path, "f.sqlite", None), **options).features(batch(0, 1), view)
    assert backbone.seen == 4


def test_the_images_as_they_are_do_not_depend_on_the_augmentation(tmp_path: Path) -> None:
    backbone = Mean()
    layers(backbone, Store(tmp_path, "f.sqlite", None), copied="a").features(batch(0, 1))
    layers(backbone, Store(tmp_path, "f.sqlite", None), copied="b", seed=5).features(batch(0, 1))
    assert backbone.seen == 2


def test_noise_is_drawn_anew_in_every_run(tmp_path: Path) -> None:
    backbone = Mean()
    for _ in range(2):
        layers(backbone, Store(tmp_path, "f.sqlite", None), augment=augment(noise=5.0)).features(batch(0, 1), 1)
    assert backbone.seen == 4


# --- in training ------------------------------------------------------------------------------------------------------


def fitted(tmp_path: Path, remember: bool, monkeypatch: pytest.MonkeyPatch, **stage: Any) -> tuple[Classifier, list]:
    """A classifier after six epochs of one stage, and its losses; `remember` False is the slow way, same copies."""
    model = classifier(
        finetune=stages(only={"epochs": 6, **stage}), augment={"brightness": 0.4, "rotation": 20.0}, optim={"lr": 0.05}
    )
    digests = [bytes([number]) for number in range(200)]
    model.features = FrozenLayers(model.backbone, model.backbone, identity, model.augment, digests, 0)
    if not remember:
        monkeypatch.setattr(FrozenLayers, "outputs", lambda self, batch, view: self.layers(self.images(batch, view)))
    losses: list[float] = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *_: Any) -> None:
            losses.append(float(outputs["loss"]))

        def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            losses.append(float(trainer.callback_metrics["val/loss"]))

    trainer(tmp_path, max_epochs=6, callbacks=[Watch()]).fit(model, batches(), batches())
    return model, losses


@pytest.mark.parametrize("trainable", ["head", 0.4])
def test_a_stage_on_stored_outputs_is_the_stage_that_runs_every_layer(
    tmp_path: Path, trainable: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss by loss and weight by weight, also of an independent loop; the frozen layers saw each copy once."""
    calls = {True: 0, False: 0}
    results = {}
    for remember in (True, False):
        images = FrozenLayers.images

        def counted(
            self: FrozenLayers, batch: Batch, view: int, remember: bool = remember, images: Any = images
        ) -> Any:
            calls[remember] += len(batch["index"])
            return images(self, batch, view)

        with monkeypatch.context() as patch:
            patch.setattr(FrozenLayers, "images", counted)
            results[remember] = fitted(tmp_path, remember, patch, trainable=trainable, views=2)
    (fast, fast_losses), (slow, slow_losses) = results[True], results[False]
    assert calls == {True: 24 * 3, False: 24 * (6 + 6)}  # three copies, against six epochs and six validations
    assert fast_losses == pytest.approx(slow_losses, rel=1e-4)
    assert fast_losses[-1] < fast_losses[3]  # it learns
    for name, value in slow.state_dict().items():
        assert torch.allclose(fast.state_dict()[name], value, rtol=1e-3, atol=1e-5), name
    assert fast.state_dict().keys() == classifier().state_dict().keys()  # the checkpoint is that of the slow way


def test_a_head_on_stored_features_is_a_linear_model_trained_by_hand(tmp_path: Path, monkeypatch: Any) -> None:
    """Against torch alone: features of the frozen network, AdamW with the same schedule, no Lightning."""
    model, losses = fitted(tmp_path, True, monkeypatch, trainable="head", views=0)
    fresh = classifier(optim={"lr": 0.05}).eval()
    with torch.no_grad():
        features = [(fresh.backbone(batch["image"]), batch["target"]) for batch in batches()]
        first = [float(nn.functional.cross_entropy(fresh.head(x), y)) for x, y in features]
        last = [float(nn.functional.cross_entropy(model.head(x), y)) for x, y in features]
    assert losses[0] == pytest.approx(first[0], rel=1e-5)  # nothing but the images themselves was seen
    assert losses[-1] == pytest.approx(sum(last) / 3, rel=1e-5)  # the last validation, of weights after the last step


def test_features_stand_in_only_for_the_weights_that_they_are_of(tmp_path: Path) -> None:
    model = Classifier(**classifier().hparams)
    digests = [bytes([number]) for number in range(200)]
    model.features = FrozenLayers(model.backbone, model.backbone, identity, model.augment, digests, 0)
    model.use_features()
    assert model.frozen is model.features
    with torch.no_grad():
        next(model.backbone.parameters()).add_(1e-3)
    model.use_features()
    assert model.frozen is None
