"""What is timed: training, evaluation, decoding and the probe as a run does them, and the least that each takes."""

import itertools
import shutil
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch

from defectcls.benchmarking.turns import Stopwatch, Turn, Turns
from defectcls.data.cache import open_images
from defectcls.data.datamodule import Batch, DefectDataModule
from defectcls.data.depth import examine_files
from defectcls.data.digests import digest_files
from defectcls.data.images import attempt
from defectcls.data.listing import fetch, list_samples
from defectcls.data.pixel_file import Files
from defectcls.data.threads import map_in_threads
from defectcls.evaluation.metrics import compute_metrics, defect_numbers
from defectcls.model.stages import plan_stages, switch_training
from defectcls.settings import BenchmarkSettings, StageSettings
from defectcls.training.build import build_data, device_of, with_compute
from defectcls.training.record import Progress
from defectcls.training.run import TrainingRun

CPU = torch.device("cpu")
WARM_UP = 1  # turns before those that count
LEFT_OUT = "left out"  # a split that is no part
INPUT_STEPS = 10  # times the batches of training: without a network they are quick
EVALUATION_STEPS = 4  # times the batches of training, where the part has so many: the end of an evaluation counts


def step(turns: Turns, settings: BenchmarkSettings, folder: Path) -> None:
    """The ceiling: the whole training step on one batch that stays on the device; no loader, no Trainer."""
    run = full_run(settings, folder)
    classifier, device, precision = run.classifier, run.trainer.strategy.root_device, run.trainer.precision_plugin
    steps, batch = steps_of(run.data, settings), resident_batch(run)
    stage = plan_stages(classifier.finetune, steps, {})[0]
    switch_training(classifier.backbone, classifier.head, stage, classifier.finetune.batchnorm)
    optimizer = classifier.configure_optimizers()
    scaler = getattr(precision, "scaler", None) or torch.amp.GradScaler(device.type, enabled=False)
    stopwatch, turn = Stopwatch(device), None
    while turns.wait(turn):
        stopwatch.start()
        for _ in range(steps):
            with precision.forward_context():
                image, target = classifier.augment(batch["image"]), batch["target"]
                if classifier.mix is not None:
                    image, target = classifier.mix(image, target)
                loss = classifier.loss(classifier(image), target)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            if settings.optim.clip is not None:
                scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(classifier.parameters(), settings.optim.clip)
            scaler.step(optimizer)
            scaler.update()
        turn = stopwatch.stop(steps * len(batch["image"]))
        stopwatch.start()
        for _ in range(steps):
            classifier.augment(batch["image"])
        turn["augment_seconds"] = stopwatch.stop(None)["seconds"]
    turns.about |= how_computed(run)


def input_pipeline(turns: Turns, settings: BenchmarkSettings, folder: Path) -> None:  # noqa: ARG001  as all contenders
    """Batches of the training part, one after another, and nothing done with them."""
    device = device_of(settings.trainer)
    data = build_data(settings, device=device)
    loader, batches = data.train_dataloader(), INPUT_STEPS * steps_of(data, settings)
    turns.play(device, lambda: sum(len(batch["image"]) for batch in itertools.islice(loader, batches)))


def end_to_end(turns: Turns, settings: BenchmarkSettings, folder: Path) -> None:
    """Lightning's Trainer with the callbacks and the logger of a run, all layers trained, validation not counted."""
    run = full_run(settings, folder)
    watch = _Watch(turns, run.trainer.strategy.root_device)
    run.trainer.callbacks += [Progress(settings.batch_size), watch]  # type: ignore[attr-defined]
    run.trainer.limit_train_batches = steps_of(run.data, settings)
    run.trainer.limit_val_batches = 1
    run.trainer.fit(run.classifier, datamodule=run.data)
    turns.wait(watch.turn)
    turns.about |= how_computed(run)


class _Watch(L.Callback):
    """Waits for its turn before every epoch, and measures to the end of the last training batch."""

    def __init__(self, turns: Turns, device: torch.device) -> None:
        self.turns, self.stopwatch = turns, Stopwatch(device)
        self.turn: Turn | None = None
        self.images = 0

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:  # noqa: ARG002
        self.turns.wait(self.turn)
        self.images = 0
        self.stopwatch.start()

    def on_train_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,  # noqa: ARG002
        outputs: Any,  # noqa: ARG002
        batch: Batch,
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        self.images += len(batch["image"])
        if trainer.is_last_batch:
            self.turn = self.stopwatch.stop(self.images)


def forward(turns: Turns, settings: BenchmarkSettings, folder: Path) -> None:
    """The ceiling of an evaluation: logits of one batch that stays on the device."""
    run = full_run(settings, folder)
    batch, steps = resident_batch(run)["image"], steps_of(run.data, settings, EVALUATION_STEPS)

    @torch.inference_mode()
    def work() -> int:
        for _ in range(steps):
            with run.trainer.precision_plugin.forward_context():
                run.classifier(batch)
        return steps * len(batch)

    with run.classifier.evaluating():  # on the same layers as an evaluation
        turns.play(run.trainer.strategy.root_device, work)


def evaluate(turns: Turns, settings: BenchmarkSettings, folder: Path) -> None:
    """Predictions of images by the Trainer, from the pixel cache to the table."""
    run = full_run(settings, folder)
    run.trainer.limit_test_batches = steps_of(run.data, settings, EVALUATION_STEPS)
    turns.play(run.trainer.strategy.root_device, lambda: len(run.predict("train")))


