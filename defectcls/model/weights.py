"""Where pretrained weights come from: a file, a local folder, or the hub. No code in a file is run."""

import logging
import sys
import urllib.request
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import constants as hub
from timm.models import PretrainedCfg, load_checkpoint
from torch import nn

from defectcls.errors import UserError, did_you_mean

log = logging.getLogger(__name__)

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
STAY_OFFLINE = hub.HF_HUB_OFFLINE  # as the environment variable of this name says


def pretrained_config(name: str) -> PretrainedCfg:
    """What timm knows of a model's weights.

    Raises:
        UserError: timm knows no such model, or no such weights of it.
    """
    try:
        if timm.is_model(name.split(".")[0]) and (config := timm.get_pretrained_cfg(name)) is not None:
            return config
    except RuntimeError:  # a tag that the model does not have
        pass
    raise UserError(f"timm has no model '{name}'{did_you_mean(name, [*timm.list_models(), *timm.list_pretrained()])}")


def load_pretrained(body: nn.Module, config: PretrainedCfg, options: dict[str, Any], weights: Path | None) -> None:
    """Load ImageNet weights from `weights` (a file, or a folder of <name>.safetensors or .pth), else from the hub.

    Args:
        options: that timm made the body with.

    Raises:
        UserError: no such file, weights of another model, or no network.
    """
    name = ".".join(filter(None, (config.architecture, config.tag)))
    if weights is not None and not weights.exists():
        raise UserError(f"model.weights={weights} does not exist: give a weights file or a folder of them")
    stems = (name, str(config.architecture))
    files = [] if weights is None else [weights, *(weights / (stem + suffix) for stem in stems for suffix in SUFFIXES)]
    file = next(filter(Path.is_file, files), None)
    if file is not None:
        log.info("weights from %s", file)
        _load_file(body, file)
        return
    if not config.hf_hub_id:
        raise UserError(f"{name} has no pretrained weights: use model.pretrained=false, or give model.weights=<file>")
    hub.HF_HUB_OFFLINE = STAY_OFFLINE
    try:  # its client would retry for a minute
        if not STAY_OFFLINE:
            urllib.request.urlopen(hub.ENDPOINT, timeout=5).close()
    except (OSError, ValueError) as error:
        hub.HF_HUB_OFFLINE = getattr(error, "code", 500) >= 500  # 404 is an answer: a mirror has nothing at its root
    try:
        pretrained = timm.create_model(name, pretrained=True, num_classes=0, **options)
    except (OSError, RuntimeError) as error:
        looked = f" and not in {weights}" if weights else ""
        raise UserError(
            f"the weights of {name} are not on this machine{looked}, and the hub {hub.ENDPOINT} cannot be reached: "
            "give model.weights=<file or folder> (or DEFECTCLS_WEIGHTS=<folder>), or model.pretrained=false"
        ) from error
    body.load_state_dict(pretrained.state_dict())


def _load_file(body: nn.Module, file: Path) -> None:
    """Strict but for the classifier, which the body lacks; timm's own filter resizes position embeddings."""
    filter_checkpoint = getattr(sys.modules[type(body).__module__], "checkpoint_filter_fn", None)
    try:
        missing = load_checkpoint(body, str(file), strict=False, filter_fn=filter_checkpoint).missing_keys
    except Exception as error:  # whatever a foreign file makes torch, safetensors or timm's filters raise
        reason = " ".join(str(error).split())[:200] or type(error).__name__  # torch's first line alone says nothing
        raise UserError(f"{file} does not hold weights of this model: {reason}") from error
    if missing:
        raise UserError(f"{file} holds weights of another model: {len(missing)} are missing, {missing[0]} first")
