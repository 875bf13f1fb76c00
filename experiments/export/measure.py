"""Parity of exported files: python experiments/export/measure.py <folder for the runs> [<network> …].

Five networks with both heads learn from three categories of MVTec AD (DEFECTCLS_DATA), every photo out of fold, and are
exported; the gate then holds each file against its checkpoint on all photos. DEFECTCLS_WEIGHTS holds MobileNetV2's
weights, EfficientNet-Lite0's are installed; the others' are random, for want of a network.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import pandas as pd

import defectcls

RESULTS = Path(__file__).with_name("measured.csv")
NETWORKS = {
    "mobilenetv2": (),
    "efficientnet_lite0": (),
    "resnet18": ("model.pretrained=false",),
    "convnextv2_nano": ("model.pretrained=false", "model.levels=[0.5,0.75,1]"),
    "vit_tiny_patch16_224": ("model.pretrained=false", "model.levels=[0.5,0.75,1]"),
}
GIVEN = (
    *("dataset=mvtec", "dataset.categories=[bottle,screw,transistor]", "image_size=160", "trainer=cpu"),
    *("trainer.precision=32", "finetune=probe", "evaluation=crossval", "logger=csv"),
    *("inspect.heat_maps=false", "inspect.robustness=false"),
)
TOLD = ("photos", "flips", "flips_of_other_kinds", "excused", "largest_difference", "megabytes", "refused")


def measure(folder: Path, networks: list[str]) -> None:
    for network in networks or NETWORKS:
        more = NETWORKS[network]
        model = (f"model={network}",) if network != "vit_tiny_patch16_224" else ("model=timm", f"model.name={network}")
        for head in ("joined", "linear"):
            place = folder / f"{network}_{head}"
            run = defectcls.run("train", *GIVEN, *model, *more, f"model.head={head}", f"hydra.run.dir={place}")
            out = place / "export"
            try:
                defectcls.run("export", f"checkpoint={run.folder}", f"hydra.run.dir={out}")
            except defectcls.UserError as error:
                print(network, head, error, flush=True)
                continue
            found = json.loads((out / "export.json").read_text())
            about = {"network": found["model"], "head": found["head"], "weights": "random" if more else "ImageNet"}
            about |= {name: found["tried"][0][name] for name in TOLD}
            about |= {name: found[name] for name in ("seed", "commit", "hardware")}
            about |= {name: version(name) for name in ("torch", "timm", "onnx", "onnxruntime")}
            known = pd.read_csv(RESULTS) if RESULTS.is_file() else pd.DataFrame(columns=[*about])
            known = known[(known["network"] != about["network"]) | (known["head"] != head)]
            pd.DataFrame([*known.to_dict("records"), about]).to_csv(RESULTS, index=False)
            print(about, flush=True)


def table(measured: pd.DataFrame) -> str:
    """For the README."""
    lines = ["| network | weights | head | photos | flips | of other kinds | largest difference | MB |"]
    lines += ["| --- | --- | --- | --- | --- | --- | --- | --- |"]
    for row in measured.itertuples():
        counts = f"{row.photos:,} | {row.flips} | {row.flips_of_other_kinds}"
        numbers = f"{counts} | {row.largest_difference:.1e} | {row.megabytes:.1f}"
        lines.append(f"| {row.network} | {row.weights} | {row.head} | {numbers} |")
    return "\n".join(lines)


if __name__ == "__main__":
    measure(Path(sys.argv[1]), sys.argv[2:])
