"""timm backbones: pixels -> features, in training as they are, in evaluation with BatchNorm folded away."""

import copy
import math
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed
from timm.models import get_notrace_functions, is_notrace_module
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from defectcls.errors import UserError
from defectcls.files import digest_of
from defectcls.model.hardware import autocast
from defectcls.model.weights import load_pretrained, pretrained_config
from defectcls.settings import Precision

PIECE = 16  # images: as fast as 32 on a CPU, and one alone takes no longer than 16
CELL = 16  # pixels: the map of an image is that of the last stage whose cells are no wider, blocks.4 of MobileNetV2
MOST_CELLS = 400  # of more, four neighbours become one: a quarter of the time and room, the AUROC of screws as it was
NO_MAP = "this backbone has no map of the image to look at: most others have, such as model=resnet18"
LAYOUT = torch.channels_last  # convolutions are faster in it
NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)

Look = Callable[[torch.Tensor], tuple[torch.Tensor, ...]]  # pixels -> features, and the map where it is asked for

_folded: dict[bytes, nn.Module] = {}  # of the last weights and device that were asked for


class Backbone(nn.Module):
    """Pixels in, pooled features out; normalises with its own constants, so that data never sees them.

    Args:
        name: timm model, with or without its weight tag.
        pool: timm `global_pool` of the last layer, e.g. `catavgmax`; None keeps the model's own.
        image_size: height and width in pixels; only models of a fixed input size depend on it.
        precision: that `inference` computes in; what trains it chooses its own.
        levels: stages whose outputs, averaged and at their maximum, are features too, by how deep they lie, from 0 to
            1: 0.5, 0.75 and 1 are the strides 8, 16 and 32 of a CNN, and the blocks 6, 9 and 12 of twelve.
        last: whether the last layer's are features.

    Raises:
        UserError: timm has no such model, or it takes no such pool, size or levels.
    """

    def __init__(
        self,
        name: str,
        pool: str | None,
        image_size: tuple[int, int],
        precision: Precision = "32",
        levels: Sequence[float] = (),
        last: bool = True,
    ) -> None:
        super().__init__()
        self.body: Any
        self.image_size, self.precision = image_size, precision
        self.options: dict[str, Any] = {} if pool is None else {"global_pool": pool}
        self.pretrained_config = pretrained_config(name)
        if self.pretrained_config.fixed_input_size:
            self.options["img_size"] = image_size
        try:
            self.body = timm.create_model(name, num_classes=0, **self.options)
            patches = getattr(self.body, "patch_embed", None)
            patch = patches.patch_size if isinstance(patches, PatchEmbed) else (1, 1)  # a border would not be seen
            tiled = [own * math.ceil(side / own) for side, own in zip(image_size, patch, strict=True)]
            if tiled != [*image_size]:
                raise UserError(
                    f"model.name={name} looks at patches of {patch[0]} px, which do not tile image_size="
                    f"{[*image_size]}: 'image_size={tiled}'"
                )
            if not (stages := self.stages()) and levels:
                raise UserError(f"model.name={name} does not tell its stages: model.levels=[]")
            self.levels = [stages[math.ceil(level * len(stages)) - 1]["module"] for level in levels]
            self.last = last
            self.body.eval()
            blank = torch.zeros(1, 3, *image_size)
            self.map_shape: tuple[int, ...] | None = None  # channels, height, width
            with torch.no_grad():
                self.feature_count = self.features(self.body, blank).shape[1]
                with suppress(UserError):
                    self.map_shape = tuple(self.seen(self.body, blank, with_map=True)[1].shape[1:])
        except (AssertionError, RuntimeError, TypeError) as error:  # such as patches that do not tile the image
            raise UserError(
                f"model.name={name} cannot be built with model.pool={pool} and image_size={[*image_size]}: "
                f"{error or 'try model.pool=null'}"
            ) from error
        self.body.to(memory_format=LAYOUT)
        constants = (self.pretrained_config.mean, self.pretrained_config.std)
        mean, std = (255 * torch.tensor(of_colours).view(1, -1, 1, 1) for of_colours in constants)
        self.mean, self.std = nn.Buffer(mean, persistent=False), nn.Buffer(std, persistent=False)
        self._pairs: list[tuple[str, str]] | None = None  # `foldable`, once it is known
        self._compiled: list[nn.Module] = []  # what infers, where the body is compiled; no part of the network
        self.eval()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Float or uint8 pixels 0..255 (batch, 3, height, width) -> features (batch, feature_count)."""
        return self.features(self.body, self.normalise(image))

    def features(
        self,
        body: nn.Module,
        pixels: torch.Tensor,
        last: Callable[[torch.Tensor], torch.Tensor] | None = None,
        mark: Callable[[Any], Any] = lambda output: output,
    ) -> torch.Tensor:
        """Of the levels and of the last layer, side by side: (batch, feature_count).

        Args:
            body: this backbone's, or its folded copy.
            pixels: normalised ones.
            last: what makes the last layer's features of them; None: the body.
            mark: is given what each level makes, and gives what is pooled.
        """
        pooled: list[torch.Tensor] = []

        def pool(*called: Any) -> None:
            output = self.as_map(mark(called[-1]))
            pooled.extend((output.mean((2, 3)), output.amax((2, 3))))

        with ExitStack() as hooks:
            for name in self.levels:
                hooks.enter_context(body.get_submodule(name).register_forward_hook(pool))
            of_last = (last or body)(pixels)
        return torch.cat([*pooled, of_last] if self.last else pooled, 1) if pooled else of_last

    def normalise(self, image: torch.Tensor) -> torch.Tensor:
        """What the body takes."""
        return (image.contiguous(memory_format=LAYOUT) - self.mean) / self.std

    def inference(self, with_map: bool = False) -> Look:
        """What evaluates images by the weights of now: on its device, in its precision, without gradients.

        Pixels as of `forward`, from any device -> features float32 (batch, feature_count), and where it is asked for
        the map float32 (batch, channels, height, width) of `CELL` and `MOST_CELLS`, in a tuple. BatchNorm is folded
        away, once for a set of weights; on a CPU an image has the same bits in any batch. Where there is no map to be
        had, a look raises a UserError.
        """
        device, precision = self.mean.device, self.precision
        key = hash_of(self.digest(), str(device).encode())
        if key not in _folded:
            _folded.clear()
            if self._pairs is None:
                self._pairs = foldable(copy.deepcopy(self.body).eval())
            fresh = folded(self.body, self._pairs).to(memory_format=LAYOUT)
            if self.body._compiled_call_impl is not None:  # compiled once, whatever its weights
                if not self._compiled:
                    fresh.compile()
                    self._compiled.append(fresh)
                self._compiled[0].load_state_dict(fresh.state_dict())
                fresh = self._compiled[0]
            _folded[key] = fresh
        body = _folded[key]

        def look(image: torch.Tensor) -> tuple[torch.Tensor, ...]:
            with torch.inference_mode(), autocast(precision, device):
                if device.type == "cuda" and image.device.type == "cpu":
                    image = image.pin_memory()  # what is pinned already is given back; else the host would wait
                pixels = image.to(device, non_blocking=device.type == "cuda")
                found = in_pieces(lambda piece: self.seen(body, self.normalise(piece), with_map), pixels)
            return tuple(one.float() for one in found)

        return look

    def seen(self, body: nn.Module, pixels: torch.Tensor, with_map: bool) -> tuple[torch.Tensor, ...]:
        """What `inference` gives, of normalised pixels."""
        if not with_map:
            return (self.features(body, pixels),)
        stages = [stage["module"] for stage in self.stages() if stage["reduction"] <= CELL]
        if not stages:
            raise UserError(NO_MAP)
        outputs: list[Any] = []
        with body.get_submodule(stages[-1]).register_forward_hook(lambda *called: outputs.append(called[-1])):
            features = self.features(body, pixels)
        cells = self.as_map(outputs[0] if len(outputs) == 1 else None)
        while cells[0, 0].numel() > MOST_CELLS:
            cells = F.avg_pool2d(cells.float(), 2, ceil_mode=True, count_include_pad=False)
        return features, cells

    def digest(self) -> bytes:
        """Of the weights and what surrounds them; a hundred megabytes take a tenth of a second."""
        about = self.options, self.pretrained_config.architecture, self.image_size, self.levels, self.last
        parts = [repr(about).encode()]
        for name, value in self.body.state_dict().items():
            parts += [name.encode(), value.cpu().contiguous().numpy().tobytes()]
        return hash_of(*parts)

    def stages(self) -> list[dict[str, Any]]:
        """What timm says of the stages whose outputs are maps, from the first on: of those that are there."""
        layers = dict(self.body.named_modules())
        return [stage for stage in getattr(self.body, "feature_info", ()) if stage.get("module") in layers]

    def as_map(self, output: Any) -> torch.Tensor:
        """What a stage makes, as (batch, channels, height, width)."""
        if isinstance(output, torch.Tensor) and output.ndim == 4:
            return output.permute(0, 3, 1, 2) if getattr(self.body, "output_fmt", "NCHW") == "NHWC" else output
        if isinstance(output, torch.Tensor) and output.ndim == 3:
            tokens = output[:, getattr(self.body, "num_prefix_tokens", 0) :]
            aspect = self.image_size[0] / self.image_size[1]
            height = round(math.sqrt(tokens.shape[1] * aspect))
            if height * round(height / aspect) == tokens.shape[1]:
                return tokens.transpose(1, 2).unflatten(2, (height, -1))
        raise UserError(NO_MAP)

    def layers(self) -> dict[str, int]:
        """Depth of every parameter, 0 nearest to the pixels."""
        return timm.models.group_parameters(self.body, self.body.group_matcher(coarse=False), reverse=True)

    def load_pretrained(self, weights: Path | None, fetch: bool = True) -> None:
        """ImageNet's, see `defectcls.model.weights`."""
        load_pretrained(self.body, self.pretrained_config, self.options, weights, fetch)


