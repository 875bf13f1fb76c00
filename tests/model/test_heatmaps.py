"""Heat maps: against gradients taken by hand, class activation maps and a network that sees one thing only."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from defectcls.errors import UserError
from defectcls.model.classifier import Classifier
from defectcls.model.heatmaps import _contributions, heat_maps
from tests.model.test_classifier import THREE, TWO, classifier


def photos(count: int = 3, side: int = 64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, side, side), generator=generator, dtype=torch.uint8)


def of_model(name: str = "test_resnet.r160_in1k", classes: dict[str, bool] | None = None, **model: Any) -> Classifier:
    """A network without pretrained weights for photos of 64 x 64, in whose features most speaks for a defect."""
    members = {"members": 3} if "head" in model else {}
    small = classifier(classes, model={"name": name, **model}, **members)
    built = Classifier(**{**small.hparams, "image_size": (64, 64)}).eval()
    mostly_defective = torch.linspace(-1, 2, built.backbone.feature_count)
    built.head.linear.weight.data[[*built.classes.values()] * built.members] += mostly_defective
    return built


def scaled(maps: torch.Tensor, side: int) -> np.ndarray:
    """What becomes of maps (n, height, width): positive, as fine as the image, the strongest point 1."""
    fine = F.interpolate(maps.detach().clamp_min(0)[:, None], (side, side), mode="bilinear")[:, 0].numpy()
    return fine / np.maximum(fine.max((1, 2), keepdims=True), 1e-30)


def evidence(model: Classifier, features: torch.Tensor) -> torch.Tensor:
    """Log-odds (n,) of being defective."""
    odds = (model.head(features).double()).exp()
    defective = torch.tensor(list(model.classes.values()))
    return (odds[:, defective].sum(1) / odds[:, ~defective].sum(1)).log()


class Linear(nn.Module):
    """A backbone of one stage: three colours in cells of 8 x 8 pixels, averaged over the image."""

    feature_info = ({"module": "cells"}, {"module": "pool"})

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.AvgPool2d(8)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.cells(image).mean((2, 3))


def linear(weight: list[list[float]], classes: dict[str, bool] = TWO) -> Classifier:
    model = classifier(classes).eval()
    model.backbone.body = Linear()
    model.head.mean, model.head.std = torch.zeros(3), torch.ones(3)
    model.head.linear = nn.Linear(3, len(classes))
    model.head.linear.weight.data = torch.tensor(weight)
    return model


def test_behind_an_average_and_a_linear_head_they_are_class_activation_maps() -> None:
    """Zhou et al. 2016: the weights of the class, times the channels at each place."""
    model = linear([[0.0, 0.5, 1.0], [1.0, -0.5, 0.0]])
    image = photos()
    cells = F.avg_pool2d((image - model.backbone.mean) / model.backbone.std, 8)
    expected = scaled(torch.einsum("c,nchw->nhw", torch.tensor([1.0, -1.0, -1.0]), cells), 64)
    heat = heat_maps(model, image)
    assert heat.dtype == np.float32
    assert heat == pytest.approx(expected, abs=1e-5)
    assert heat.max((1, 2)) == pytest.approx(1)


def test_what_levels_contribute_adds_up_to_the_evidence() -> None:
    """Averages and maxima are linear in the cells: nothing is lost between the stages and the logits."""
    model = of_model(levels=[0.5, 1], last=False)
    image = photos()
    with torch.no_grad():
        features = model.backbone(image)
        expected = evidence(model, features) - evidence(model, torch.zeros_like(features))
    found = _contributions(model, image)
    assert found.shape == (3, 8, 8)  # the finest: strides of 8 and 32
    assert found.sum((1, 2)).numpy() == pytest.approx(expected.numpy(), rel=1e-4)


def test_the_hottest_pixel_lies_in_the_only_thing_that_speaks_for_a_defect() -> None:
    image = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    image[0, 0, 40:48, 8:16] = 255
    image[1, 0, 16:24, 48:56] = 255
    image[:, 2, 0:16, 0:16] = 255  # blue speaks against one
    heat = heat_maps(linear([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]), image)
    first, second = (np.unravel_index(one.argmax(), one.shape) for one in heat)
    assert 40 <= first[0] < 48 and 8 <= first[1] < 16
    assert 16 <= second[0] < 24 and 48 <= second[1] < 56
    assert not heat[:, :8, :8].any()


@pytest.mark.parametrize("name", ["test_resnet.r160_in1k", "test_vit.r160_in1k", "test_convnext.r160_in1k"])
def test_maps_of_photos_that_are_not_square_have_their_shape(name: str) -> None:
    image = torch.zeros(1, 3, 64, 128, dtype=torch.uint8)
    image[0, 0, 40:48, 104:112] = 255
    model = linear([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    (heat,) = heat_maps(model, image)
    assert heat.shape == (64, 128)
    row, column = np.unravel_index(heat.argmax(), heat.shape)
    assert 40 <= row < 48 and 104 <= column < 112
    of_backbone = Classifier(**{**of_model(name).hparams, "image_size": (64, 128)}).eval()
    assert heat_maps(of_backbone, image).shape == (1, 64, 128)


def test_a_photo_without_any_evidence_stays_cold() -> None:
    heat = heat_maps(linear([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]), torch.full((1, 3, 64, 64), 255, dtype=torch.uint8))
    assert heat.tolist() == np.zeros((1, 64, 64)).tolist()
    assert heat_maps(linear([[1.0, 0, 0], [0.0, 0, 0]]), photos(0)).shape == (0, 64, 64)


@pytest.mark.parametrize("pool", [None, "catavgmax"])
def test_a_cnn_is_explained_by_its_gradients_times_its_third_stage(pool: str | None) -> None:
    model = of_model(pool=pool)
    body, image = model.backbone.body, photos()
    maps = (image - model.backbone.mean) / model.backbone.std
    for part in ("conv1", "bn1", "act1", "maxpool", "layer1", "layer2", "layer3"):
        maps = getattr(body, part)(maps)
    maps = maps.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(evidence(model, body.global_pool(body.layer4(maps))).sum(), maps)
    expected = scaled((gradient * maps).sum(1), 64)
    assert expected.any()
    assert heat_maps(model, image) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("classes", [TWO, THREE])
def test_a_transformer_is_explained_by_the_normalised_tokens_of_its_last_block(classes: dict[str, bool]) -> None:
    """Before the normalisation, the products of a token add up to zero."""
    model, image = of_model("test_vit.r160_in1k", classes), photos()
    body = model.backbone.body
    tokens = body._pos_embed(body.patch_embed((image - model.backbone.mean) / model.backbone.std))
    tokens = body.blocks[:-1](body.norm_pre(tokens)).detach()
    block = body.blocks[-1]
    normed = block.norm1(tokens).detach().requires_grad_()
    attended = tokens + block.ls1(block.attn(normed))
    features = body.forward_head(body.norm(attended + block.ls2(block.mlp(block.norm2(attended)))))
    (gradient,) = torch.autograd.grad(evidence(model, features).sum(), normed)
    patches = (gradient * normed).sum(2)[:, 1:]  # the first is the class token
    assert heat_maps(model, image) == pytest.approx(scaled(patches.view(3, 4, 4), 64), abs=1e-3)


@pytest.mark.parametrize("name", ["test_convnext.r160_in1k", "test_mambaout"])
def test_behind_layer_norms_the_last_map_is_explained(name: str) -> None:
    """test_mambaout has its channels last, as Swin does."""
    model, image = of_model(name), photos()
    body = model.backbone.body
    maps = body.forward_features((image - model.backbone.mean) / model.backbone.std).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(evidence(model, body.forward_head(maps)).sum(), maps)
    expected = (gradient * maps).sum(3 if "mambaout" in name else 1)
    assert expected.shape == (3, 2, 2)
    assert heat_maps(model, image) == pytest.approx(scaled(expected, 64), abs=1e-3)


def test_images_come_out_alike_in_batches_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    model, image = of_model(), photos(5)
    whole = heat_maps(model, image)
    monkeypatch.setattr("defectcls.model.heatmaps.BATCH_SIZE", 2)
    assert heat_maps(model, image) == pytest.approx(whole, abs=1e-5)


def test_where_all_classes_are_defective_the_predicted_one_is_explained() -> None:
    model = linear([[1.0, 0, 0], [0, 1.0, 0]], {"crack": True, "dent": True})
    image = torch.zeros(2, 3, 64, 64, dtype=torch.uint8)
    image[0, 0, 8:16, 8:16], image[0, 1, 40:48, 40:48] = 255, 128
    image[1, 0, 8:16, 8:16], image[1, 1, 40:48, 40:48] = 128, 255
    model.backbone.mean, model.backbone.std = torch.zeros(1, 3, 1, 1), torch.ones(1, 3, 1, 1)
    heat = heat_maps(model, image)
    assert heat[0, 12, 12] > 0.9 and not heat[0, 40:].any()
    assert heat[1, 44, 44] > 0.9 and not heat[1, :16].any()


def test_the_weights_are_left_as_they_were() -> None:
    model = of_model().train()
    model.backbone.body.layer1.requires_grad_(False)
    model.head.linear.bias.grad = torch.ones(2)

    def state() -> tuple[Any, ...]:
        hooks = [len(module._forward_hooks) for module in model.modules()]
        trained = [(p.requires_grad, None if p.grad is None else p.grad.tolist()) for p in model.parameters()]
        return hooks, trained, {name: value.tolist() for name, value in model.state_dict().items()}

    before = state()
    heat_maps(model, photos())
    assert state() == before
    assert torch.is_grad_enabled()


def test_a_joined_head_is_explained_by_the_distance_of_its_patches() -> None:
    model = of_model(head="joined")
    assert model.joined is not None
    known, image = photos(12), photos()
    image[1, :, 36:44, 4:12] = 255
    with torch.no_grad():
        maps, new = model.backbone.inference(with_map=True)(known)[1], model.backbone.inference(with_map=True)(image)[1]
    logits, folded = np.random.default_rng(0).normal(size=(12, 2)), torch.arange(12) % 3
    model.joined.learn(lambda: [maps], logits, np.arange(12) == 11, folded.numpy(), 0)
    patches, cells = maps.float().flatten(2).transpose(1, 2), new.float().permute(0, 2, 3, 1).flatten(0, 2)
    banks = [patches[(folded != fold) & (torch.arange(12) < 11)].flatten(0, 1) for fold in range(3)]
    distances = torch.stack([torch.cdist(cells, bank).amin(1).view(3, 4, 4) for bank in banks])
    state = {name: value.clone() for name, value in model.state_dict().items()}
    heat = heat_maps(model, image)
    assert heat[1:] == pytest.approx(scaled(distances.mean(0) - model.joined.usual, 64)[1:], abs=2e-3)
    own = heat_maps(model, image, torch.tensor([0, 2, -1]))
    assert own[1] == pytest.approx(scaled(distances[2] - model.joined.usual, 64)[1], abs=2e-3)
    assert own[2] == pytest.approx(heat[2])
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    row, column = np.unravel_index(heat[1].argmax(), heat[1].shape)
    assert 32 <= row < 48 and 0 <= column < 16


def test_of_members_the_mean_is_explained_and_of_a_photo_of_a_fold_the_member_that_is_new_to_it() -> None:
    model, alone, image = of_model(head="linear"), of_model(), photos()
    torch.manual_seed(0)
    model.head.linear.weight.data += torch.randn_like(model.head.linear.weight)
    alone.backbone.load_state_dict(model.backbone.state_dict())
    weights = model.head.linear.weight.data.unflatten(0, (3, 2))
    found, of_mean = heat_maps(model, image, torch.tensor([0, 2, -1])), heat_maps(model, image)
    for row, weight in enumerate((weights[0], weights[2], weights.mean(0))):
        alone.head.linear.weight.data = weight
        assert found[row] == pytest.approx(heat_maps(alone, image)[row], abs=1e-4)
    assert of_mean == pytest.approx(heat_maps(alone, image), abs=1e-4)
    assert found.any((1, 2)).all() and abs(found[:2] - of_mean[:2]).max() > 0.1


def test_nothing_before_the_explained_stage_holds_on_to_memory() -> None:
    model, kept = of_model(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda saved: kept.append(saved.shape) or saved, lambda saved: saved):
        heat_maps(model, photos())
    assert kept
    assert all(shape[-1] <= 4 for shape in kept if len(shape) == 4)  # the stages before have 8 x 8 and more


@pytest.mark.parametrize("name", ["coat_lite_tiny", "hrnet_w18_small", "mvitv2_tiny"])
def test_a_backbone_without_maps_says_so(name: str) -> None:
    model = of_model(name)
    with pytest.raises(UserError, match="this backbone has no map of the image"):
        heat_maps(model, photos())
    assert torch.is_grad_enabled()
