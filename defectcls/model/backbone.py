"""timm backbones and where their weights come from: a file, a local folder, or the hub."""

import logging
import math
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from huggingface_hub import constants as hub
from timm.models import load_checkpoint
from torch import nn

from defectcls.errors import UserError, did_you_mean
from defectcls.model.graph import Layers, Watched, folded, split_frozen

log = logging.getLogger(__name__)

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
HUB_TIMEOUT_S = 5.0
PIECE = 16  # images: as fast as 32 on a CPU, and one alone takes no longer than 16
CELL = 16  # pixels: the map of an image is that of the last stage whose cells are no wider, blocks.4 of MobileNetV2
NO_MAP = "this backbone has no map of the image to look at: most others have, such as model=resnet18"
STAY_OFFLINE = hub.HF_HUB_OFFLINE  # as the environment variable of this name says

LayersWithMap = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


class Backbone(nn.Module):
    """Pixels in, pooled features out; normalises with its own constants, so that data never sees them.

    Args:
        name: timm model, with or without its weight tag.
        pool: timm `global_pool`, e.g. `catavgmax`; None keeps the model's own.
        image_size: side in pixels; only models of a fixed input size depend on it.
        channels_last: memory layout; convolutions are faster in it.
    """

    def __init__(self, name: str, pool: str | None, image_size: int, channels_last: bool = False) -> None:
        super().__init__()
        self.mean: torch.Tensor
        self.std: torch.Tensor
        self.body: Any
        self.options: dict[str, Any] = {} if pool is None else {"global_pool": pool}
        self.pretrained_config = _pretrained_config(name)
        if self.pretrained_config.fixed_input_size:
            self.options["img_size"] = image_size
        try:
            self.body = timm.create_model(name, num_classes=0, **self.options)
        except (AssertionError, TypeError) as error:
            raise UserError(
                f"model.name={name} cannot be built with model.pool={pool}: {error or 'try model.pool=null'}"
            ) from error
        self.image_size = image_size
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.body.to(memory_format=self.memory_format)
        shape = (1, -1, 1, 1)
        self.register_buffer("mean", 255 * torch.tensor(self.pretrained_config.mean).view(shape), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(self.pretrained_config.std).view(shape), persistent=False)
        try:
            with torch.no_grad():
                self.features = Backbone.forward(self.eval(), torch.zeros(1, 3, image_size, image_size)).shape[1]
        except (AssertionError, RuntimeError) as error:  # such as patches that do not tile the image
            raise UserError(f"model.name={name} cannot take image_size={image_size}: {error}") from error

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Float or uint8 pixels 0..255 (batch, 3, height, width) -> features (batch, features)."""
        return self.body(self._normalise(image))

    def _normalise(self, image: torch.Tensor) -> torch.Tensor:
        return (image.contiguous(memory_format=self.memory_format) - self.mean) / self.std

    def for_evaluation(self) -> Layers:
        """The same function as `forward` for the weights of now, faster; on a CPU with the same bits in any batch."""
        body = folded(self.body).to(memory_format=self.memory_format)
        return lambda image: in_pieces(lambda piece: body(self._normalise(piece)), image)

    def with_map(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As `forward`, and of the same pass the map (batch, channels, height, width) of `CELL`.

        Raises:
            UserError: the backbone has none.
        """
        body = Watched(self.body, self.body.get_submodule(self._stage()))
        features, output = body(self._normalise(image))
        return features, self._as_map(output)

    def with_map_for_evaluation(self) -> LayersWithMap:
        """The same function as `with_map`, in the way of `for_evaluation`."""
        body = folded(self.body, self._stage()).to(memory_format=self.memory_format)

        def evaluate(image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            maps = []

            def of_piece(piece: torch.Tensor) -> torch.Tensor:
                features, output = body(self._normalise(piece))
                maps.append(self._as_map(output))
                return features

            return in_pieces(of_piece, image), torch.cat(maps)[: len(image)]

        return evaluate

    def _stage(self) -> str:
        """Name of the stage whose output is the map of an image."""
        try:
            name = [stage["module"] for stage in self.body.feature_info if stage["reduction"] <= CELL][-1]
            self.body.get_submodule(name)
        except (AttributeError, IndexError, KeyError, TypeError):  # each of timm's models describes itself in its way
            raise UserError(NO_MAP) from None
        return name

    def _as_map(self, output: Any) -> torch.Tensor:
        """What a stage makes, as (batch, channels, height, width)."""
        if isinstance(output, torch.Tensor) and output.ndim == 4:
            return output.permute(0, 3, 1, 2) if getattr(self.body, "output_fmt", "NCHW") == "NHWC" else output
        if isinstance(output, torch.Tensor) and output.ndim == 3:
            tokens = output[:, getattr(self.body, "num_prefix_tokens", 0) :]
            side = math.isqrt(tokens.shape[1])
            if side * side == tokens.shape[1]:
                return tokens.transpose(1, 2).unflatten(2, (side, side))
        raise UserError(NO_MAP)

    def split(self) -> tuple[Layers, Layers] | None:
        """The frozen layers, pixels -> activations, and the others, -> features; None where it cannot be cut."""
        cut = split_frozen(self.body)
        if cut is None:
            return None
        below, above = cut
        return lambda image: below(self._normalise(image)), above

    def layers(self) -> dict[str, int]:
        """Depth of every parameter, 0 nearest to the pixels."""
        return timm.models.group_parameters(self.body, self.body.group_matcher(coarse=False), reverse=True)

    def load_pretrained(self, weights: Path | None) -> None:
        """Load ImageNet weights from `weights` (a file, or a folder of <name>.safetensors or .pth), else from the hub.

        Raises:
            UserError: no such file, weights of another model, or no network.
        """
        name = ".".join(filter(None, (self.pretrained_config.architecture, self.pretrained_config.tag)))
        file = weights if weights is None or weights.is_file() else _file_in(weights, name)
        if weights is not None and not weights.exists():
            raise UserError(f"model.weights={weights} does not exist: give a weights file or a folder of them")
        if file is None:
            self._load_from_hub(name, weights)
        else:
            log.info("weights from %s", file)
            _load_file(self.body, file)

    def _load_from_hub(self, name: str, folder: Path | None) -> None:
        if not self.pretrained_config.hf_hub_id:
            raise UserError(
                f"{name} has no pretrained weights: use model.pretrained=false, or give model.weights=<file>"
            )
        hub.HF_HUB_OFFLINE = STAY_OFFLINE or not _reachable(hub.ENDPOINT)
        try:
            pretrained = timm.create_model(name, pretrained=True, num_classes=0, **self.options)
        except (OSError, RuntimeError) as error:
            looked = f" and not in {folder}" if folder else ""
            raise UserError(
                f"the weights of {name} are not on this machine{looked}, and the hub {hub.ENDPOINT} cannot be reached: "
                "give model.weights=<file or folder> (or DEFECTCLS_WEIGHTS=<folder>), or model.pretrained=false"
            ) from error
        self.body.load_state_dict(pretrained.state_dict())


def in_pieces(layers: Layers, batch: torch.Tensor) -> torch.Tensor:
    """`layers` of a batch, on a CPU with the same bits for an image in any batch.

    Kernels, and with them the rounding, depend on the number of images: on a CPU it is always PIECE.
    """
    if batch.device.type != "cpu":
        return layers(batch)

    def of_piece(piece: torch.Tensor) -> torch.Tensor:
        filled = F.pad(piece, (0, 0) * (piece.ndim - 1) + (0, PIECE - len(piece)))
        return layers(filled)[: len(piece)]

    return torch.cat([of_piece(piece) for piece in batch.split(PIECE)])


def _pretrained_config(name: str) -> timm.models.PretrainedCfg:
    if not timm.is_model(name.split(".")[0]):
        raise UserError(f"timm has no model '{name}'{did_you_mean(name.split('.')[0], timm.list_models())}")
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError:  # a tag that the model does not have
        config = None
    if config is None:
        raise UserError(f"timm has no weights '{name}'{did_you_mean(name, timm.list_pretrained())}")
    return config


def _file_in(folder: Path, name: str) -> Path | None:
    """The weights file of a model: of the very tag, else of the architecture."""
    stems = (name, name.split(".")[0])
    return next((file for stem in stems for suffix in SUFFIXES if (file := folder / (stem + suffix)).is_file()), None)


def _load_file(body: nn.Module, file: Path) -> None:
    """Strict but for the classifier, which the body lacks; timm's own filter resizes position embeddings."""
    filter_checkpoint = getattr(sys.modules[type(body).__module__], "checkpoint_filter_fn", None)
    try:
        keys = load_checkpoint(body, str(file), strict=False, filter_fn=filter_checkpoint)
    except Exception as error:  # whatever a foreign file makes torch, safetensors or timm's filters raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__  # torch's first line alone says nothing
        raise UserError(f"{file} does not hold weights of this model: {reason}") from error
    if keys.missing_keys:
        raise UserError(
            f"{file} holds weights of another model: {len(keys.missing_keys)} are missing, {keys.missing_keys[0]} first"
        )


def _reachable(address: str) -> bool:
    """Whether the hub answers; asked first, because its client would retry for minutes."""
    try:
        urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=HUB_TIMEOUT_S).close()
    except urllib.error.HTTPError as error:
        return error.code < 500  # 404 and the like are an answer
    except (OSError, ValueError):
        return False
    return True
