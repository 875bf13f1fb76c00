"""Other tools on the same images, where they are installed; never a dependency."""

import os
from pathlib import Path
from typing import Any

from defectcls.benchmarking.contenders import WARM_UP, steps_of, with_dataset
from defectcls.benchmarking.turns import Stopwatch, Turns
from defectcls.settings import BenchmarkSettings
from defectcls.training.build import build_data, device_of


def ultralytics(turns: Turns, settings: BenchmarkSettings, folder: Path) -> None:
    """YOLO's classification training from random weights, as it comes but for image size, batch and epochs."""
    from ultralytics import YOLO

    data, device = build_data(with_dataset(settings, cache="off")), device_of(settings.trainer)
    images = steps_of(data, settings) * settings.batch_size
    _link(data, settings.dataset.root, folder / "images", images)
    stopwatch, turn = Stopwatch(device), None

    def begin(_: Any) -> None:
        nonlocal turn
        turns.wait(turn)
        stopwatch.start()

    def end(_: Any) -> None:
        nonlocal turn
        turn = stopwatch.stop(images)

    model = YOLO(settings.ultralytics)
    model.add_callback("on_train_epoch_start", begin)
    model.add_callback("on_train_epoch_end", end)
    model.train(
        data=str((folder / "images").resolve()),
        epochs=WARM_UP + settings.rounds,
        imgsz=settings.image_size,
        batch=settings.batch_size,
        device=str(device),
        project=str(folder.resolve()),
        pretrained=False,
        val=False,
        plots=False,
        save=False,
        workers=settings.plain.workers or os.cpu_count() or 1,
    )
    turns.wait(turn)


def _link(data: Any, root: Path, folder: Path, images: int) -> None:
    """A folder a class, as the tool wants it: `images` of the training part, and some of validation."""
    for part, count in (("train", images), ("val", 2 * len(data.classes))):
        for row in data.part(part)[:count]:
            path, label = data.samples["path"].iloc[row], data.samples["label"].iloc[row]
            link = folder / part / label / f"{row}{Path(path).suffix}"
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to((root / path).resolve())
