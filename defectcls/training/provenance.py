"""What a result needs so that another person can repeat it: command, configuration, code, versions, hardware."""

import json
import platform
import subprocess
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

PACKAGES = ("defectcls", "torch", "torchvision", "lightning", "timm", "torchmetrics", "hydra-core", "scikit-learn")


def provenance(seed: int, config: dict[str, Any], device: "torch.device | None" = None) -> dict[str, Any]:
    """For metrics.json and its kin.

    Args:
        device: that computed it; None where no network did.
    """
    from defectcls.config import job_command  # whose sweeps ask for the commit

    return {
        "command": job_command(),
        "date": datetime.now().astimezone().isoformat(timespec="minutes"),
        "seed": seed,
        "versions": {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}},
        "commit": commit(),
        "hardware": device_name(device),
        "config": json.loads(json.dumps(config, default=str)),
    }


def device_name(device: "torch.device | None") -> str:
    """Model of the GPU, or of the processor with the number of threads."""
    import torch

    if device is not None and device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")  # Python itself knows the processor on some systems only
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {torch.get_num_threads()} threads"


def commit() -> str | None:
    """Commit of the checkout that this code runs from, `-dirty` where it was edited; None for an installed wheel."""
    checkout = Path(__file__).parents[2]
    if not (checkout / "pyproject.toml").is_file():
        return None
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--exclude=*", "--abbrev=12"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return result.stdout.strip() or None
