"""A user's mistake becomes one sentence, and so does a signal; a real bug keeps its traceback."""

import difflib
import errno
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

FULL_ERROR = "HYDRA_FULL_ERROR"  # environment variable: 1 shows the traceback of a mistake
AGAIN = "the same command begins anew"
FULL = (errno.ENOSPC, errno.EDQUOT)
REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENAMETOOLONG)
IMPORTING = "<frozen importlib._bootstrap>"
AGAIN_S = 0.05  # until a stop that came during an import is tried again
SAME_S = 1.0  # signals that arrive within so many seconds are one: a terminal sends it, and the sweep to its jobs too
EXTRAS = {  # what `pip install defectcls` alone does not bring, by the extra that does
    "train": "torch torchvision lightning timm torchmetrics sklearn cleanlab matplotlib wandb pooch threadpoolctl onnx",
    "runtime": "onnxruntime",
    "openvino": "openvino",
    "serve": "fastapi uvicorn multipart sqlalchemy prometheus_client",
    "line": "av httpx paho psycopg",
    "ray": "ray",
    "table": "pyarrow",
    "tune": "optuna",
    "dashboard": "wandb_workspaces",
}
LOST = re.compile("closed by peer|reset by peer|broken pipe|connection refused|gloo|NCCL", re.IGNORECASE)
INDETERMINATE = re.compile("(.+) does not have a deterministic implementation")
OUT_OF_MEMORY = re.compile("out of memory|can't allocate memory|not enough memory|ALLOC_FAILED", re.IGNORECASE)


class UserError(Exception):
    """Something the user can mend. The message is one sentence: what was given, what is allowed, what to type."""


class Stopped(BaseException):
    """Ctrl-C or SIGTERM: no error, so that it passes whoever handles those; Lightning keeps KeyboardInterrupt."""


@contextmanager
def stoppable() -> Iterator[list[int]]:
    """The first Ctrl-C or SIGTERM raises `Stopped` in the main thread, the next one kills.

    Yields:
        The signal's number, once it has come: whatever is raised then may be the signal in another guise.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # where no handler can be set
        yield received
        return
    owner, since, outside = os.getpid(), 0.0, sys._getframe(2)

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal since
        here = os.getpid() == owner  # else in a process that loads images: its owner ends it
        if here and not received:
            received.append(number)
            since = time.monotonic()
            leave(number, frame)
        elif time.monotonic() - since > SAME_S and (here or number != signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def leave(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  as signal calls it
        while frame is not None and frame is not outside:
            if frame.f_code.co_filename == IMPORTING:  # which may swallow what is raised there, or abort
                signal.setitimer(signal.ITIMER_REAL, AGAIN_S)
                return
            frame = frame.f_back
        raise Stopped

    handlers = {signal.SIGINT: stop, signal.SIGTERM: stop, signal.SIGALRM: leave}
    before = {each: signal.signal(each, handler) for each, handler in handlers.items()}
    try:
        yield received
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for each, handler in before.items():
            signal.signal(each, handler)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`, did you mean 'resnet18'?` for a near miss of a known word, else the empty string."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f", did you mean '{near[0]}'?" if near else ""


def explain(error: BaseException, way_on: str = AGAIN) -> str | None:
    """One sentence for what a user can mend, None for a bug.

    Args:
        way_on: what goes on once it is mended, such as `resume=<run folder> goes on`.
    """
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.errno in FULL:
        return f"no space left on the disk; what was written is kept: make room, then {way_on}"
    if isinstance(error, OSError) and error.errno in REFUSED and error.filename:
        place = "let this user write there, or give another place, such as hydra.run.dir=<folder>"
        return f"{error.filename} cannot be used ({error.strerror}): {place}"
    if isinstance(error, ModuleNotFoundError):
        extra = next((extra for extra, modules in EXTRAS.items() if error.name in modules.split()), None)
        return extra and f"this needs {error.name}: pip install 'defectcls[{extra}]'"
    reason = (str(error) or type(error).__name__).partition("\n")[0]
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and OUT_OF_MEMORY.search(reason)):
        where = "the GPU's" if re.search("CUDA|CUBLAS|CUDNN|MPS", reason) else "this machine's"
        others = "end what else takes it, or lower batch_size or image_size"
        return f"{where} memory is full: {others} ({reason})"
    if isinstance(error, RuntimeError) and (kernel := INDETERMINATE.match(reason)):
        return f"trainer.deterministic=true has no kernel for {kernel[1]}: take =warn, or model.pool=fastcatavgmax"
    if isinstance(error, RuntimeError) and LOST.search(str(error)):
        return f"another process of this run has ended, and said why: {way_on} ({reason})"
    if type(error).__name__ in ("OperationalError", "StorageInternalError", "_InactiveRpcError"):  # of whichever driver
        return f"the database cannot be used ({one_line(error)}): {way_on}"
    if type(error).__module__ == "ray.exceptions" and "TaskError" not in type(error).__name__:  # whose bug is one
        return f"Ray has lost a task ({one_line(error)}): {way_on}"
    # Pydantic's, which is not imported for its sake: --help has to be quick. One called Settings is W&B's own.
    wrong_value = type(error).__name__ == "ValidationError" and getattr(error, "title", "Settings") != "Settings"
    return _wrong_value(error) if wrong_value else None


def one_line(error: BaseException) -> str:
    """What a foreign error says, or a database's driver, in 200 characters; its name where it says nothing."""
    return " ".join(str(getattr(error, "orig", None) or error).split())[:200] or type(error).__name__


def first_mistake(error: Any) -> str:
    """What a pydantic error says first, and where, dotted."""
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")


def _wrong_value(error: Any) -> str:
    """A pydantic error: the key as one types it, the value, what is allowed."""
    every = error.errors(include_url=False)
    first = every[0]
    alike = (one["msg"].removeprefix("Value error, ") for one in every if one["loc"][:1] == first["loc"][:1])
    allowed = "; ".join(dict.fromkeys(alike)).replace("Input should be", "it has to be")
    allowed = re.sub(", unable to parse string as an? (integer|number)", "", allowed)
    # Steps of a union's branches, such as 'constrained-float', are no part of the key.
    steps = [str(step) for step in first["loc"] if str(step).isidentifier() and not str(step).startswith("function")]
    if not steps:  # of several keys together
        return allowed
    prefix = "" if error.title.endswith("Settings") else "dataset."
    given = "" if first["type"] in ("value_error", "missing") else f"={first['input']}"
    return f"{prefix}{'.'.join(steps)}{given}: {allowed}"
