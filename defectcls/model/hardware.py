"""What this machine gains from: precision, memory layout and compilation, timed once for a network and remembered."""

import contextlib
import copy
import ctypes
import logging
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
from pydantic import Field, TypeAdapter, ValidationError

from defectcls.errors import UserError
from defectcls.files import locked, written_whole
from defectcls.model.backbone import Backbone
from defectcls.model.graph import Layers
from defectcls.settings import TrainerSettings
from defectcls.training.provenance import device_name

log = logging.getLogger(__name__)

Precision = Literal["32", "bf16", "16"]
PRECISIONS: dict[str, tuple[Any, torch.dtype]] = {  # in Lightning's words, and the type that autocast computes in
    "32": ("32-true", torch.float32),
    "bf16": ("bf16-mixed", torch.bfloat16),
    "16": ("16-mixed", torch.float16),
}
GAIN = 1.05  # what is less than so many times as fast is within the noise of a few steps
ROUNDS = 5  # at most, and as many as fit into
ENOUGH_S = 3.0
CPU_IMAGES = 4  # in a step that is timed; on a GPU the whole batch, since a small one times little but the launches
# Seconds of a run that is worth trying the compiler for. On two cores it took 108 s for mobilenetv2 and gained 2 % of a
# training step, for resnet18 nothing; on a GPU it takes less and may gain more.
WORTH_COMPILING_S = {"cuda": 300.0, "cpu": 3600.0}

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8  # of glibc's malloc.h


class Compute(NamedTuple):
    """How a network is computed: type of autocast (32: none), images as NHWC in memory, torch.compile."""

    precision: Precision
    channels_last: bool
    compile: bool

    def __str__(self) -> str:
        layout, compiled = " channels_last" * self.channels_last, " compiled" * self.compile
        return {"32": "float32", "bf16": "bf16", "16": "float16"}[self.precision] + layout + compiled


class Timing(NamedTuple):
    """Seconds of a step, see `_step`, and of the compilation before the first."""

    step: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    compilation: Annotated[float, Field(ge=0, allow_inf_nan=False)]


FILE = "hardware.json"
MEMORY = TypeAdapter(dict[str, dict[str, Timing]])


def choose_compute(
    trainer: TrainerSettings,
    build: Callable[[], Backbone],
    name: str,
    image_size: int,
    batch_size: int,
    steps: int,
    device: torch.device,
    memory: Path,
) -> Compute:
    """What the settings fix, and of the rest the plainest that is as fast as the fastest, but for 5 %.

    Compiled is what is faster even with the compilation. A few training steps of the backbone are timed, once
    for a device, a number of threads, a torch version, a model and an image size: `memory`/hardware.json keeps them.

    Args:
        build: makes the backbone, trained or not, if it has to be timed.
        name: of the model.
        image_size: side in pixels.
        steps: of the optimiser that the run expects.
        memory: folder; what cannot be kept there is timed again.
    """
    precisions = _precisions(device) if trainer.precision == "auto" else [trainer.precision]
    layouts = [False, True] if trainer.channels_last == "auto" else [trainer.channels_last]
    candidates = [Compute(precision, layout, False) for precision in precisions for layout in layouts]
    if len(candidates) == 1 and trainer.compile != "auto":
        return candidates[0]._replace(compile=trainer.compile)

    images = max(2, batch_size if device.type == "cuda" else min(batch_size, CPU_IMAGES))
    shape = (images, 3, image_size, image_size)
    where = f"{name} at {image_size} px on {device_name(device)}"
    key = f"{where}, {images} images, torch {torch.__version__}"
    known = _recall(memory).get(key, {})
    before = dict(known)
    times = _times(candidates, known, build, shape, device)
    fastest = min((timing.step for timing in times.values()), default=0)
    chosen = next((choice for choice in times if times[choice].step < GAIN * fastest), candidates[-1])
    if trainer.compile == "auto" and chosen in times:
        scaled = steps * batch_size / images
        if scaled * times[chosen].step > WORTH_COMPILING_S.get(device.type, math.inf):
            times |= _times([chosen, chosen._replace(compile=True)], known, build, shape, device)
            chosen = chosen._replace(compile=_pays_back(chosen, times, scaled))
    if known != before:
        _remember(memory, key, known)
        gains = [f"{times[one].step / times[chosen].step:.2f} x as fast as {one}" for one in times if one != chosen]
        log.info("timed %s: %s", where, ", ".join([f"chose {chosen}", *gains]))
    return chosen if trainer.compile == "auto" else chosen._replace(compile=trainer.compile)


def _pays_back(chosen: Compute, times: dict[Compute, Timing], steps: float) -> bool:
    compiled = times.get(chosen._replace(compile=True))
    if compiled is None or compiled.step * GAIN > times[chosen].step:
        return False
    return compiled.compilation < steps * (times[chosen].step - compiled.step)


