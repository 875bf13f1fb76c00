"""From the command to the answer: whole processes in turns with the bare import of what they use.

    python -m benchmarks.answer --write experiments/answer/measured.csv

Needs bottles and transistors of MVTec in DEFECTCLS_DATA, MobileNetV2 in DEFECTCLS_WEIGHTS, and a machine that
does nothing else. The first round fills the stores and does not count; what is asked for the first time finds none.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from benchmarks.results import Line, keep, spread

BARE = "import torch, lightning, timm"
SETS = ["dataset=mvtec", "trainer=cpu", "logger=csv"]
PLAIN = ["model=mobilenetv2", "model.levels=[]", "model.head=linear", "image_size=224", "evaluation=holdout"]
BOTTLES = [*SETS, "dataset.categories=[bottle]", "finetune=probe", *PLAIN]
TRANSISTORS = [*SETS, "dataset.categories=[transistor]"]  # 313, and every setting at its default
AT_MOST = {  # times the CPU time of the bare import; of those beyond, seconds
    "train": 1.7,
    "crossval": 1.8,
    "predict": 1.2,
}
AT_MOST_WAIT = {"first": 8, "second": 2.5}  # times the bare import, as a person waits
AT_MOST_S = {"overview": 0.5, "help": 1.5, "typo": 1.5}


def commands(photos: str, run: Path, folder: Path) -> dict[str, list[str]]:
    """What is measured, by name: arguments of Python.

    Args:
        photos: to be predicted.
        run: folder of a trained run.
        folder: for what the commands write.
    """

    def verb(name: str, *arguments: str) -> list[str]:
        return ["-m", f"defectcls.{name}", *arguments, f"hydra.run.dir={folder / name}"]

    return {
        BARE: ["-c", BARE],
        "train": verb("train", *BOTTLES),
        "crossval": verb("crossval", *BOTTLES, "folds=5"),
        "predict": verb("predict", f"checkpoint={run}", f"input='{photos}'", "device=cpu"),
        "overview": ["-m", "defectcls"],
        "help": ["-m", "defectcls.train", "--help"],
        "typo": ["-m", "defectcls.train", "dataset=mvtek"],
        "first": ["-m", "defectcls.train", *TRANSISTORS, f"hydra.run.dir={folder / 'first'}"],
        "second": ["-m", "defectcls.train", *TRANSISTORS, f"hydra.run.dir={folder / 'second'}"],
    }


def timed(arguments: list[str], environment: Mapping[str, str] | None = None) -> dict[str, float]:
    """Seconds on the wall and of CPU that a Python process takes, with those that it starts and waits for; and its
    exit status. What it says is not shown.
    """
    quiet, began = subprocess.DEVNULL, time.perf_counter()
    process = subprocess.Popen([sys.executable, *arguments], stdin=quiet, stdout=quiet, stderr=quiet, env=environment)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "cpu_seconds": used.ru_utime + used.ru_stime, "status": process.returncode}


def summarise(turns: pd.DataFrame) -> list[Line]:
    """Of each command CPU time and time on the wall, and of the long ones how many times the bare import that is.

    Args:
        turns: `command`, `round`, and what `timed` gives.
    """
    table, lines = turns.pivot(index="round", columns="command"), []
    for name in turns["command"].unique():
        of = {"cpu_seconds": "CPU s", "seconds": "s"}
        lines += [spread(name, table[column, name], unit) for column, unit in of.items()]
        if name in AT_MOST | AT_MOST_WAIT:
            column = "seconds" if name in AT_MOST_WAIT else "cpu_seconds"
            ratio = table[column, name] / table[column, BARE]
            lines.append(spread(name, ratio, "times the import") | {"at_most": (AT_MOST | AT_MOST_WAIT)[name]})
        elif name in AT_MOST_S:
            lines[-1]["at_most"] = AT_MOST_S[name]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="that count")
    parser.add_argument("--write", type=Path, help="CSV that the results are added to")
    given = parser.parse_args()
    photos = f"{os.environ.get('DEFECTCLS_DATA', 'data')}/mvtec/bottle/test/**/*.png"
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for number in range(-1, given.rounds):
            run, folder = Path(temporary, "-1", "train"), Path(temporary, str(number))
            for name, arguments in commands(photos, run, folder).items():
                new = os.environ | {"DEFECTCLS_CACHE": str(folder / "cache")} if name in AT_MOST_WAIT else None
                rows.append({"command": name, "round": number} | timed(arguments, new))
                if (rows[-1]["status"] != 0) != (name == "typo"):
                    raise SystemExit(f"{name} failed: python {' '.join(arguments)}")
    turns = pd.DataFrame(rows)
    keep(summarise(turns[turns["round"] >= 0]), {"dataset": "mvtec bottle"}, 0, given.write)


if __name__ == "__main__":
    main()
