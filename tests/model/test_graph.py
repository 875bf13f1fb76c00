"""Networks cut above their frozen layers, and without BatchNorm: the same function, the same gradients."""

import pytest
import timm
import torch
from torch import nn

from defectcls.model.backbone import Backbone
from defectcls.model.graph import Watched, folded
from defectcls.model.stages import Stage, switch_training
from defectcls.settings import StageSettings

STAGE = {"epochs": 1, "steps": None, "lr_scale": 1, "views": 0}
NETWORKS = ["resnet18", "mobilenetv2_100", "test_vit.r160_in1k", "test_convnext.r160_in1k", "test_efficientnet"]


@pytest.mark.parametrize("batchnorm", ["frozen", "train"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_backbone_is_cut_above_its_frozen_layers(name: str, batchnorm: str) -> None:
    side = 160 if "vit" in name else 64
    backbone, head = Backbone(name, None, side), nn.Linear(1, 1)
    stage = Stage("deepest", 0, 1, StageSettings(trainable=0.4, **STAGE))  # type: ignore[arg-type]
    switch_training(backbone, head, stage, batchnorm)
    cut = backbone.split()
    assert cut is not None
    below, above = cut
    image = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8)
    activation = below(image)
    assert not activation.requires_grad
    assert activation.shape != image.shape
    trained = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    state = {name: value.clone() for name, value in backbone.state_dict().items()}
    whole = backbone(image)
    expected = torch.autograd.grad(whole.square().sum(), trained)
    backbone.load_state_dict(state)  # BatchNorm that trains has moved its statistics
    found = above(activation)
    assert torch.equal(found, whole)
    for one, other in zip(torch.autograd.grad(found.square().sum(), trained), expected, strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-7)


def test_a_backbone_that_trains_from_the_pixels_on_is_not_cut() -> None:
    assert Backbone("test_resnet.r160_in1k", None, 32).split() is None


# --- without BatchNorm ------------------------------------------------------------------------------------------------


def lived(name: str) -> nn.Module:
    """A network whose BatchNorms have statistics and weights of their own, as after training."""
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values, low, high in ((module.running_mean, -1, 1), (module.running_var, 0.5, 2)):
                assert values is not None
                values.uniform_(low, high)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return network.eval()


@pytest.mark.parametrize(
    ("name", "left"),  # BatchNorms that follow no convolution
    [("resnet18", 0), ("mobilenetv2_100", 0), ("densenet121", 62), ("test_vit.r160_in1k", 0), ("resnetv2_50x1_bit", 0)],
)
def test_without_batchnorm_a_network_is_the_same_function(name: str, left: int) -> None:
    network, image = lived(name), torch.randn(2, 3, 160, 160)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    quick = folded(network)
    with torch.no_grad():
        expected = network(image)
        assert torch.allclose(quick(image), expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    assert sum(isinstance(module, nn.BatchNorm2d) for module in quick.modules()) == left
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


class Shared(nn.Module):
    """One convolution whose output is used twice: its BatchNorm cannot be folded."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.norm.running_mean.fill_(2.0)  # type: ignore[union-attr]

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        values = self.conv(image)
        return values + self.norm(values)


class Moody(nn.Module):
    """What it does depends on the image: it cannot be followed, and is evaluated as it is."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image if image.mean() > 0 else -image


@pytest.mark.parametrize("network", [Shared().eval(), Moody()])
def test_what_cannot_be_folded_stays_right(network: nn.Module) -> None:
    image = torch.randn(2, 3, 4, 4)
    with torch.no_grad():
        assert torch.equal(folded(network)(image), network(image))


# --- with a part watched ----------------------------------------------------------------------------------------------


class Staged(nn.Module):
    """Two stages; the first ends in a convolution whose BatchNorm is in the second, and may be passed by."""

    def __init__(self, passed_by: bool = False, moody: bool = False) -> None:
        super().__init__()
        self.first, self.second = nn.Sequential(nn.ReLU(), nn.Conv2d(3, 3, 1)), nn.BatchNorm2d(3)
        self.second.running_mean.fill_(2.0)  # type: ignore[union-attr]
        self.passed_by, self.moody = passed_by, moody

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if self.moody and image.mean() > 100:
            return image
        return self.second(self.first[1](image) if self.passed_by else self.first(image))


@pytest.mark.parametrize("moody", [False, True])
def test_what_a_part_makes_is_given_out_beside_the_whole(moody: bool) -> None:
    network, image = Staged(moody=moody).eval(), torch.randn(2, 3, 4, 4)
    with torch.no_grad():
        expected = network(image), network.first(image)
        for watching in (Watched(network, network.first), folded(network, "first")):
            for _ in range(2):
                whole, part = watching(image)
                assert torch.allclose(whole, expected[0], atol=1e-6)
                assert torch.equal(part, expected[1])
    assert not network.first._forward_hooks


def test_what_a_part_makes_that_is_passed_by_is_nothing() -> None:
    network, image = Staged(passed_by=True).eval(), torch.randn(2, 3, 4, 4)
    with torch.no_grad():
        whole, part = folded(network, "first")(image)
        assert torch.equal(whole, network(image))
    assert part is None


@pytest.mark.parametrize(("name", "side"), [("mobilenetv2_100", 64), ("resnet18", 64), ("test_resnet.r160_in1k", 32)])
def test_an_image_has_the_same_features_in_whatever_batch(name: str, side: int) -> None:
    """Bit for bit: what is stored from one run is what another would compute."""
    backbone = Backbone(name, None, side, channels_last=True).eval()
    image = torch.randint(0, 256, (34, 3, side, side), dtype=torch.uint8)
    with torch.inference_mode():
        features = backbone.for_evaluation()
        whole = features(image)
        assert torch.allclose(whole, backbone(image), rtol=1e-3, atol=1e-4)
        for size in (1, 2, 5, 14, 18):
            assert torch.equal(torch.cat([features(some) for some in image.split(size)]), whole)
        with_map = backbone.with_map_for_evaluation()
        found, maps = with_map(image)
        assert torch.equal(found, whole)
        assert torch.equal(torch.cat([with_map(some)[1] for some in image.split(18)]), maps)
        order = torch.randperm(34)
        assert torch.equal(features(image[order]), whole[order])