class _Tracer(fx.Tracer):
    """Follows a network down to its layers; BatchNorm is one of them, in whichever mode it will be."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        layer = isinstance(m, _BatchNorm) or not any(m.children()) or is_notrace_module(type(m))
        return layer or super().is_leaf_module(m, module_qualified_name)


def foldable(body: nn.Module) -> list[tuple[str, str]]:
    """Convolutions, by name, and the BatchNorm that follows each and nothing else does.

    What does otherwise by what it is shown cannot be followed, and has none.
    """
    try:
        graph = _Tracer(autowrap_functions=tuple(get_notrace_functions())).trace(body)
    except Exception:  # whatever a foreign network does when it is called with a stand-in
        return []
    pairs = []
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    for node in graph.nodes:
        source = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) > 1:
            continue
        if calls[node.target] > 1 or calls[source.target] > 1:  # which another place needs as it is
            continue
        conv, norm = body.get_submodule(str(source.target)), body.get_submodule(str(node.target))
        if isinstance(norm, NORMS) and type(conv) is nn.Conv2d and norm.running_mean is not None:
            pairs.append((str(source.target), str(node.target)))
    return pairs


def folded(body: nn.Module, pairs: list[tuple[str, str]] | None = None) -> nn.Module:
    """A copy for evaluation alone, with the BatchNorm of each `foldable` pair folded into the convolution's weights.

    The same function but for rounding; MobileNetV2 is nearly twice as fast so.
    """
    body = copy.deepcopy(body).eval()
    layer_of: Any = body.get_submodule
    for source, target in foldable(body) if pairs is None else pairs:
        conv, norm = layer_of(source), layer_of(target)
        after = [layer for name in ("drop", "act") if (layer := getattr(norm, name, None)) is not None]  # of timm's
        body.set_submodule(source, fuse_conv_bn_eval(conv, norm))
        body.set_submodule(target, nn.Sequential(*after))
    return body


def in_pieces(layers: Look, batch: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What `layers` make of a batch, on a CPU with the same bits for an image in any batch.

    Kernels, and with them the rounding, depend on the number of images: on a CPU it is always PIECE. A graph that is
    being exported takes batches as they come.
    """
    if batch.device.type != "cpu" or torch.compiler.is_exporting():
        return layers(batch)
    padding = (0, 0) * (batch.ndim - 1)
    pieces = [layers(F.pad(piece, (*padding, 0, PIECE - len(piece)))) for piece in batch.split(PIECE)]
    return tuple(torch.cat(outputs)[: len(batch)] for outputs in zip(*pieces, strict=True))


def one_by_one(batch: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """A batch in pieces of one image, which has the same bits in any batch so; whole in a graph that is exported.

    A GPU, which promises no bits and would wait for each launch, takes PIECE at a time.
    """
    return (batch,) if torch.compiler.is_exporting() else batch.split(1 if batch.device.type == "cpu" else PIECE)


def hash_of(*parts: bytes) -> bytes:
    """Sixteen bytes that tell apart what differs in any part."""
    return digest_of(*(each for part in parts for each in (len(part).to_bytes(8, "little"), part)))
