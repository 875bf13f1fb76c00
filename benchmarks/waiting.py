"""What threads that wait cost: not spinning at all, or for a moment, beside the default; alone and with company.

    python -m benchmarks.waiting --write experiments/answer/waiting.csv

A MobileNetV2 of random weights on the CPU: training steps and forward passes of one batch that stays in memory.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from benchmarks.results import Line, keep, spread

POLICIES: dict[str, dict[str, str]] = {  # environment variables of the OpenMP that PyTorch comes with, GNU's
    "default": {},  # threads spin for some 300,000 turns and then sleep
    "passive": {"OMP_WAIT_POLICY": "passive"},  # they sleep at once
    "short": {"GOMP_SPINCOUNT": "10000"},
}
BUSY = "while True: pass"
IMAGES, SIDE = 32, 224
WARM_UP, STEPS = 2, 5
FORWARD_STEPS = 4 * STEPS


def measure() -> dict[str, float]:
    """Images a second of training steps and of forward passes, in this process."""
    import timm
    import torch

    torch.manual_seed(0)
    images, targets = torch.randn(IMAGES, 3, SIDE, SIDE), torch.randint(2, (IMAGES,))
    images = images.contiguous(memory_format=torch.channels_last)
    network = timm.create_model("mobilenetv2_100", num_classes=2).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), fused=True)

    def step() -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(images), targets).backward()
        optimizer.step()

    @torch.inference_mode()
    def forward() -> None:
        network(images)

    found = {"step": _rate(step, STEPS)}
    network.eval()
    return found | {"forward": _rate(forward, FORWARD_STEPS)}


def _rate(work: Callable[[], None], times: int) -> float:
    for _ in range(WARM_UP):
        work()
    began = time.perf_counter()
    for _ in range(times):
        work()
    return times * IMAGES / (time.perf_counter() - began)


def turn(policy: str, busy: int) -> dict[str, float]:
    """`measure` in a process of its own.

    Args:
        busy: other processes that compute meanwhile.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "KMP_"))}
    environment |= POLICIES[policy]
    others = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(busy)]
    try:
        command = [sys.executable, "-m", "benchmarks.waiting", "--here"]
        return json.loads(subprocess.run(command, env=environment, capture_output=True, check=True, text=True).stdout)
    finally:
        for other in others:
            other.kill()
            other.wait()


def summarise(turns: pd.DataFrame) -> list[Line]:
    """Images a second of each, and how many times as fast it is as by default.

    Args:
        turns: `company`, `policy`, `round`, and what `measure` gives.
    """
    lines: list[Line] = []
    for (company, work), rows in turns.melt(["company", "policy", "round"]).groupby(["company", "variable"]):
        table = rows.pivot(index="round", columns="policy", values="value")
        lines += [spread(f"{work}, {company}, {policy}", table[policy], "img/s") for policy in POLICIES]
        for policy in list(POLICIES)[1:]:
            lines.append(spread(f"{work}, {company}, {policy} / default", table[policy] / table["default"], "times"))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", type=Path, help="CSV that the results are added to")
    parser.add_argument("--here", action="store_true", help="print what this process reaches, as JSON, and no more")
    given = parser.parse_args()
    if given.here:
        print(json.dumps(measure()))
        return
    companies = {"alone": 0, "beside two busy processes": 2}
    order = list(itertools.product(range(given.rounds), companies, POLICIES))
    rows = [
        {"company": company, "policy": policy, "round": number} | turn(policy, companies[company])
        for number, company, policy in order
    ]
    keep(summarise(pd.DataFrame(rows)), {"model": "mobilenetv2_100"}, 0, given.write)


if __name__ == "__main__":
    main()
