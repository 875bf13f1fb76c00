"""A memory of sound parts beside anomalib's PatchCore: python experiments/memory/measure.py <tool> <category> <seed> …

Tool is defectcls or anomalib; the interpreter must have both. Appends a row for each seed to measured.csv beside this
file. Both read MVTec AD in $DEFECTCLS_DATA/mvtec, with the MobileNetV2 of $DEFECTCLS_WEIGHTS. Fitting begins with the
files on the disk and ends with a model that can score; imports, and judging the test images, are not counted.
"""

import argparse
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

HERE = Path(__file__).parent
SIDE = 224  # pixels
SECONDS = ("seconds_fit_wall", "seconds_fit_cpu")  # on the clock, and of all cores of this process together


def timed(call: Callable[[], Any]) -> pd.Series:
    """`SECONDS` of a call."""
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    return pd.Series([time.perf_counter() - wall, time.process_time() - cpu], SECONDS)


def defectcls(category: str, seed: int) -> tuple[pd.Series, int, float]:
    """`model.head=memory`, nothing cached before: `SECONDS`, images learned from, and AUROC."""
    from defectcls.config import compose, plain
    from defectcls.settings import TrainSettings
    from defectcls.training.run import TrainingRun

    runs = []

    def fit(config: dict[str, Any], folder: Path) -> None:
        runs.append(TrainingRun(TrainSettings(**config), folder, None))
        runs[0].train()

    with tempfile.TemporaryDirectory() as folder:
        given = ["dataset=mvtec", f"dataset.categories=[{category}]", f"dataset.cache_dir={folder}/cache"]
        given += ["dataset.split.published=true", "dataset.split.val=0.02", "model.head=memory", "finetune=probe"]
        given += ["trainer=cpu", "trainer.precision=32", "trainer.compile=false", "model=mobilenetv2"]
        config = plain(compose(*given, f"image_size={SIDE}", f"seed={seed}"))
        took = timed(lambda: fit(config, Path(folder) / "run"))
        numbers = runs[0].measure(["test"])[0]["test"]
    return took, len(runs[0].data.part("train")), numbers["auroc"]


def anomalib(category: str, seed: int) -> tuple[pd.Series, int, float]:
    """PatchCore on layers of stride 8 and 16, with a greedy coreset of 2 % of the patches: likewise."""
    import lightning
    import torch
    from anomalib.data import Folder
    from anomalib.engine import Engine
    from anomalib.models import Patchcore
    from sklearn.metrics import roc_auc_score

    lightning.seed_everything(seed)
    model = Patchcore(
        backbone="mobilenetv2_100",
        layers=["blocks.2", "blocks.4"],
        pre_trained=False,
        coreset_sampling_ratio=0.02,
        pre_processor=Patchcore.configure_pre_processor(image_size=(SIDE, SIDE)),
        post_processor=False,  # it wants test images to scale the scores by
        visualizer=False,
    )
    body = model.model.feature_extractor.feature_extractor
    weights = torch.load(Path(os.environ["DEFECTCLS_WEIGHTS"]) / "mobilenetv2_100.pth", weights_only=True)
    assert not body.load_state_dict(weights, strict=False).missing_keys
    root = Path(os.environ["DEFECTCLS_DATA"]) / "mvtec" / category
    defects = [f"test/{folder.name}" for folder in sorted((root / "test").iterdir()) if folder.name != "good"]
    # Not MVTecAD, which wants a mask for each defect. Half of the test images would be for validation otherwise.
    whole = {"val_split_mode": "same_as_test", "num_workers": 0, "seed": seed}
    data = Folder(category, "train/good", root, defects, "test/good", **whole)
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(default_root_dir=folder, accelerator="cpu", logger=False, limit_val_batches=0)
        seconds = timed(lambda: engine.fit(model, datamodule=data))
        batches = engine.predict(model, dataloaders=data.test_dataloader())
    truth, scores = (
        torch.cat([getattr(batch, name).flatten() for batch in batches]) for name in ("gt_label", "pred_score")
    )
    assert len(truth) == len(list((root / "test").glob("*/*.png")))
    return seconds, len(data.train_data), roc_auc_score(truth, scores)


def table(measured: pd.DataFrame) -> str:
    """What README.md shows: mean AUROC and median seconds of fitting over seeds, and how many times ours they are."""
    columns = ("category", "tool", "sound images", "seeds", "AUROC", "CPU, s", "clock, s", "times ours")
    lines = [list(columns), ["---"] * len(columns)]
    for category, of_category in measured.groupby("category", sort=False):
        own = of_category.query("tool == 'defectcls'")["seconds_fit_cpu"].median()
        for (tool, made), rows in of_category.groupby(["tool", "version"], sort=False):
            auroc, (wall, cpu) = rows["image_auroc"], rows[list(SECONDS)].median()
            spread = f" ± {auroc.std():.4f}" if len(rows) > 1 else ""
            cells = [f"{category}", f"{tool} {made}", f"{rows['n_train'].iloc[0]}", f"{len(rows)}"]
            lines.append([*cells, f"{auroc.mean():.4f}{spread}", f"{cpu:.0f}", f"{wall:.0f}", f"{cpu / own:.1f}"])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tool", choices=["defectcls", "anomalib"])
    parser.add_argument("category")
    parser.add_argument("seed", type=int, nargs="+")
    given = parser.parse_args()
    from defectcls.training.results import provenance

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    file = HERE / "measured.csv"
    for seed in given.seed:
        seconds, n_train, auroc = globals()[given.tool](given.category, seed)
        made = provenance(seed, {})
        row = {"tool": given.tool, "version": version(given.tool), "category": given.category, "seed": seed}
        row |= {"n_train": n_train, "image_auroc": auroc, **seconds.round(2)}
        row |= {"commit": made["commit"], "hardware": made["hardware"]}
        row |= {f"version_{name}": made["versions"][name] for name in ("python", "torch", "timm", "lightning")}
        before = [pd.read_csv(file)] if file.is_file() else []
        measured = pd.concat([*before, pd.DataFrame([row])], ignore_index=True)
        measured.to_csv(file, index=False)
    print(table(measured))
