"""How fast training, evaluation, decoding and the probe are here, next to what the hardware allows (the same step on
one batch that stays in memory) and to a plain recipe. Leave the machine alone meanwhile.

    python -m benchmarks.speed dataset=concrete_crack model=mobilenetv2
    python -m benchmarks.speed --measure training --steps 100 dataset=synthetic model.pretrained=false trainer=gpu
"""

import argparse
import os
import tempfile
from functools import partial
from pathlib import Path

import pandas as pd

from benchmarks import contenders
from benchmarks.contenders import WARM_UP, Plan
from benchmarks.plain import plain_frozen, plain_recipe
from benchmarks.results import Line, keep, spread
from benchmarks.turns import take_turns
from defectcls.config import compose, plain
from defectcls.settings import TrainSettings

SECTIONS = {  # contenders that take turns; bare: on one batch that stays in memory, no loader, no Trainer
    "training": {
        "bare step": contenders.step,
        "input pipeline": contenders.input_pipeline,
        "training": contenders.training,
        "plain recipe": plain_recipe,
    },
    "evaluation": {"bare forward": contenders.forward, "evaluation": contenders.evaluation},
    "first_pass": {"bare decoding": contenders.decode, "first pass": contenders.first_pass},
    "probe": {
        "probe": contenders.probe,
        "probe, views": contenders.probe_views,
        "plain, frozen": plain_frozen,
    },
}
RATIOS = (  # speed of the first over speed of the second
    ("training", "bare step"),
    ("training", "plain recipe"),
    ("input pipeline", "bare step"),
    ("evaluation", "bare forward"),
    ("first pass", "bare decoding"),
    ("probe", "plain, frozen"),
    ("probe, views", "plain, frozen"),
)


def summarise(turns: pd.DataFrame) -> list[Line]:
    """The speed of each contender, then how many times as fast one was as another, and what augmentation takes.

    Ratios are taken within each round: what slows the machine meanwhile slows both.
    """
    lines: list[Line] = []
    speeds: dict[str, pd.Series] = {}
    for name, own in turns.set_index("round").groupby("contender", sort=False):
        speeds[str(name)] = own["images"].fillna(1).astype(float) / own["seconds"]
        counted = own["images"].notna().all()
        line = spread(str(name), *((speeds[str(name)], "img/s") if counted else (own["seconds"], "s")))
        line |= {"peak_mib": own["peak_mib"].max(), "computed": own.get("computed", [None])[0]}
        if "gpu_peak_mib" in own and own["gpu_peak_mib"].notna().any():
            line["gpu_peak_mib"] = own["gpu_peak_mib"].max()
        lines.append(line)
        if "auroc" in own and own["auroc"].notna().all():
            lines.append(spread(str(name), own["auroc"], "test AUROC"))
    for one, other in RATIOS:
        if one in speeds and other in speeds:
            lines.append(spread(f"{one} / {other}", speeds[one] / speeds[other], "times"))
    if "augment_seconds" in turns:
        step = turns.dropna(subset="augment_seconds")
        share = 100 * step["augment_seconds"] / step["seconds"]
        lines.append(spread("augmentation, of the bare step", share, "%"))
    return lines


def settings_of(*overrides: str) -> TrainSettings:
    """Of a training run that sets parts aside, with a local logger unless another one is asked for."""
    return TrainSettings(**plain(compose("logger=csv", "evaluation=holdout", *overrides)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="append", choices=SECTIONS, help="only these sections")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each that count; one more before warms up")
    parser.add_argument("--steps", type=int, default=10, help="batches a turn; on a GPU take 100")
    parser.add_argument("--probe-images", type=int, default=500, help="training images of the probe")
    parser.add_argument("--epochs", type=int, default=10, help="of the plain recipe with frozen layers")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="that decode for the plain recipe")
    parser.add_argument("--write", type=Path, help="CSV that the results are added to")
    parser.add_argument("overrides", nargs="+", help="of conf/train.yaml, as for defectcls.train")
    given = parser.parse_args()
    settings = settings_of(*given.overrides)
    turns = []
    with tempfile.TemporaryDirectory() as folder:
        plan = Plan(settings, given.rounds, given.steps, given.probe_images, given.epochs, given.workers, Path(folder))
        for section in given.measure or SECTIONS:
            rivals = {name: partial(rival, plan) for name, rival in SECTIONS[section].items()}
            once = section == "probe"  # ten epochs of the plain recipe take minutes
            turns.append(take_turns(rivals, *((1, 0) if once else (given.rounds, WARM_UP))))
    about: Line = {"dataset": settings.dataset.name, "model": settings.model.name}
    about |= {"image_size": settings.model_dump()["image_size"], "batch_size": settings.batch_size}
    keep(summarise(pd.concat(turns, ignore_index=True)), about, settings.seed, given.write)


if __name__ == "__main__":
    main()
