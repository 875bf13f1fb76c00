"""What this machine computes best in, by a rule."""

import os

import torch

from defectcls.errors import UserError
from defectcls.settings import Precision

PRECISIONS = {"32": torch.float32, "bf16": torch.bfloat16, "16": torch.float16}


def native_precision(device: torch.device) -> Precision:
    """What gains on a device: bf16 where it is native.

    With one thread of a CPU that has AVX512-BF16, ResNet18 trained 2 times as fast in it and MobileNetV2 1.3 times, and
    evaluated 2 and 2.6 times as fast; emulated it is slow. For what it costs in quality see experiments/precision.
    """
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        able = torch.cpu.get_capabilities() if device.type == "cpu" else {}
        native = any(able.get(kind) for kind in ("avx512_bf16", "amx_bf16", "bf16"))  # the last is of ARM
    return "bf16" if native else "32"


def find_device(accelerator: str, precision: str = "32") -> torch.device:
    """What `auto`, `cpu` or `gpu` is on this machine.

    Raises:
        UserError: a GPU is asked for and there is none, or float16, which a CPU would compute otherwise.
    """
    if accelerator != "cpu" and torch.cuda.is_available():
        rank = os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or "0"  # of torchrun, of srun
        return torch.device("cuda", int(rank) % torch.cuda.device_count())  # a process may see its own alone
    if accelerator != "cpu" and torch.backends.mps.is_available():
        return torch.device("mps")
    if accelerator == "gpu":
        raise UserError("a gpu is asked for, and torch finds none here: use auto or cpu")
    if precision == "16":
        raise UserError("precision 16 is for GPUs, and this is a CPU: use precision 32 or bf16")
    return torch.device("cpu")


def tune(device: torch.device, precision: str) -> None:
    """On a GPU: the kernels that are fastest here; what autocast leaves in float32 is multiplied with 10 bits (TF32).

    Where precision 32 is asked for, with all 23: in convolutions cuDNN would take 10 by itself.
    """
    if device.type == "cuda":
        torch.set_float32_matmul_precision("highest" if precision == "32" else "high")
        torch.backends.cudnn.allow_tf32 = precision != "32"
        torch.backends.cudnn.benchmark = not torch.are_deterministic_algorithms_enabled()


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """Computes in half precision what bears it."""
    return torch.autocast(device.type, PRECISIONS[precision], enabled=precision != "32")
