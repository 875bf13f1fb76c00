"""What the hardware gains from: chosen from stand-in timings, remembered, and once measured for real."""

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from defectcls.errors import UserError
from defectcls.model import hardware
from defectcls.model.backbone import Backbone
from defectcls.model.hardware import PRECISIONS, Compute, Timing, allow_tf32, autocast, choose_compute
from defectcls.settings import TrainerSettings, TrainSettings
from defectcls.training.build import build_trainer, device_of
from defectcls.training.run import as_begun
from tests.conftest import composed

CPU = torch.device("cpu")
PLAIN = Compute("32", False, False)
LAST = Compute("32", True, False)
HALF = Compute("bf16", False, False)
BOTH = Compute("bf16", True, False)
ORDINARY = {PLAIN: 1.0, LAST: 0.7, HALF: 0.5, BOTH: 0.3}


class Clock:
    """Stands in for `time_steps`: seconds of a step by choice, and what was asked for."""

    def __init__(self, seconds: dict[Compute, float], compilation: float = 0.0) -> None:
        self.seconds, self.compilation = seconds, compilation
        self.asked: list[list[Compute]] = []
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, backbone: Any, choices: list[Compute], shape: Any, device: Any) -> dict[Compute, Timing]:
        self.asked.append(choices)
        self.shapes.append(shape)
        return {
            choice: Timing(self.seconds[choice], self.compilation * choice.compile)
            for choice in choices
            if choice in self.seconds
        }


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """On a CPU that computes in bf16."""
    clock = Clock(dict(ORDINARY))
    monkeypatch.setattr(hardware, "time_steps", clock)
    monkeypatch.setattr(hardware, "_precisions", lambda device: ["32", "bf16"])
    return clock


def trainer(precision: Any = "auto", channels_last: Any = "auto", compile: Any = "auto") -> TrainerSettings:
    return TrainerSettings.model_construct(precision=precision, channels_last=channels_last, compile=compile)


def choose(memory: Path, settings: TrainerSettings | None = None, **changed: Any) -> Compute:
    given: dict[str, Any] = {"name": "net", "image_size": 64, "batch_size": 32, "steps": 10, "device": CPU}
    return choose_compute(settings or trainer(), torch.nn.Identity, memory=memory, **given | changed)  # type: ignore[arg-type]


# --- who wins ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (ORDINARY, BOTH),
        ({PLAIN: 1.0, LAST: 0.7, HALF: 1.5, BOTH: 1.2}, LAST),
        ({PLAIN: 1.0, LAST: 1.2, HALF: 0.5, BOTH: 0.6}, HALF),
        ({PLAIN: 1.0, LAST: 1.2, HALF: 1.3, BOTH: 1.4}, PLAIN),
        ({PLAIN: 1.0, LAST: 0.96, HALF: 0.98, BOTH: 0.96}, PLAIN),  # 4 % are noise
        ({PLAIN: 1.0, LAST: 0.5, HALF: 0.6, BOTH: 0.48}, LAST),  # bf16 gains 4 % over the plainer layout alone
        ({PLAIN: 1.0, LAST: 0.6, HALF: 0.5, BOTH: 0.48}, HALF),
        ({PLAIN: 1.0, LAST: 0.94, HALF: 1.1, BOTH: 1.1}, LAST),
        ({PLAIN: 1.0, LAST: 0.7}, LAST),  # bf16 has no kernel here
        ({BOTH: 1.0}, BOTH),  # the others do not fit into memory
        ({}, BOTH),  # nothing does: what takes least
    ],
)
def test_the_fastest_wins_if_it_gains_5_percent_over_what_is_plainer(
    clock: Clock, tmp_path: Path, seconds: dict, expected: Compute
) -> None:
    clock.seconds = seconds
    assert choose(tmp_path) == expected
    assert clock.asked == [[PLAIN, LAST, HALF, BOTH]]


