"""What five folds cost, in passes of the backbone: python experiments/defaults/folds.py [<rounds>] -> folds.csv

Whole commands with an empty cache, on a machine that does nothing else: a pass of the default backbone over the 480
screws of MVTec, with maps, of pixels in memory; and `crossval folds=5` on them from the files to the report, with and
without the import of torch, lightning and timm.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch

SCREWS = [
    "dataset=mvtec",
    "dataset.categories=[screw]",
    "logger=csv",
    "inspect.heat_maps=false",
    "inspect.robustness=false",
]


def one_pass() -> float:
    """Seconds."""
    import defectcls
    from defectcls.config import plain
    from defectcls.data.threads import keep_freed_memory
    from defectcls.settings import TrainSettings
    from defectcls.training.build import build_classifier, build_data, with_compute

    keep_freed_memory()  # as a run does
    settings = with_compute(TrainSettings(**plain(defectcls.compose(*SCREWS, "evaluation=crossval"))))
    data = build_data(settings)
    look, photos = (
        build_classifier(settings, data).backbone.inference(with_map=True),
        data.images[np.arange(len(data.samples))],
    )
    look(photos[:16])
    began = time.perf_counter()
    for batch in photos.split(settings.batch_size):
        look(batch)
    return time.perf_counter() - began


def seconds(*arguments: str, cache: Path) -> tuple[float, str]:
    """That a Python process takes, and what it says."""
    environment, began = os.environ | {"DEFECTCLS_CACHE": str(cache)}, time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, check=True)
    return time.perf_counter() - began, done.stdout


def main(rounds: int) -> None:
    from defectcls.training.results import provenance

    rows = []
    for number in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            cache, run = Path(folder, "cache"), Path(folder, "run")
            imported, _ = seconds("-c", "import torch, lightning, timm", cache=cache)
            _, said = seconds(__file__, "pass", cache=Path(folder, "other"))
            command = ["-m", "defectcls.crossval", *SCREWS, "folds=5", f"hydra.run.dir={run}"]
            whole, _ = seconds(*command, cache=cache)
        row = {"round": number, "import": imported, "pass": float(said.split()[-1]), "crossval": whole}
        row |= {"passes": whole / row["pass"], "passes_without_import": (whole - imported) / row["pass"]}
        rows.append(row)
        print(row, flush=True)
    about = provenance(0, {}, torch.device("cpu"))
    versions = {f"version_{name}": version for name, version in about["versions"].items()}
    table = pd.DataFrame(rows).assign(commit=about["commit"], hardware=about["hardware"], **versions)
    table.to_csv(Path(__file__).with_name("folds.csv"), index=False)


if __name__ == "__main__":
    if sys.argv[1:] == ["pass"]:
        print(one_pass())
    else:
        main(int(sys.argv[1]) if sys.argv[1:] else 3)
