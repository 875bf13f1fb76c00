"""What a file needs to decide: the wheels of a fresh environment, the time from the start of Python, photos a second.

    PYTHONPATH=. python experiments/runtime/measure.py model.onnx <folder of photos> --run <the run it is of> --write

Processes in turns, those that are asked for speed with the environment of this one.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

from benchmarks.results import Line, number, spread
from defectcls.training.results import provenance

HERE = Path(__file__).parent
CHECKOUT = HERE.parents[1]
ROUNDS, TURNS = 9, 3
JUDGED = "import sys, defectcls; print(defectcls.load(sys.argv[1], device='cpu').predict(sys.argv[2])['score'][0])"
SPEED = """
import itertools, json, statistics, sys, time
from pathlib import Path
import numpy as np
import defectcls
from defectcls.data.threads import keep_freed_memory
model, photos, precision, count = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
keep_freed_memory(one_heap=True)
predictor = defectcls.load(model, device="cpu", precision=precision or None)
paths = list(itertools.islice(itertools.cycle(sorted(map(str, Path(photos).iterdir()))), count))
pixels = np.stack([predictor.read(path).pixels for path in paths[:32]])
rates = {}
def rate(name, work, size):
    work(size)
    start = time.perf_counter()
    for _ in range(count // size):
        work(size)
    rates[name] = count // size * size / (time.perf_counter() - start)
for size in (1, 32):
    rate(f"pixels, batch {size}", lambda size: predictor.judge(pixels[:size]), size)
    start = time.perf_counter()
    for _ in predictor.stream(paths, size):
        pass
    rates[f"files, batch {size}"] = count / (time.perf_counter() - start)
if model.endswith(".onnx"):
    import onnxruntime
    bare = onnxruntime.InferenceSession(model)
    given = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))
    for size in (1, 32):
        rate(f"pixels, batch {size}, bare", lambda size: bare.run(None, {"image": given[:size]}), size)
print(json.dumps(rates))
"""
COUNT = 128  # photos a process
HEAVY = ("torch", "torchvision", "lightning", "timm", "scikit-learn", "matplotlib")


def environment(folder: Path) -> tuple[Path, list[Line]]:
    """Python of a fresh environment with `defectcls[runtime]`, and what that took."""
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    python, wheels = folder / "venv/bin/python", folder / "wheels"
    pip = [python, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--wheel-dir", wheels, f"{CHECKOUT}[runtime]"], check=True)
    subprocess.run([*pip, "install", "--no-index", "--find-links", wheels, "defectcls[runtime]"], check=True)
    listed = subprocess.run([*pip, "freeze"], check=True, capture_output=True, text=True).stdout.casefold().splitlines()
    assert not [line for line in listed if line.startswith(HEAVY)]
    sizes = [file.stat().st_size / 1e6 for file in wheels.iterdir()]
    site = sum(file.stat().st_size for file in (folder / "venv/lib").rglob("*") if file.is_file()) / 1e6
    found = {"wheels": (sum(sizes), "MB"), "packages": (len(sizes), "packages"), "installed": (site, "MB")}
    return python, [spread(what, pd.Series([value]), unit) for what, (value, unit) in found.items()]


def timed(command: list[str | Path], folder: Path) -> tuple[float, float]:
    """Seconds that a process takes, and those of its cores."""
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, cwd=folder, env=variables, check=True, capture_output=True)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def speed(file: Path, run: Path, photos: Path) -> list[Line]:
    """Photos a second, of pixels in memory and of files that are decoded."""
    contenders = {"file": (file, ""), "checkpoint, float32": (run, "32"), "checkpoint, bf16": (run, "bf16")}
    rows = []
    for _ in range(TURNS):
        for name, (model, precision) in contenders.items():
            command = [sys.executable, "-c", SPEED, model, photos, precision, str(COUNT)]
            said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            rows += [{"what": f"{name}: {what}", "rate": rate} for what, rate in json.loads(said).items()]
    taken = pd.DataFrame(rows)
    return [spread(str(what), of["rate"], "photos/s") for what, of in taken.groupby("what", sort=False)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    file, photos, run = (path.resolve() for path in (given.file, given.photos, given.run))
    photo = min(photos.iterdir())
    with tempfile.TemporaryDirectory() as temporary:
        python, lines = environment(Path(temporary))
        verb = [python, "-m", "defectcls.predict", f"checkpoint={file}", f"input={photo}", "overwrite=true"]
        contenders: dict[str, list[str | Path]] = {
            "file": [python, "-c", JUDGED, file, photo],
            "file, the verb": [*verb, "hydra.run.dir=out"],
            "checkpoint": [sys.executable, "-c", JUDGED, run, photo],
        }
        rows = [
            {"what": what, "wall": wall, "cores": cores}
            for turn in range(ROUNDS + 1)
            for what, command in contenders.items()
            for wall, cores in [timed(command, Path(temporary))]
            if turn  # the first round fills the system's cache
        ]
    taken = pd.DataFrame(rows)
    for what in contenders:
        of = taken[taken["what"] == what]
        lines += [spread(f"first decision, {what}", of["wall"], "s")]
        lines += [spread(f"first decision, {what}, time of the cores", of["cores"], "s")]
    about = {"file_mb": round(file.stat().st_size / 1e6, 1), "rounds": ROUNDS, "load": round(os.getloadavg()[0], 1)}
    lines += speed(file, run, photos)
    made = provenance(0, {})
    about |= {name: made[name] for name in ("date", "commit", "hardware")}
    versions = {f"version_{name}": version for name, version in made["versions"].items()}
    measured = pd.DataFrame([about | line | versions for line in lines])
    print(measured[["what", "median", "low", "high", "unit"]].to_string(index=False, float_format=number))
    if given.write:
        measured.to_csv(HERE / "measured.csv", index=False)


if __name__ == "__main__":
    main()