@pytest.mark.parametrize("precision", ["32", "bf16", "16"])
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("compile", [True, False])
def test_what_is_fixed_is_taken_as_it_is_and_nothing_is_timed(
    clock: Clock, tmp_path: Path, precision: Any, channels_last: bool, compile: bool
) -> None:
    settings = trainer(precision, channels_last, compile)
    assert choose(tmp_path, settings, steps=10**9) == Compute(precision, channels_last, compile)
    assert not clock.asked
    assert not list(tmp_path.iterdir())


def test_only_what_is_open_is_timed(clock: Clock, tmp_path: Path) -> None:
    assert choose(tmp_path, trainer(precision="32")) == LAST
    assert choose(tmp_path / "b", trainer(channels_last=False, compile=True)) == Compute("bf16", False, True)
    assert clock.asked == [[PLAIN, LAST], [PLAIN, HALF]]


def test_a_cpu_is_timed_on_few_images_and_a_gpu_on_the_batch(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose(tmp_path, image_size=96, batch_size=256)
    choose(tmp_path, image_size=96, batch_size=1)  # BatchNorm cannot train on one
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    choose(tmp_path, image_size=96, batch_size=256, device=torch.device("cuda"))
    assert clock.shapes == [(4, 3, 96, 96), (2, 3, 96, 96), (256, 3, 96, 96)]


def test_emulated_bf16_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    for able in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda able=able: able)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, able=able: able)
        assert hardware._precisions(CPU) == (["32", "bf16"] if able else ["32"])
        assert hardware._precisions(torch.device("cuda")) == ["32", "bf16" if able else "16"]
        assert hardware._precisions(torch.device("mps")) == ["32"]


# --- memory -----------------------------------------------------------------------------------------------------------


