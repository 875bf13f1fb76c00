"""What the hardware gains from, by a rule; and that a Trainer computes as a predictor does."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from defectcls.errors import UserError
from defectcls.model.hardware import PRECISIONS, autocast, find_device, native_precision, tune
from defectcls.settings import TrainSettings
from defectcls.training import build
from tests.conftest import composed

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("given", "native", "expected"),
    [("32", "bf16", "32"), ("bf16", "32", "bf16"), ("auto", "32", "32"), ("auto", "bf16", "bf16")],
)
def test_what_is_fixed_is_taken_as_it_is(
    given: str, native: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "native_precision", lambda _: native)
    tuned: list[Any] = []
    monkeypatch.setattr(build, "tune", lambda *given: tuned.append(given))
    settings = TrainSettings(**composed("dataset=synthetic", "trainer=cpu", f"trainer.precision={given}"))
    assert build.with_compute(settings).trainer == settings.trainer.model_copy(update={"precision": expected})
    assert tuned == [(CPU, expected)]  # before anything is computed, by whoever asks: an audit has no Trainer


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [({"avx512_bf16": True}, "bf16"), ({"amx_bf16": True}, "bf16"), ({"avx512_f": True, "amx_bf16": False}, "32")],
)
def test_bf16_is_for_a_cpu_that_computes_in_it(
    monkeypatch: pytest.MonkeyPatch, capabilities: Any, expected: Any
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert native_precision(CPU) == expected
    assert native_precision(torch.device("mps")) == "32"


def test_emulated_bf16_is_not_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for able in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, able=able: able)
        assert native_precision(torch.device("cuda")) == ("bf16" if able else "32")


@pytest.mark.parametrize(
    ("precision", "dtype"), [("32", torch.float32), ("bf16", torch.bfloat16), ("16", torch.float16)]
)
def test_autocast_computes_in_the_precision_that_was_chosen(precision: Any, dtype: torch.dtype) -> None:
    with autocast(precision, CPU):
        assert torch.nn.Linear(4, 4)(torch.rand(2, 4)).dtype == dtype


def test_tf32_is_for_gpus_and_not_for_precision_32(monkeypatch: pytest.MonkeyPatch) -> None:
    cudnn, before = torch.backends.cudnn, torch.get_float32_matmul_precision()
    monkeypatch.setattr(cudnn, "benchmark", False)
    monkeypatch.setattr(cudnn, "allow_tf32", True)
    found = lambda: (torch.get_float32_matmul_precision(), cudnn.allow_tf32, cudnn.benchmark)  # noqa: E731
    try:
        tune(CPU, "32")
        assert found() == (before, True, False)
        tune(torch.device("cuda"), "32")
        assert found() == ("highest", False, True)
        monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
        tune(torch.device("cuda"), "bf16")
        assert found() == ("high", True, False)
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(
    ("variables", "gpus", "expected"),
    [
        ({}, 4, 0),
        ({"LOCAL_RANK": "3"}, 4, 3),
        ({"SLURM_LOCALID": "2"}, 4, 2),
        ({"LOCAL_RANK": "1", "SLURM_LOCALID": "0"}, 4, 1),  # torchrun in a job of one task
        ({"SLURM_LOCALID": "2"}, 1, 0),  # srun --gpus-per-task=1 shows each process its own
    ],
)
def test_each_process_of_a_node_takes_its_own_gpu(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], gpus: int, expected: int
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    for name in ("LOCAL_RANK", "SLURM_LOCALID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert find_device("auto") == torch.device("cuda", expected)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's")
@pytest.mark.slow
def test_freed_memory_is_kept_for_the_next_step() -> None:
    """Blocks of 64 MB, taken and freed again and again: their pages are asked of the system once."""
    code = """
import resource, torch
from defectcls.data.threads import keep_freed_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(16_000_000)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
given_back = faults()
keep_freed_memory()
print(min(faults() for _ in range(6)) < given_back / 10)  # the first of them grow the heap
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_a_trainer_computes_in_what_a_predictor_does(tmp_path: Path, precision: Any) -> None:
    settings = {"accelerator": "cpu", "devices": 1, "strategy": "auto", "precision": precision, "workers": 0}
    config = composed("dataset=synthetic") | {"trainer": settings | {"compile": False}}
    trainer = build.build_trainer(TrainSettings(**config), tmp_path)
    found = []
    for context in (trainer.precision_plugin.forward_context(), autocast(precision, CPU)):
        with context:
            found.append(torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu"))
            assert torch.nn.functional.linear(torch.ones(1, 3), torch.ones(2, 3)).dtype == PRECISIONS[precision]
    assert found[0] == found[1]


@pytest.mark.parametrize("accelerator", ["cpu", "auto"])
def test_float16_is_not_computed_on_a_cpu(monkeypatch: pytest.MonkeyPatch, accelerator: Any) -> None:
    """Lightning would compute in bf16 in its place, and a predictor in float16."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError, match="^precision 16 is for GPUs, and this is a CPU: use precision 32 or bf16$"):
        find_device(accelerator, "16")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: accelerator == "auto")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    if accelerator == "auto":
        assert find_device(accelerator, "16") == torch.device("cuda", 0)