def first_pass(turns: Turns, settings: BenchmarkSettings, folder: Path) -> None:
    """Decode and cache all images, as a run does that meets them for the first time."""
    fetch(settings.dataset)
    root, names = settings.dataset.root, list_samples(settings.dataset)["path"].array
    known = digest_files([f"{root}/{name}" for name in names])
    depth = examine_files([f"{root}/{name}" for name in names], known, None).resolve(settings.dataset.depth)
    files = Files(root, names, known, settings.image_size, settings.dataset.resize, depth)
    dataset, device = (
        with_dataset(settings, cache_dir=folder / "cache", cache="auto").dataset,
        device_of(settings.trainer),
    )
    stopwatch, turn = Stopwatch(device), None
    while turns.wait(turn):
        stopwatch.start()
        images, _ = open_images(files, dataset, device)
        turn = stopwatch.stop(len(images.files.names))
        shutil.rmtree(folder / "cache", ignore_errors=True)


def decode(turns: Turns, settings: BenchmarkSettings, folder: Path) -> None:  # noqa: ARG001
    """The least that a first pass takes: the same files through the same decoder on all cores, and nothing kept."""
    fetch(settings.dataset)
    paths = [settings.dataset.root / path for path in list_samples(settings.dataset)["path"]]
    how: Any = settings.image_size, settings.dataset.resize, "auto"
    turns.play(CPU, lambda: sum(1 for _ in map_in_threads(lambda path: attempt(path, *how), paths)))


def probe(turns: Turns, settings: BenchmarkSettings, folder: Path) -> None:
    """A head solved on frozen features of the images as they are; once, from the pixel cache."""
    _probe(turns, settings, folder, views=0)


def probe_views(turns: Turns, settings: BenchmarkSettings, folder: Path) -> None:
    """The same with as many augmented views of each image as a run takes."""
    _probe(turns, settings, folder, settings.finetune.probe_views)


def _probe(turns: Turns, settings: BenchmarkSettings, folder: Path, views: int) -> None:
    finetune = settings.finetune.model_copy(update={"probe": True, "probe_views": views, "stages": {}})
    device = device_of(settings.trainer)
    trainer = with_compute(settings, build_data(settings, device=device), device).trainer  # the run's cache knows it,
    settings = with_dataset(settings, cache_dir=folder / "cache")  # and this one knows no features yet
    run = build_run(settings.model_copy(update={"finetune": finetune, "trainer": trainer}), folder)
    keep_few(run.data, settings.probe_images, settings.seed)
    run.logits([resident_batch(run)["image"]])  # warms up
    turns.wait()
    run.train()
    auroc = defect_numbers(compute_metrics(run.predict("test"), *run.classes))["auroc"]
    turns.wait({"images": None, "seconds": run.seconds["probe"], "auroc": auroc})
    turns.about |= how_computed(run)
    shutil.rmtree(folder / "cache", ignore_errors=True)


def build_run(settings: BenchmarkSettings, folder: Path) -> TrainingRun:
    """A run in the contender's folder, on the Trainer's device."""
    config = settings.model_dump(mode="json")
    run = TrainingRun(settings, config, folder, None)
    run.classifier.to(run.trainer.strategy.root_device)
    return run


def full_run(settings: BenchmarkSettings, folder: Path) -> TrainingRun:
    """The run that trains all layers, whatever the stages of the settings; an epoch for every turn."""
    epochs = WARM_UP + settings.rounds
    stage = StageSettings(epochs=epochs, steps=None, trainable="all", lr_scale=1, views=None)
    finetune = settings.finetune.model_copy(update={"probe": False, "patience": None, "stages": {"full": stage}})
    return build_run(settings.model_copy(update={"finetune": finetune}), folder)


def with_dataset(settings: BenchmarkSettings, **changed: Any) -> BenchmarkSettings:
    """The same settings with some keys of the dataset changed."""
    return settings.model_copy(update={"dataset": settings.dataset.model_copy(update=changed)})


def steps_of(data: DefectDataModule, settings: BenchmarkSettings, times: int = 1) -> int:
    """Batches of a turn: as many as asked for, or as the training part has."""
    return min(times * settings.steps, max(1, len(data.part("train")) // settings.batch_size))


def resident_batch(run: TrainingRun) -> Batch:
    """The first training batch, on the device."""
    device = run.trainer.strategy.root_device
    return {name: values.to(device) for name, values in next(iter(run.data.train_dataloader())).items()}


def keep_few(data: DefectDataModule, count: int | None, seed: int) -> None:
    """Leave `count` images in the training part, every class in its proportion, and the same share in validation."""
    train = data.part("train")
    share = 1.0 if count is None else min(1.0, count / len(train))
    for part in ("train", "val"):
        rows = np.random.default_rng(seed).permutation(data.part(part))
        rows = rows[np.argsort(data.targets[rows], kind="stable")]
        kept = rows[np.unique(np.linspace(0, len(rows) - 1, max(2, round(share * len(rows)))).astype(int))]
        data.samples.loc[np.setdiff1d(rows, kept), "split"] = LEFT_OUT


def how_computed(run: TrainingRun) -> dict[str, Any]:
    """Precision, layout, threads and device of a run."""
    return {
        "precision": run.trainer.precision,
        "channels_last": run.classifier.hparams["channels_last"],
        "compiled": getattr(run.classifier.backbone.body, "_compiled_call_impl", None) is not None,
        "threads": torch.get_num_threads(),
        "device": str(run.trainer.strategy.root_device),
    }