def test_what_was_timed_is_remembered_for_this_model_size_and_machine(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    memory = tmp_path / "new" / "folder"
    with caplog.at_level(logging.INFO):
        first = choose(memory)
    (line,) = caplog.messages
    assert "net at 64 px" in line
    assert "chose bf16 channels_last, 3.33 x as fast as float32," in line
    caplog.clear()
    with caplog.at_level(logging.INFO):
        assert choose(memory) == first
        assert choose(memory, trainer(precision="32")) == LAST
        assert choose(memory, steps=10, batch_size=64) == first
    assert len(clock.asked) == 1
    assert not caplog.messages
    assert {file.name for file in memory.iterdir()} == {"hardware.json", "hardware.lock"}

    choose(memory, name="other")
    choose(memory, image_size=96)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    choose(memory)
    monkeypatch.setattr(torch, "__version__", "99.0")
    choose(memory)
    assert len(clock.asked) == 5
    choose(memory)
    assert len(clock.asked) == 5
    assert len(json.loads((memory / "hardware.json").read_text())) == 5


DAMAGED = [
    b"",
    b"{",
    b"\xff\xfe\x00",
    b"[]",
    b"null",
    b'{"a": 1}',
    b'{"a": {"float32": [1]}}',
    b'{"a": {"b": ["x", 1]}}',
]


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_or_foreign_memory_is_timed_again_and_replaced(clock: Clock, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "hardware.json").write_bytes(content)
    assert choose(tmp_path) == BOTH
    assert choose(tmp_path) == BOTH
    assert len(clock.asked) == 1


@pytest.mark.parametrize("seconds", [0, -1, "fast", None, float("inf"), float("nan")])
def test_seconds_that_cannot_be_are_timed_again(clock: Clock, tmp_path: Path, seconds: Any) -> None:
    choose(tmp_path)
    content = json.loads((tmp_path / "hardware.json").read_text())
    (entry,) = content.values()
    assert entry["float32 channels_last"] == [0.7, 0.0]
    entry["float32 channels_last"] = [seconds, 0]
    (tmp_path / "hardware.json").write_text(json.dumps(content))
    assert choose(tmp_path) == BOTH
    assert len(clock.asked) == 2


def test_where_nothing_can_be_kept_it_is_timed_every_time(clock: Clock, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for _ in range(2):
        assert choose(tmp_path / "file") == BOTH
    assert len(clock.asked) == 2


# --- compilation ------------------------------------------------------------------------------------------------------

COMPILED = BOTH._replace(compile=True)


@pytest.mark.parametrize(
    ("compiled", "compilation", "steps", "tried", "expected"),
    [
        # 0.3 s for 4 images are 2.4 s for a batch of 32: 1500 steps take an hour.
        (0.2, 10, 1490, False, False),  # too short to try
        (0.2, 10, 1510, True, True),  # saves 0.8 s a step, 1208 s
        (0.2, 1207, 1510, True, True),
        (0.2, 1209, 1510, True, False),
        (0.2, 1209, 1520, True, True),
        (0.29, 0, 10**6, True, False),  # 3 % are noise
        (0.31, 0, 10**6, True, False),
        (None, 0, 10**6, True, False),  # no compiler
    ],
)
def test_compiled_is_what_pays_back_within_the_run(
    clock: Clock, tmp_path: Path, compiled: float | None, compilation: float, steps: int, tried: bool, expected: bool
) -> None:
    clock.compilation = compilation
    if compiled is not None:
        clock.seconds[COMPILED] = compiled
    assert choose(tmp_path, steps=steps) == BOTH._replace(compile=expected)
    assert clock.asked[1:] == [[BOTH, COMPILED]] * tried


def test_the_compiler_is_tried_once_and_each_run_decides_for_itself(clock: Clock, tmp_path: Path) -> None:
    clock.seconds[COMPILED] = 0.2
    clock.compilation = 1209
    compiled = [choose(tmp_path, steps=steps).compile for steps in (1510, 1520, 10, 10**6)]
    assert compiled == [False, True, False, True]
    assert len(clock.asked) == 2


def test_a_gpu_tries_the_compiler_for_shorter_runs(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    clock.seconds[COMPILED] = 0.2
    gpu = torch.device("cuda")
    assert [choose(tmp_path, steps=steps, device=gpu).compile for steps in (990, 1010)] == [False, True]  # of 0.3 s


def test_with_precision_and_layout_fixed_compilation_is_decided_for_them(clock: Clock, tmp_path: Path) -> None:
    clock.seconds[LAST._replace(compile=True)] = 0.3
    assert choose(tmp_path, trainer("32", True), steps=10**6) == LAST._replace(compile=True)
    assert clock.asked == [[LAST], [LAST, LAST._replace(compile=True)]]


def test_compilation_that_is_fixed_is_not_timed(clock: Clock, tmp_path: Path) -> None:
    assert choose(tmp_path, trainer(compile=True)) == COMPILED
    assert choose(tmp_path, trainer(compile=False), steps=10**9) == BOTH
    assert clock.asked == [[PLAIN, LAST, HALF, BOTH]]


# --- for real ---------------------------------------------------------------------------------------------------------


def test_steps_are_timed_on_a_copy_and_leave_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "_precisions", lambda device: ["32", "bf16"])
    backbone = Backbone("test_resnet.r160_in1k", None, 32).eval().requires_grad_(False)
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    chosen = choose_compute(trainer(), lambda: backbone, "test_resnet", 32, 4, 10, CPU, tmp_path)
    assert torch.equal(torch.rand(3), expected)
    assert not chosen.compile
    assert backbone.memory_format == torch.contiguous_format
    assert all(torch.equal(value, before[name]) for name, value in backbone.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in backbone.parameters())
    (timings,) = json.loads((tmp_path / "hardware.json").read_text()).values()
    assert set(timings) == {"float32", "float32 channels_last", "bf16", "bf16 channels_last"}
    assert all(0 < step < 10 for step, _ in timings.values())


def test_what_cannot_be_computed_is_left_out(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def no_half(precision: Any, device: Any) -> Any:
        if precision == "bf16":
            raise RuntimeError("no kernel\nfor this")
        return autocast(precision, device)

    monkeypatch.setattr(hardware, "autocast", no_half)
    backbone = Backbone("test_resnet.r160_in1k", None, 32)
    with caplog.at_level(logging.INFO):
        assert set(hardware.time_steps(backbone, [PLAIN, BOTH], (2, 3, 32, 32), CPU)) == {PLAIN}
    assert caplog.messages == ["bf16 channels_last cannot be timed: no kernel for this"]


@pytest.mark.slow
def test_a_compiled_step_is_timed_with_what_came_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """With torch's tracer, but without the minute of its C++ compiler."""
    traced = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: traced(module, backend="eager"))
    backbone = Backbone("test_resnet.r160_in1k", None, 32)
    choices = [PLAIN, PLAIN._replace(compile=True)]
    timings = hardware.time_steps(backbone, choices, (4, 3, 32, 32), CPU)
    assert list(timings) == choices
    assert timings[choices[1]].compilation > 10 * timings[choices[1]].step
    assert backbone.body._compiled_call_impl is None


@pytest.mark.parametrize(
    ("precision", "dtype"), [("32", torch.float32), ("bf16", torch.bfloat16), ("16", torch.float16)]
)
def test_autocast_computes_in_the_precision_that_was_chosen(precision: Any, dtype: torch.dtype) -> None:
    with autocast(precision, CPU):
        assert torch.nn.Linear(4, 4)(torch.rand(2, 4)).dtype == dtype


def test_tf32_is_for_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    before = torch.get_float32_matmul_precision()
    try:
        allow_tf32(CPU)
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark) == (before, False)
        allow_tf32(torch.device("cuda"))
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark) == ("high", True)
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's")
@pytest.mark.slow
def test_freed_memory_is_kept_for_the_next_step() -> None:
    """Blocks of 64 MB, taken and freed again and again: their pages are asked of the system once."""
    code = """
import resource, torch
from defectcls.model.hardware import keep_freed_memory
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
    trainer = build_trainer(TrainerSettings(**settings, channels_last=False, compile=False), tmp_path, None, [])
    found = []
    for context in (trainer.precision_plugin.forward_context(), autocast(precision, CPU)):
        with context:
            found.append(torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu"))
            assert torch.nn.functional.linear(torch.ones(1, 3), torch.ones(2, 3)).dtype == PRECISIONS[precision][1]
    assert found[0] == found[1]


@pytest.mark.parametrize("accelerator", ["cpu", "auto"])
def test_float16_is_not_computed_on_a_cpu(monkeypatch: pytest.MonkeyPatch, accelerator: Any) -> None:
    """Lightning would compute in bf16 in its place, and a predictor in float16."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    asked = TrainerSettings.model_construct(precision="16", accelerator=accelerator)
    with pytest.raises(UserError, match=r"^trainer.precision=16 is for GPUs, and this is a CPU: add "):
        device_of(asked)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: accelerator == "auto")
    if accelerator == "auto":
        assert device_of(asked) == torch.device("cuda", 0)


