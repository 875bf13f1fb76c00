"""Photos a second and the time to the first decision, beside the exported models of Anomalib and Ultralytics.

    PYTHONPATH=. python experiments/runtime/peers.py model.onnx <folder of photos> --peers <python> --write

`--peers` is the Python of an environment of its own: pip install 'anomalib[openvino]' ultralytics onnx onnxruntime.
What theirs decide is not looked at: their weights are random, for want of a network. Processes take turns.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

from benchmarks.results import number, spread
from defectcls.training.results import provenance

HERE = Path(__file__).parent
ROUNDS, COUNT = 5, 128  # of processes; photos a process
SIDE = 224

MADE = """
import sys
import numpy as np
from PIL import Image
from anomalib.data import Folder
from anomalib.deploy import ExportType
from anomalib.engine import Engine
from anomalib.models import Padim
from ultralytics import YOLO
side = int(sys.argv[1])
for kind in ("good", "bad"):
    for number in range(32):
        noise = np.random.default_rng(number).integers(0, 256, (side, side, 3), np.uint8)
        Image.fromarray(noise).save(f"{kind}/{number}.png")
data = Folder(name="noise", root=".", normal_dir="good", abnormal_dir="bad", num_workers=0)
engine = Engine(accelerator="cpu", default_root_dir="runs", logger=False)
model = Padim(backbone="resnet18", pre_trained=False, pre_processor=Padim.configure_pre_processor((side, side)))
engine.fit(model, datamodule=data)
engine.export(model=model, export_type=ExportType.OPENVINO, export_root="padim")
YOLO("yolo11n-cls.yaml").export(format="onnx", imgsz=side, dynamic=True)
"""
HEAD = """
import itertools, json, sys, time
from pathlib import Path
import numpy as np
model, photos, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
paths = list(itertools.islice(itertools.cycle(sorted(map(str, Path(photos).iterdir()))), count))
rates = {}
def rate(name, work, size):
    some = [paths[start:start + size] for start in range(0, count, size)]
    work(some[0])
    start = time.perf_counter()
    for one in some:
        work(one)
    rates[name] = count / (time.perf_counter() - start)
"""
TOOLS = {
    "defectcls": """
import defectcls, onnxruntime
predictor = defectcls.load(model, device="cpu")
predictor.predict(paths[0])
first = time.time()
session = onnxruntime.InferenceSession(model)
pixels = np.stack([predictor.read(path).pixels for path in paths[:32]]).transpose(0, 2, 3, 1)
pixels = np.ascontiguousarray(pixels)
for size in (1, 32):
    rate(f"{size} at once", predictor.predict, size)
    rate(f"{size} at once, its runtime alone", lambda some: session.run(None, {"image": pixels[:len(some)]}), size)
""",
    "Anomalib, PaDiM of ResNet18": """
from anomalib.deploy import OpenVINOInferencer
inferencer = OpenVINOInferencer(path=model, device="CPU")
inferencer.predict(paths[0])
first = time.time()
pixels = inferencer.pre_process(np.zeros((side, side, 3), np.float32))
rate("1 at once", lambda some: inferencer.predict(some[0]), 1)
rate("1 at once, its runtime alone", lambda some: inferencer.model(pixels), 1)
""",
    "Ultralytics, YOLO11n-cls": """
import onnxruntime
from ultralytics import YOLO
network = YOLO(model, task="classify")
network.predict(paths[0], verbose=False, imgsz=side)
first = time.time()
session = onnxruntime.InferenceSession(model)
name, pixels = session.get_inputs()[0].name, np.zeros((32, 3, side, side), np.float32)
for size in (1, 32):
    rate(f"{size} at once", lambda some: network.predict(some, verbose=False, imgsz=side, batch=size), size)
    rate(f"{size} at once, its runtime alone", lambda some: session.run(None, {name: pixels[:len(some)]}), size)
""",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--peers", type=Path, required=True)
    parser.add_argument("--write", action="store_true")
    given = parser.parse_args()
    peers = given.peers.absolute()  # not resolved: a link is how an environment calls its Python
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for kind in ("good", "bad"):
            (folder / kind).mkdir()
        subprocess.run([peers, "-c", MADE, str(SIDE)], cwd=folder, check=True, capture_output=True)
        [padim], [yolo] = folder.glob("padim/**/*.xml"), folder.glob("*.onnx")
        models = dict(zip(TOOLS, ((sys.executable, given.model.resolve()), (peers, padim), (peers, yolo)), strict=True))
        rows = []
        for turn in range(ROUNDS + 1):
            for tool, (python, model) in models.items():
                script = f"{HEAD}side = {SIDE}\n{TOOLS[tool]}print(json.dumps(rates | {{'first': first}}))"
                command, began = [python, "-c", script, model, given.photos.resolve(), str(COUNT)], time.time()
                said = subprocess.run(command, check=True, capture_output=True, text=True, cwd=folder).stdout
                found = json.loads(said.splitlines()[-1])
                row = {"tool": tool, "first decision": found.pop("first") - began} | found
                for size in ("1 at once", "32 at once"):
                    if size in found:
                        row[f"{size}, of its runtime alone"] = found[size] / found[f"{size}, its runtime alone"]
                rows += [row] if turn else []  # the first round fills the system's cache
    taken = pd.DataFrame(rows)
    units = {what: "ratio" if ", of its" in what else "photos/s" for what in taken.columns[1:]}
    units["first decision"] = "s"
    lines = [
        {"tool": tool, **spread(what, of[what], unit)}
        for tool, of in taken.groupby("tool", sort=False)
        for what, unit in units.items()
        if of[what].notna().all()
    ]
    ask = "import importlib.metadata as m; print(*(m.version(n) for n in ('anomalib', 'openvino', 'ultralytics')))"
    said = subprocess.run([peers, "-c", ask], check=True, capture_output=True, text=True).stdout.split()
    made = provenance(0, {})
    about = {"rounds": ROUNDS, "load": round(os.getloadavg()[0], 1)}
    about |= dict(zip(("anomalib", "openvino", "ultralytics"), said, strict=True))
    about |= {name: made[name] for name in ("date", "commit", "hardware")}
    versions = {f"version_{name}": version for name, version in made["versions"].items()}
    measured = pd.DataFrame([line | about | versions for line in lines])
    print(measured[["tool", "what", "median", "low", "high", "unit"]].to_string(index=False, float_format=number))
    if given.write:
        measured.to_csv(HERE / "peers.csv", index=False)


if __name__ == "__main__":
    main()