def find_device(accelerator: str) -> torch.device:
    """What `auto`, `cpu` or `gpu` is on this machine: without a GPU the CPU in any case."""
    if accelerator != "cpu" and torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if accelerator != "cpu" and torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def allow_tf32(device: torch.device) -> None:
    """On a GPU: what autocast leaves in float32 is multiplied with 10 bits, by the kernels that are fastest here."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True


def keep_freed_memory(one_heap: bool = False) -> None:
    """Let glibc keep large blocks for the next step: Linux, given them back, would clear every page of them again.

    A ResNet18 training step on a CPU is a sixth shorter so, a MobileNetV2 forward pass a quarter (medians of a trial
    with two threads); the most that a process takes grows by a twentieth.

    Args:
        one_heap: for all threads. Else each has one of its own, and what it keeps the others cannot use: a process that
            decodes without end would grow for thousands of photos.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library has no such function
        tune = ctypes.CDLL(None).mallopt
        heaps = ((M_ARENA_MAX, 1),) if one_heap else ()
        for parameter, value in (*heaps, (M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 2**28)):
            tune(parameter, value)


def autocast(precision: Precision, device: torch.device) -> torch.autocast:
    """Computes in half precision what bears it."""
    return torch.autocast(device.type, PRECISIONS[precision][1], enabled=precision != "32")


def refuse_float16(precision: str, device: torch.device, asked: str, key: str) -> None:
    """Where Lightning, on a CPU, would compute in bf16 in its place.

    Raises:
        UserError: `asked` is for GPUs, and `key` changes it.
    """
    if precision == "16" and device.type == "cpu":
        raise UserError(f"{asked} is for GPUs, and this is a CPU: add {key}=32 or {key}=bf16")


def _precisions(device: torch.device) -> list[Precision]:
    """What the device computes in, plainest first; what it only emulates is slow, even to try."""
    if device.type == "cuda":
        return ["32", "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "16"]
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    if device.type == "cpu" and any(getattr(torch.cpu, check, bool)() for check in checks):
        return ["32", "bf16"]
    return ["32"]


def _times(
    choices: list[Compute],
    known: dict[str, Timing],
    build: Callable[[], Backbone],
    shape: tuple[int, ...],
    device: torch.device,
) -> dict[Compute, Timing]:
    """Timings of the choices, those that can be computed; what is not known is timed and added to it."""
    if any(str(choice) not in known for choice in choices):
        timed = time_steps(build(), choices, shape, device)
        known.update({str(choice): timing for choice, timing in timed.items()})
    return {choice: known[str(choice)] for choice in choices if str(choice) in known}


def time_steps(
    backbone: Backbone, choices: list[Compute], shape: tuple[int, ...], device: torch.device
) -> dict[Compute, Timing]:
    """Steps on images of a shape, timed in rounds of all choices; without those that cannot be computed.

    The fastest round counts: what else runs on the machine can only slow a step.
    """
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        image = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
        networks = {
            compiled: copy.deepcopy(backbone).to(device).requires_grad_()
            for compiled in {choice.compile for choice in choices}
        }
        if True in networks:
            networks[True].body.compile()
        first: dict[Compute, float] = {}
        evaluators: dict[Compute, Layers] = {}
        for choice in choices:
            try:
                evaluators[choice] = _lay_out(networks[choice.compile], choice).for_evaluation()
                first[choice] = _step(networks[choice.compile], evaluators[choice], choice, image)
            except Exception as error:  # out of memory, no kernel, or whatever a compiler trips over
                log.info("%s cannot be timed: %s", choice, " ".join(str(error).split())[:200])
        rounds: list[dict[Compute, float]] = []
        start = time.perf_counter()
        while not rounds or (len(rounds) < ROUNDS and time.perf_counter() - start < ENOUGH_S):
            rounds.append(
                {choice: _step(networks[choice.compile], evaluators[choice], choice, image) for choice in first}
            )
    if True in networks:
        torch.compiler.reset()  # the run compiles for its own batches
    steps = {choice: min(one[choice] for one in rounds) for choice in first}
    return {choice: Timing(step, max(0.0, first[choice] - step)) for choice, step in steps.items()}


def _lay_out(network: Backbone, choice: Compute) -> Backbone:
    network.memory_format = torch.channels_last if choice.channels_last else torch.contiguous_format
    network.body.to(memory_format=network.memory_format)
    return network


def _step(network: Backbone, evaluate: Layers, choice: Compute, image: torch.Tensor) -> float:
    """Seconds of a training step and of an evaluation of the same images: a run does about as much of either."""
    _lay_out(network, choice)
    _synchronise(image.device)
    start = time.perf_counter()
    with autocast(choice.precision, image.device):
        features = network.train()(image)
    features.float().square().mean().backward()
    network.zero_grad()
    with torch.inference_mode(), autocast(choice.precision, image.device):
        evaluate(image)
    _synchronise(image.device)
    return time.perf_counter() - start


def _synchronise(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _recall(memory: Path) -> dict[str, dict[str, Timing]]:
    try:
        return MEMORY.validate_json((memory / FILE).read_bytes())
    except (OSError, ValidationError):  # none yet, or not ours
        return {}


def _remember(memory: Path, key: str, known: dict[str, Timing]) -> None:
    try:
        memory.mkdir(parents=True, exist_ok=True)
        with locked(memory / "hardware.lock", f"another job writes to {memory}"), written_whole(memory / FILE) as part:
            part.write_bytes(MEMORY.dump_json({**_recall(memory), key: known}, indent=1))
    except (OSError, NotImplementedError) as error:  # not writable; a file system that knows no locks
        log.info("not remembered: %s", error)
