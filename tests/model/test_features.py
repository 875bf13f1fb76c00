"""Features of a frozen backbone: the same numbers as when it runs every time, in memory and from the store."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from torch import nn

from defectcls.data import reading
from defectcls.data.batches import Batch
from defectcls.data.store import Store
from defectcls.model.augment import Augment
from defectcls.model.backbone import Look
from defectcls.model.classifier import Classifier
from defectcls.model.features import AS_IT_IS, FrozenFeatures, View, copy_of, extract_features, laid
from defectcls.settings import AugmentSettings
from tests.model.test_classifier import batches, classifier, preset, stages, trainer

IMAGES = 24
DIGESTS = [bytes([number]) * 16 for number in range(IMAGES)]


class Mean(nn.Module):
    """Stands in for a backbone: features are the channel means, the map the pixels. Counts the images that it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.bias, self.feature_count, self.seen = nn.Parameter(torch.zeros(3)), 3, 0
        self.mean, self.precision, self.map_shape = torch.zeros(3), "32", (3, 4, 4)

    def inference(self, with_map: bool = False) -> Look:
        return lambda image: self.look(image)[: 1 + with_map]

    def look(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        self.seen += len(image)
        return image.float().mean((2, 3)), image.float()

    def digest(self) -> bytes:
        return str(self.bias.tolist()).encode()


def augment(**changed: Any) -> Augment:
    return Augment(AugmentSettings(**preset("augment/none.yaml", **changed)))


def features_of(backbone: Any, store: Store | None = None, **changed: Any) -> FrozenFeatures:
    return FrozenFeatures(backbone, changed.get("digests", DIGESTS), store, changed.get("read", ""))


def seen_by(features: FrozenFeatures, *given: Any) -> torch.Tensor:
    (found,) = features.look(*given)
    return found


def copy(number: int, seed: int = 0, **changed: Any) -> View:
    return copy_of(number, augment(**changed or {"brightness": 0.5}), seed)


def batch(*rows: int) -> Batch:
    pixels = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (IMAGES, 3, 4, 4)).astype("uint8"))
    index = torch.tensor(rows)
    return {"image": pixels[index], "target": index % 2, "index": index}


# --- in memory --------------------------------------------------------------------------------------------------------


def test_an_image_is_computed_once_in_whatever_batch_it_comes() -> None:
    backbone = Mean()
    features = features_of(backbone)
    for rows in ((0, 5, 3), (5, 1), (3, 0, 1, 5)):
        assert torch.equal(seen_by(features, batch(*rows)), batch(*rows)["image"].float().mean((2, 3)))
    assert backbone.seen == 4


def test_a_copy_is_a_function_of_seed_image_and_number() -> None:
    one, other = features_of(Mean()), features_of(Mean())
    first = seen_by(one, batch(2, 7, 9), copy(1))
    assert torch.equal(seen_by(other, batch(9, 2), copy(1)), first[[2, 0]])
    assert not torch.equal(seen_by(one, batch(2, 7, 9), copy(2)), first)
    assert not torch.equal(seen_by(one, batch(2, 7, 9), copy(1, seed=1)), first)
    assert torch.equal(seen_by(one, batch(2), copy(0)), seen_by(one, batch(2)))
    # The brightness of a copy is one factor an image, at most half up or down.
    factors = first.mean(1) / seen_by(one, batch(2, 7, 9)).mean(1)
    assert ((factors > 0.5) & (factors < 1.5)).all()
    assert len(set(factors.tolist())) == 3


def test_draws_of_copies_are_uniform() -> None:
    pixels = torch.ones(2000, 3, 1, 1)
    factors = copy(1).change(pixels, [number.to_bytes(4) for number in range(2000)]).mean((1, 2, 3))
    assert kstest(factors.numpy(), "uniform", (0.5, 1)).pvalue > 0.01


def test_the_ways_to_lay_an_image_are_the_eight_symmetries_of_the_square_itself_first() -> None:
    image = batch(2, 7)["image"]
    found = [laid(way).change(image, []) for way in range(8)]
    symmetries = [one.rot90(turns, (2, 3)) for turns in range(4) for one in (image, image.flip(3))]
    assert [sum(torch.equal(one, other) for one in found) for other in symmetries] == [1] * 8
    assert all(torch.equal(found[way], one) for way, one in enumerate((image, image.flip(3), image.flip(2, 3))))
    assert len({laid(way).name for way in range(8)}) == 8