BEGUN = {"precision": "bf16", "channels_last": True, "compile": False}


@pytest.mark.parametrize(
    ("device", "asked", "expected"),
    [
        ("cpu", {}, BEGUN),
        ("cpu", {"precision": "32"}, BEGUN | {"precision": "32"}),  # what is typed wins
        (
            "cpu",
            {"channels_last": False, "compile": True},
            {"precision": "bf16", "channels_last": False, "compile": True},
        ),
        ("cuda", {}, dict.fromkeys(BEGUN, "auto")),  # chosen anew for another device
        ("cuda", {"precision": "32"}, {"precision": "32", "channels_last": "auto", "compile": "auto"}),
    ],
)
def test_a_run_goes_on_as_it_began_where_that_can_be(
    tmp_path: Path, device: str, asked: dict[str, Any], expected: dict[str, Any]
) -> None:
    config = composed("dataset=synthetic", "dataset.cache=device", "trainer=cpu")
    config["trainer"] |= asked
    of_then = {"trainer": config["trainer"] | BEGUN | {"accelerator": "gpu", "devices": 8}, "dataset": {"depth": "12"}}
    found = as_begun(TrainSettings(**config), {"config": of_then, "device": device}, CPU)
    trainer = found.trainer.model_dump()
    assert {key: trainer[key] for key in BEGUN} == expected
    assert (trainer["accelerator"], trainer["devices"]) == ("cpu", 1)
    assert (found.dataset.cache, found.dataset.depth) == ("auto", "12")  # there is no memory of a GPU
