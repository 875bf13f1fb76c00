"""timm backbones: pixels -> features, in training as they are, in evaluation with BatchNorm folded away."""

import copy
import hashlib
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.models import get_notrace_functions, is_notrace_module
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from defectcls.errors import UserError
from defectcls.model.hardware import autocast
from defectcls.model.weights import load_pretrained, pretrained_config
from defectcls.settings import Precision

PIECE = 16  # images: as fast as 32 on a CPU, and one alone takes no longer than 16
CELL = 16  # pixels: the map of an image is that of the last stage whose cells are no wider, blocks.4 of MobileNetV2
NO_MAP = "this backbone has no map of the image to look at: most others have, such as model=resnet18"
LAYOUT = torch.channels_last  # convolutions are faster in it

Look = Callable[[torch.Tensor], tuple[torch.Tensor, ...]]  # pixels -> features, and the map where it is asked for

_folded: dict[bytes, nn.Module] = {}  # of the last weights and device that were asked for


class Backbone(nn.Module):
    """Pixels in, pooled features out; normalises with its own constants, so that data never sees them.

    Args:
        name: timm model, with or without its weight tag.
        pool: timm `global_pool`, e.g. `catavgmax`; None keeps the model's own.
        image_size: side in pixels; only models of a fixed input size depend on it.
        precision: that `inference` computes in; what trains it chooses its own.
    """

    def __init__(self, name: str, pool: str | None, image_size: int, precision: Precision = "32") -> None:
        super().__init__()
        self.body: Any
        self.image_size, self.precision = image_size, precision
        self.options: dict[str, Any] = {} if pool is None else {"global_pool": pool}
        self.pretrained_config = pretrained_config(name)
        if self.pretrained_config.fixed_input_size:
            self.options["img_size"] = image_size
        try:
            self.body = timm.create_model(name, num_classes=0, **self.options)
            self.body.eval()
            with torch.no_grad():
                self.feature_count = self.body(torch.zeros(1, 3, image_size, image_size)).shape[1]
        except (AssertionError, RuntimeError, TypeError) as error:  # such as patches that do not tile the image
            raise UserError(
                f"model.name={name} cannot be built with model.pool={pool} and image_size={image_size}: "
                f"{error or 'try model.pool=null'}"
            ) from error
        self.body.to(memory_format=LAYOUT)
        constants = (self.pretrained_config.mean, self.pretrained_config.std)
        mean, std = (255 * torch.tensor(of_colours).view(1, -1, 1, 1) for of_colours in constants)
        self.mean, self.std = nn.Buffer(mean, persistent=False), nn.Buffer(std, persistent=False)
        self.eval()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Float or uint8 pixels 0..255 (batch, 3, height, width) -> features (batch, feature_count)."""
        return self.body(self.normalise(image))

    def normalise(self, image: torch.Tensor) -> torch.Tensor:
        """What the body takes."""
        return (image.contiguous(memory_format=LAYOUT) - self.mean) / self.std

    def inference(self, with_map: bool = False) -> Look:
        """What evaluates images by the weights of now: on its device, in its precision, without gradients.

        Pixels as of `forward`, from any device -> (features,), or (features, map) with the map (batch, channels,
        height, width) of `CELL`. BatchNorm is folded away, once for a set of weights; on a CPU an image has the same
        bits in any batch.

        Raises:
            UserError: the backbone has no map.
        """
        device, precision = self.mean.device, self.precision
        key = hash_of(self.digest(), str(device).encode())
        if key not in _folded:
            _folded.clear()
            _folded[key] = folded(self.body).to(memory_format=LAYOUT)
        body = _folded[key]
        stage = body.get_submodule(self._stage()) if with_map else None

        def of_piece(piece: torch.Tensor) -> tuple[torch.Tensor, ...]:
            if stage is None:
                return (body(self.normalise(piece)),)
            outputs: list[Any] = []
            with stage.register_forward_hook(lambda *called: outputs.append(called[-1])):
                features = body(self.normalise(piece))
            return features, self.as_map(outputs[0] if len(outputs) == 1 else None)

        def look(image: torch.Tensor) -> tuple[torch.Tensor, ...]:
            with torch.inference_mode(), autocast(precision, device):
                return in_pieces(of_piece, image.to(device, non_blocking=True))

        return look

    def digest(self) -> bytes:
        """Of the weights and what surrounds them; a hundred megabytes take a tenth of a second."""
        parts = [repr((self.options, self.pretrained_config.architecture, self.image_size)).encode()]
        for name, value in self.body.state_dict().items():
            parts += [name.encode(), value.cpu().contiguous().numpy().tobytes()]
        return hash_of(*parts)

    def _stage(self) -> str:
        """Name of the stage whose output is the map of an image."""
        try:
            name = [stage["module"] for stage in self.body.feature_info if stage["reduction"] <= CELL][-1]
            self.body.get_submodule(name)
        except (AttributeError, IndexError, KeyError, TypeError):  # each of timm's models describes itself in its way
            raise UserError(NO_MAP) from None
        return name

    def as_map(self, output: Any) -> torch.Tensor:
        """What a stage makes, as (batch, channels, height, width)."""
        if isinstance(output, torch.Tensor) and output.ndim == 4:
            return output.permute(0, 3, 1, 2) if getattr(self.body, "output_fmt", "NCHW") == "NHWC" else output
        if isinstance(output, torch.Tensor) and output.ndim == 3:
            tokens = output[:, getattr(self.body, "num_prefix_tokens", 0) :]
            side = math.isqrt(tokens.shape[1])
            if side * side == tokens.shape[1]:
                return tokens.transpose(1, 2).unflatten(2, (side, side))
        raise UserError(NO_MAP)

    def layers(self) -> dict[str, int]:
        """Depth of every parameter, 0 nearest to the pixels."""
        return timm.models.group_parameters(self.body, self.body.group_matcher(coarse=False), reverse=True)

    def load_pretrained(self, weights: Path | None) -> None:
        """ImageNet's, see `defectcls.model.weights`."""
        load_pretrained(self.body, self.pretrained_config, self.options, weights)