def test_what_an_evaluation_computed_can_be_trained_on() -> None:
    features = features_of(Mean())
    with torch.inference_mode():
        seen_by(features, batch(0, 1))
    head = nn.Linear(3, 2)
    head(seen_by(features, batch(1, 0))).sum().backward()
    assert head.weight.grad is not None


def test_features_of_a_part_are_the_images_and_then_their_copies() -> None:
    parts, views = [batch(4, 5, 6), batch(7)], [AS_IT_IS, copy(1), copy(2)]
    features, targets = extract_features(features_of(Mean()), parts, views)  # type: ignore[arg-type]
    again = features_of(Mean())
    expected = torch.cat([seen_by(again, part, view) for view in views for part in parts])
    assert torch.equal(torch.from_numpy(features), expected)
    assert targets.tolist() == [0, 1, 0, 1] * 3


def test_a_view_of_a_view_is_made_of_it() -> None:
    image, names, turned = batch(2, 7)["image"], DIGESTS[:2], copy(1, rotation=40.0)
    found = turned.then(laid(1)).change(image, names)
    assert torch.equal(found, turned.change(image, names).flip(3))
    assert not torch.equal(found, turned.change(image.flip(3), names))  # turned the other way
    assert len({one.name for one in (turned.then(laid(1)), laid(1).then(turned), turned, laid(1))}) == 4
    for view in (AS_IT_IS, laid(1), turned):
        for same in (view.then(AS_IT_IS), AS_IT_IS.then(view)):
            assert same.name == view.name
            assert torch.equal(same.change(image, names), view.change(image, names))


def test_a_map_is_kept_beside_the_features(tmp_path: Path) -> None:
    backbone = Mean()
    for seen in (3, 3):  # the next run computes nothing
        stored = FrozenFeatures(backbone, DIGESTS, Store(tmp_path), maps=True)
        features, maps = stored.look(batch(4, 0, 9))
        assert (features.dtype, maps.dtype, maps.shape) == (torch.float32, torch.float32, (3, 3, 4, 4))
        assert torch.equal(features, batch(4, 0, 9)["image"].float().mean((2, 3)))
        assert torch.equal(maps, batch(4, 0, 9)["image"].float())
        assert torch.equal(stored.look(batch(9))[1][0], maps[2])
        assert backbone.seen == seen
    assert len(FrozenFeatures(backbone, DIGESTS, Store(tmp_path)).look(batch(4))) == 1  # of a run without a memory


def test_whoever_needs_no_map_takes_features_that_were_kept_beside_one(tmp_path: Path) -> None:
    first, other, third = Mean(), Mean(), Mean()
    features, _ = FrozenFeatures(first, DIGESTS, Store(tmp_path), maps=True).look(batch(4, 0))
    assert torch.equal(
        seen_by(features_of(other, Store(tmp_path)), batch(0, 4, 9)), batch(0, 4, 9)["image"].float().mean((2, 3))
    )
    assert other.seen == 1
    again, maps = FrozenFeatures(third, DIGESTS, Store(tmp_path), maps=True).look(batch(4, 0, 9))
    assert torch.equal(again[:2], features) and torch.equal(maps, batch(4, 0, 9)["image"].float())
    assert third.seen == 1  # of the ninth there are features, and no map


# --- in the store -----------------------------------------------------------------------------------------------------


def test_the_next_run_computes_nothing(tmp_path: Path) -> None:
    backbone = Mean()
    first = features_of(backbone, Store(tmp_path))
    made = [seen_by(first, batch(0, 1, 2), view) for view in (AS_IT_IS, copy(1))]
    again = features_of(backbone, Store(tmp_path))
    for view, expected in zip((AS_IT_IS, copy(1)), made, strict=True):
        assert torch.equal(seen_by(again, batch(2, 0, 1), view), expected[[2, 0, 1]])
    assert backbone.seen == 6
    assert torch.equal(seen_by(again, batch(3, 0)), batch(3, 0)["image"].float().mean((2, 3)))  # one known, one not
    assert backbone.seen == 7


def test_a_damaged_entry_is_computed_anew(tmp_path: Path) -> None:
    backbone = Mean()
    seen_by(features_of(backbone, Store(tmp_path)), batch(0, 1, 2))
    (file,) = tmp_path.glob("*/*.rows")
    content = file.read_bytes()
    file.write_bytes(content[:16] + bytes(4) + content[20:])
    for seen in (4, 4):  # and stored anew
        found = seen_by(features_of(backbone, Store(tmp_path)), batch(2, 1, 0))
        assert torch.equal(found, batch(2, 1, 0)["image"].float().mean((2, 3)))
        assert backbone.seen == seen


