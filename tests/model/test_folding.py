"""Networks without BatchNorm: the same function."""

import pytest
import timm
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from defectcls.model import backbone as backbones
from defectcls.model.backbone import Backbone, foldable, folded


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


class Twice(nn.Module):
    """One convolution, or one BatchNorm, that stands in two places: no place may have it as the other needs it."""

    def __init__(self, shared: str) -> None:
        super().__init__()
        self.conv, self.other_conv = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.norm, self.other_norm = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
        self.shared = shared
        for norm in (self.norm, self.other_norm):
            norm.running_mean.fill_(2.0)  # type: ignore[union-attr]

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if self.shared == "conv":
            return self.other_norm(self.conv(self.norm(self.conv(image))))
        return self.norm(self.other_conv(self.norm(self.conv(image))))


@pytest.mark.parametrize("shared", ["conv", "norm"])
def test_what_stands_in_two_places_is_left_as_it_is(shared: str) -> None:
    network, image = Twice(shared).eval(), torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.allclose(folded(network)(image), network(image), atol=1e-5)


class Moody(nn.Module):
    """What it does depends on the image: it cannot be followed, and is evaluated as it is."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image if image.mean() > 0 else -image


@pytest.mark.parametrize("network", [Shared().eval(), Moody()])
def test_what_cannot_be_folded_stays_right(network: nn.Module) -> None:
    image = torch.randn(2, 3, 4, 4)
    with torch.no_grad():
        assert torch.equal(folded(network)(image), network(image))


@pytest.mark.parametrize(
    ("name", "side"),
    [("mobilenetv2_100", 64), pytest.param("resnet18", 64, marks=pytest.mark.slow), ("test_resnet.r160_in1k", 32)],
)
def test_an_image_has_the_same_features_in_whatever_batch(name: str, side: int) -> None:
    """Bit for bit: what is stored from one run is what another would compute."""
    backbone = Backbone(name, None, (side, side)).eval()
    image = torch.randint(0, 256, (34, 3, side, side), dtype=torch.uint8)
    with torch.inference_mode():
        look = backbone.inference()
        (whole,) = look(image)
        assert torch.allclose(whole, backbone(image), rtol=1e-3, atol=1e-4)
        for size in (1, 2, 5, 14, 18):
            assert torch.equal(torch.cat([look(some)[0] for some in image.split(size)]), whole)
        with_map = backbone.inference(with_map=True)
        found, maps = with_map(image)
        assert torch.equal(found, whole)
        assert torch.equal(torch.cat([with_map(some)[1] for some in image.split(18)]), maps)
        order = torch.randperm(34)
        assert torch.equal(look(image[order])[0], whole[order])


def test_a_network_is_folded_once_for_a_set_of_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks: another object of the same weights, too."""
    calls = []
    monkeypatch.setattr(backbones, "_folded", {})
    monkeypatch.setattr(backbones, "folded", lambda *given: calls.append(given) or folded(*given))
    torch.manual_seed(0)
    image, one, other = (
        torch.randint(0, 256, (2, 3, 32, 32)),
        *(Backbone("test_resnet", None, (32, 32)) for _ in range(2)),
    )
    before = one.inference()(image)[0]
    assert not torch.equal(other.inference()(image)[0], before)
    other.load_state_dict(one.state_dict())
    for backbone in (one, other, one):
        assert torch.equal(backbone.inference()(image)[0], before)
    assert len(calls) == 3  # of one, of the other before it had these weights, and of them again
    for _ in range(3):
        with torch.no_grad():
            next(other.parameters()).mul_(1.01)
        other.inference()
    assert len(backbones._folded) == 1


def test_a_network_is_traced_once_whatever_its_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(backbones, "foldable", lambda *given: calls.append(given) or foldable(*given))
    image, backbone = torch.randint(0, 256, (2, 3, 32, 32)), Backbone("test_resnet", None, (32, 32))
    for _ in range(3):
        with torch.no_grad():
            next(backbone.body.parameters()).mul_(1.1)
        expected = backbone.eval()(image)
        torch.testing.assert_close(backbone.inference()(image)[0], expected, rtol=1e-4, atol=1e-4)
    assert len(calls) == 1


def test_a_compiled_network_is_compiled_once_for_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    """And judges by the weights of now; what it infers with is no part of the checkpoint."""
    compiled, runs = [], []

    def compile_(module: nn.Module) -> None:
        compiled.append(module)
        module._compiled_call_impl = lambda *given: runs.append(module) or module._call_impl(*given)

    monkeypatch.setattr(nn.Module, "compile", compile_)
    image, backbone = torch.randint(0, 256, (2, 3, 32, 32)), Backbone("test_resnet", None, (32, 32))
    names = [*backbone.state_dict()]
    backbone.body.compile()
    for _ in range(3):
        with torch.no_grad():
            next(backbone.body.parameters()).mul_(1.1)
        expected = backbone.eval()(image)
        torch.testing.assert_close(backbone.inference()(image)[0], expected, rtol=1e-4, atol=1e-4)
    assert len(compiled) == 2  # what trains, and what infers
    assert runs.count(compiled[1]) == 3
    assert [*backbone.state_dict()] == names


@pytest.mark.slow
def test_levels_are_pooled_of_a_compiled_network_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is compiled once to train and once to infer, whatever its weights: no hook makes it anew."""
    compiled: list[CompileCounter] = []
    original = nn.Module.compile

    def compile_(module: nn.Module) -> None:
        compiled.append(CompileCounter())
        original(module, backend=compiled[-1])

    monkeypatch.setattr(nn.Module, "compile", compile_)
    torch._dynamo.reset()
    image = torch.randint(0, 256, (16, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    plain, backbone = (Backbone("test_resnet", None, (64, 64), levels=(0.5, 1.0)) for _ in range(2))
    backbone.load_state_dict(plain.state_dict())
    backbone.body.compile()
    for _ in range(3):
        torch.testing.assert_close(backbone.train()(image), plain.train()(image))
        for network in (plain, backbone):
            with torch.no_grad():
                next(network.body.parameters()).mul_(1.1)
        expected = plain.eval()(image)
        torch.testing.assert_close(backbone.eval().inference()(image)[0], expected, rtol=1e-4, atol=1e-4)
    assert [one.frame_count for one in compiled] == [1, 1]
    torch._dynamo.reset()