class _Tracer(fx.Tracer):
    """Follows a network down to its layers; BatchNorm is one of them, in whichever mode it will be."""

    def __init__(self) -> None:
        super().__init__(autowrap_functions=tuple(get_notrace_functions()))

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        layer = isinstance(m, _BatchNorm) or not any(m.children()) or is_notrace_module(type(m))
        return layer or super().is_leaf_module(m, module_qualified_name)


def folded(body: nn.Module) -> nn.Module:
    """A copy for evaluation alone, with each BatchNorm that follows a convolution folded into its weights.

    The same function but for rounding; MobileNetV2 is nearly twice as fast so. What does otherwise by what it is shown
    cannot be followed, and is copied as it is.
    """
    body = copy.deepcopy(body).eval()
    try:
        graph = _Tracer().trace(body)
    except Exception:  # whatever a foreign network does when it is called with a stand-in
        return body
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    for node in graph.nodes:
        source = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) > 1:
            continue
        if calls[node.target] > 1 or calls[source.target] > 1:  # which another place needs as it is
            continue
        conv, norm = body.get_submodule(str(source.target)), body.get_submodule(str(node.target))
        if isinstance(norm, nn.BatchNorm2d) and type(conv) is nn.Conv2d and norm.running_mean is not None:
            after = [layer for name in ("drop", "act") if (layer := getattr(norm, name, None)) is not None]  # of timm's
            body.set_submodule(str(source.target), fuse_conv_bn_eval(conv, norm))
            body.set_submodule(str(node.target), nn.Sequential(*after))
    return body


def in_pieces(layers: Look, batch: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What `layers` make of a batch, on a CPU with the same bits for an image in any batch.

    Kernels, and with them the rounding, depend on the number of images: on a CPU it is always PIECE.
    """
    if batch.device.type != "cpu":
        return layers(batch)
    padding = (0, 0) * (batch.ndim - 1)
    pieces = [layers(F.pad(piece, (*padding, 0, PIECE - len(piece)))) for piece in batch.split(PIECE)]
    return tuple(torch.cat(outputs)[: len(batch)] for outputs in zip(*pieces, strict=True))


def hash_of(*parts: bytes) -> bytes:
    """Sixteen bytes that tell apart what differs in any part."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()
