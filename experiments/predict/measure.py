"""Memory and speed of `predict`: python experiments/predict/measure.py <name> <run folder> <folder of photos> <count> …

Appends to measured.csv beside this file: for each count the verb in a process of its own, and then rounds in which it
takes turns with the bare network on a batch that stays in memory, the ceiling. Photos are repeated where a count asks
for more.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

HERE = Path(__file__).parent
BATCH_SIZE, ROUNDS = 64, 5
WARM_UP = 1000  # photos


def table_of(photos: Path, count: int, folder: Path) -> Path:
    """The input: a table of `count` photos."""
    from defectcls.data.samples import images_in

    names = itertools.islice(itertools.cycle(images_in(photos, "")), count)
    table = folder / "photos.csv"
    pd.DataFrame({"path": list(names)}).to_csv(table, index=False)
    return table


def memory(run: Path, photos: Path, count: int) -> dict[str, float]:
    """MiB of the verb when the first thousand photos are written, and at most; photos per second of all of it."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        given = [f"checkpoint={run}", f"input={table_of(photos, count, folder)}", f"root={photos}"]
        given += [f"hydra.run.dir={folder / 'out'}", f"batch_size={BATCH_SIZE}", "device=cpu"]
        verb = subprocess.Popen([sys.executable, "-m", "defectcls.predict", *given], stdout=subprocess.DEVNULL)
        part, seen = folder / "out" / "predictions.csv.part", []
        while verb.poll() is None:
            status = Path(f"/proc/{verb.pid}/status").read_text(encoding="utf-8")
            resident = [int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmRSS")]
            if part.is_file() and resident:
                seen.append((part.read_bytes().count(b"\n"), resident[0]))
            time.sleep(0.2)
        summary = json.loads((folder / "out" / "summary.json").read_text(encoding="utf-8"))
    early = [size for rows, size in seen if rows <= WARM_UP]
    return {"first_mib": max(early), "most_mib": max(size for _, size in seen), "verb": summary["images_per_second"]}


def speed(run: Path, photos: Path, count: int) -> dict[str, float]:
    """Photos per second of predicting and of the bare network, medians of rounds in alternation, and their ratio."""
    import numpy as np
    import torch

    from defectcls.data.images import decode
    from defectcls.data.samples import images_in
    from defectcls.data.threads import keep_freed_memory
    from defectcls.deployment.predictor import load
    from defectcls.model.checkpoint import load_trained
    from defectcls.model.hardware import autocast

    keep_freed_memory(one_heap=True)
    predictor, trained = load(run, "cpu"), load_trained(run, "cpu")
    trained.network.inference()
    paths = [f"{photos}/{name}" for name in itertools.islice(itertools.cycle(images_in(photos, "")), count)]
    how = predictor.image_size, predictor.resize, predictor.depth
    some = torch.from_numpy(np.stack([decode(path, *how) for path in paths[:BATCH_SIZE]]))

    @torch.inference_mode()
    def forward() -> None:
        for _ in range(count // BATCH_SIZE):
            with autocast(trained.settings.trainer.precision, trained.device):
                trained.network(some)

    def predict() -> None:
        for _ in predictor.stream(paths[: count // BATCH_SIZE * BATCH_SIZE], BATCH_SIZE):
            pass

    for _ in predictor.stream(paths[:WARM_UP], BATCH_SIZE):
        pass
    rates: dict[str, list[float]] = {"forward": [], "predict": []}
    for _ in range(ROUNDS):
        for name, contender in (("forward", forward), ("predict", predict)):
            start = time.perf_counter()
            contender()
            rates[name].append(count // BATCH_SIZE * BATCH_SIZE / (time.perf_counter() - start))
    ratios = [mine / bare for mine, bare in zip(rates["predict"], rates["forward"], strict=True)]
    found = {name: statistics.median(values) for name, values in rates.items()}
    return found | {"ratio": statistics.median(ratios), "ratio_least": min(ratios), "ratio_most": max(ratios)}


def table(measured: pd.DataFrame) -> str:
    """What README.md shows."""
    lines = [
        "| photos | model | predicted | resident after 1,000, MiB | at most, MiB | photos/s | bare network/s | ratio |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in measured.itertuples():
        ratio = f"{row.ratio:.2f} ({row.ratio_least:.2f} to {row.ratio_most:.2f})"
        cells = [row.name, row.model, f"{row.predicted:,}", f"{row.first_mib:.0f}", f"{row.most_mib:.0f}"]
        lines.append(f"| {' | '.join([*cells, f'{row.predict:.0f}', f'{row.forward:.0f}', ratio])} |")
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name")
    parser.add_argument("run", type=Path)
    parser.add_argument("photos", type=Path)
    parser.add_argument("count", type=int, nargs="+")
    given = parser.parse_args()
    from defectcls.training.results import provenance

    trained = json.loads((given.run / "metrics.json").read_text(encoding="utf-8"))
    made = provenance(trained["seed"], {})
    rows = []
    for count in given.count:
        found = memory(given.run, given.photos, count) | speed(given.run, given.photos, min(count, 2000))
        about = {"name": given.name, "model": trained["model"], "image_size": trained["config"]["image_size"]}
        about |= {"predicted": count, "commit": made["commit"], "hardware": made["hardware"], "date": made["date"]}
        rows.append(about | found | {f"version_{name}": version for name, version in made["versions"].items()})
    file = HERE / "measured.csv"
    before = [pd.read_csv(file)] if file.is_file() else []
    measured = pd.concat([*before, pd.DataFrame(rows)], ignore_index=True)
    measured.to_csv(file, index=False)
    print(table(measured))
