"""How long a run takes from its command to its first step, once its images are in the cache."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from defectcls.config import run_verb

REPLACED = ("hydra.", "finetune=", "logger=")


def start(turns: Any, settings: Any, folder: Path) -> None:  # noqa: ARG001  as all contenders
    """The benchmark's own command as a training run, in a process of its own that ends after the first step.

    It trains from the first stage on, so the probe does not count; what a run evaluates before it trains does.
    """
    given = [word for word in sys.argv[1:] if not word.startswith(REPLACED)]
    turn = None
    while turns.wait(turn):
        own = ["finetune=full", "logger=csv", f"hydra.run.dir='{folder / 'run'}'"]
        command = [sys.executable, "-m", "defectcls.benchmarking.start", *given, *own]
        began = time.time()
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError((done.stderr.splitlines() or ["it ended without a word"])[-1])
        turn = {"images": None, "seconds": float(done.stdout.splitlines()[-1]) - began}


def first_step(config: dict[str, Any], folder: Path) -> None:
    """Train until the optimiser has made one step, and print the time."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    from defectcls.settings import TrainSettings
    from defectcls.train import train

    def leave(*_: object) -> None:
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()
        print(time.time(), flush=True)
        os._exit(0)

    register_optimizer_step_post_hook(leave)
    train({name: value for name, value in config.items() if name in TrainSettings.model_fields}, folder)


if __name__ == "__main__":
    run_verb("benchmark", first_step)