def changed_weights(backbone: Mean) -> dict[str, Any]:
    nn.init.ones_(backbone.bias)
    return {}


@pytest.mark.parametrize(
    ("view", "change"),
    [
        (AS_IT_IS, changed_weights),
        (AS_IT_IS, lambda backbone: setattr(backbone, "precision", "bf16") or {}),
        (AS_IT_IS, lambda _: {"digests": [bytes(15) + bytes([number + 1]) for number in range(IMAGES)]}),
        (AS_IT_IS, lambda _: {"read": "in another way"}),
        (copy(1, seed=1), lambda _: {}),
        (copy(1, brightness=0.4), lambda _: {}),
        (copy(2), lambda _: {}),
    ],
)
def test_what_was_computed_otherwise_is_not_taken(
    tmp_path: Path, view: View, change: Callable[[Mean], dict[str, Any]]
) -> None:
    backbone = Mean()
    for known in (AS_IT_IS, copy(1)):
        seen_by(features_of(backbone, Store(tmp_path)), batch(0, 1), known)
    options = change(backbone)
    seen_by(features_of(backbone, Store(tmp_path), **options), batch(0, 1), view)
    assert backbone.seen == 6


def test_features_of_photos_that_were_decoded_otherwise_are_not_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = Mean()
    seen_by(features_of(backbone, Store(tmp_path)), batch(0, 1))
    monkeypatch.setattr(reading, "VERSION", reading.VERSION + 1)
    seen_by(features_of(backbone, Store(tmp_path)), batch(0, 1))
    assert backbone.seen == 4


# --- in training ------------------------------------------------------------------------------------------------------


def test_a_head_on_stored_features_is_a_linear_model_trained_by_hand(tmp_path: Path) -> None:
    """Against torch alone: features of the frozen network and of a copy in turns, AdamW with the same schedule."""
    changed: dict[str, Any] = {"augment": {"brightness": 0.4, "rotation": 20.0}, "optim": {"lr": 0.05, "warmup": 0.0}}
    changed["optim"] |= {"schedule": "constant", "weight_decay": 0.0, "clip": None}
    finetune = stages(only={"epochs": 6, "trainable": "head"}) | {"probe_views": 1}
    model, fresh = classifier(finetune=finetune, **changed), classifier(**changed).eval()
    digests, looked = [bytes([number]) for number in range(200)], []
    model.stored_features = FrozenFeatures(model.backbone, digests)
    look = model.backbone.inference()
    model.backbone.inference = lambda with_map: lambda image: looked.append(len(image)) or look(image)  # type: ignore[method-assign, misc, assignment, return-value]
    trainer(tmp_path, max_epochs=6).fit(model, batches(), batches())
    assert sum(looked) == 24 * 2  # each image and its copy once, in six epochs and six validations

    optimizer = torch.optim.AdamW(fresh.head.parameters(), lr=0.05, weight_decay=0.0)
    for epoch in range(6):
        for given in batches():
            names = [digests[row] for row in given["index"].tolist()]
            with torch.no_grad():
                features = fresh.backbone(copy_of(epoch % 2, fresh.augment, 0).change(given["image"], names))
            optimizer.zero_grad()
            nn.functional.cross_entropy(fresh.head(features), given["target"]).backward()
            optimizer.step()
    for name, value in fresh.head.state_dict().items():
        assert torch.allclose(model.head.state_dict()[name], value, rtol=1e-2, atol=1e-3), name


def test_features_stand_in_only_for_the_weights_that_they_are_of() -> None:
    model = Classifier(**classifier().hparams)
    model.stored_features = FrozenFeatures(model.backbone, [bytes([number]) for number in range(200)])
    seen: list[Any] = []
    look = model.stored_features.look
    model.stored_features.look = lambda *given: seen.append(given) or look(*given)  # type: ignore[method-assign]
    given = next(iter(batches()))
    with torch.no_grad():
        assert torch.allclose(model.evaluation()(given), model.eval()(given["image"]), atol=1e-4)
        assert len(seen) == 1
        next(model.backbone.parameters()).add_(1e-3)
        assert torch.allclose(model.evaluation()(given), model(given["image"]), atol=1e-4)
    assert len(seen) == 1
