"""What is timed: training, evaluation, decoding and the probe as a run does them, and the least that each takes."""

import itertools
import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import TQDMProgressBar
from sklearn.metrics import roc_auc_score

from benchmarks.turns import Stopwatch, Turn, Turns
from defectcls.data.batches import Batch
from defectcls.data.datamodule import DefectDataModule
from defectcls.data.images import decode as decoded
from defectcls.data.threads import map_in_threads
from defectcls.model.hardware import find_device
from defectcls.model.stages import plan_stages, switch_training
from defectcls.settings import StageSettings, TrainSettings
from defectcls.training.build import build_data
from defectcls.training.run import TrainingRun

WARM_UP = 1  # turns before those that count
LEFT_OUT = "left out"  # a split that is no part
INPUT_STEPS = 10  # times the batches of training: without a network they are quick
EVALUATION_STEPS = 4  # times the batches of training, where the part has so many: the end of an evaluation counts


class Plan(NamedTuple):
    """What is measured: the settings of a run, and how long."""

    settings: TrainSettings
    rounds: int  # that count
    steps: int  # batches a turn, where the training part has so many
    probe_images: int  # training images of the probe and of frozen layers, validation cut in proportion
    epochs: int  # of the plain recipe with frozen layers
    workers: int  # processes that decode for the plain recipe
    folder: Path  # what runs write, and nobody reads

    def of_dataset(self, **changed: Any) -> TrainSettings:
        """The settings with some keys of the dataset changed."""
        return self.settings.model_copy(update={"dataset": self.settings.dataset.model_copy(update=changed)})

    def steps_of(self, data: DefectDataModule, times: int = 1) -> int:
        """Batches of a turn."""
        return min(times * self.steps, max(1, len(data.part("train")) // self.settings.batch_size))

    def new_folder(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self.folder))

    def run(self, settings: TrainSettings | None = None) -> TrainingRun:
        """A run on the Trainer's device; without settings of all layers, an epoch for every turn."""
        if settings is None:
            stage = StageSettings(epochs=WARM_UP + self.rounds, trainable="all", lr_scale=1)
            full = {"probe": False, "patience": None, "stages": {"full": stage}}
            settings = self.settings.model_copy(update={"finetune": self.settings.finetune.model_copy(update=full)})
        run = TrainingRun(settings, self.new_folder(), None)
        run.classifier.to(run.trainer.strategy.root_device)
        return run


def step(plan: Plan, turns: Turns) -> None:
    """The ceiling: the whole training step on one batch that stays on the device; no loader, no Trainer."""
    run = plan.run()
    classifier, device, precision = run.classifier, run.trainer.strategy.root_device, run.trainer.precision_plugin
    steps, batch = plan.steps_of(run.data), resident_batch(run)
    stage = plan_stages(classifier.finetune, steps, {})[0]
    switch_training(classifier.backbone, classifier.head, stage, classifier.finetune.batchnorm)
    optimizer, clip = classifier.configure_optimizers(), plan.settings.optim.clip
    scaler = getattr(precision, "scaler", None) or torch.amp.GradScaler(device.type, enabled=False)
    turns.about |= how_computed(run)
    stopwatch, turn = Stopwatch(device), None
    while True:
        turns.wait(turn)
        stopwatch.start()
        for _ in range(steps):
            with precision.forward_context():
                image, target = classifier.augment(batch["image"]), batch["target"]
                loss = classifier.loss(classifier(image), target)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            if clip is not None:
                scaler.unscale_(optimizer)
                torch.nn.utils.clip_grad_norm_(classifier.parameters(), clip)
            scaler.step(optimizer)
            scaler.update()
        turn = stopwatch.stop(steps * len(batch["image"]))
        stopwatch.start()
        for _ in range(steps):
            classifier.augment(batch["image"])
        turn["augment_seconds"] = stopwatch.stop(None)["seconds"]


def input_pipeline(plan: Plan, turns: Turns) -> None:
    """Batches of the training part, one after another, and nothing done with them."""
    device = find_device(plan.settings.trainer.accelerator)
    data = build_data(plan.settings, device=device)
    loader, batches = data.train_dataloader(), INPUT_STEPS * plan.steps_of(data)
    turns.play(device, lambda: sum(len(batch["image"]) for batch in itertools.islice(loader, batches)))


def training(plan: Plan, turns: Turns) -> None:
    """Lightning's Trainer with the callbacks of a run, all layers trained, validation not counted."""
    run = plan.run()
    turns.about |= how_computed(run)
    watch = _Watch(turns, run.trainer.strategy.root_device)
    run.trainer.callbacks += [TQDMProgressBar(), watch]  # type: ignore[attr-defined]
    run.trainer.limit_train_batches = plan.steps_of(run.data)
    run.trainer.limit_val_batches = 1
    run.trainer.fit(run.classifier, datamodule=run.data)
    turns.wait(watch.turn)


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

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:  # noqa: ARG002
        self.images += len(batch["image"])
        if trainer.is_last_batch:
            self.turn = self.stopwatch.stop(self.images)


def forward(plan: Plan, turns: Turns) -> None:
    """The ceiling of an evaluation: logits of one batch that stays on the device."""
    run = plan.run()
    turns.about |= how_computed(run)
    batch, steps = resident_batch(run)["image"], plan.steps_of(run.data, EVALUATION_STEPS)

    infer = run.classifier.inference()  # by the same layers as an evaluation

    def work() -> int:
        for _ in range(steps):
            infer(batch)
        return steps * len(batch)

    turns.play(run.trainer.strategy.root_device, work)


def evaluation(plan: Plan, turns: Turns) -> None:
    """Predictions of images, from the pixel cache to the table."""
    run = plan.run()
    turns.about |= how_computed(run)
    keep_few(run.data, plan.steps_of(run.data, EVALUATION_STEPS) * plan.settings.batch_size, plan.settings.seed)

    def work() -> int:
        run.predicted.clear()
        return len(run.predict("train"))

    turns.play(run.trainer.strategy.root_device, work)


def decode(plan: Plan, turns: Turns) -> None:
    """The least that a first pass takes: the same files through the same decoder on all cores, and nothing kept."""
    dataset = plan.settings.dataset
    data = build_data(plan.settings)
    paths = [dataset.root / path for path in data.samples["path"]]
    how: Any = data.images.size, dataset.resize, "auto"
    turns.play(torch.device("cpu"), lambda: sum(1 for _ in map_in_threads(lambda path: decoded(path, *how), paths)))


def first_pass(plan: Plan, turns: Turns) -> None:
    """All that a run does with images which it meets for the first time, until they are split and in the cache."""
    device = find_device(plan.settings.trainer.accelerator)
    stopwatch, turn = Stopwatch(device), None
    while True:
        turns.wait(turn)
        cache = plan.new_folder()
        stopwatch.start()
        turn = stopwatch.stop(len(build_data(plan.of_dataset(cache_dir=cache, cache="auto"), device=device).samples))
        shutil.rmtree(cache)


def probe(plan: Plan, turns: Turns) -> None:
    """A head solved on frozen features of the images as they are; once, from the pixel cache."""
    _probe(plan, turns, views=0)


def probe_views(plan: Plan, turns: Turns) -> None:
    """The same with as many augmented views of each image as a run takes."""
    _probe(plan, turns, plan.settings.finetune.probe_views)


def _probe(plan: Plan, turns: Turns, views: int) -> None:
    settings = plan.of_dataset(cache_dir=plan.new_folder())  # that knows no features yet
    only = {"probe": True, "probe_views": views, "stages": {}}
    run = plan.run(settings.model_copy(update={"finetune": settings.finetune.model_copy(update=only)}))
    turns.about |= how_computed(run)
    keep_few(run.data, plan.probe_images, settings.seed)
    run.classifier.inference()(resident_batch(run)["image"])  # warms up
    turns.wait()
    run.train()
    table = run.predict("test")
    auroc = roc_auc_score(table["defective"].astype(bool), table["score"])
    turns.wait({"images": None, "seconds": run.seconds["probe"], "auroc": auroc})


def resident_batch(run: TrainingRun) -> Batch:
    """The first training batch, on the device."""
    device = run.trainer.strategy.root_device
    return {name: values.to(device) for name, values in next(iter(run.data.train_dataloader())).items()}


def keep_few(data: DefectDataModule, count: int, seed: int) -> None:
    """Leave `count` images in the training part, every class in its proportion, and the same share in validation."""
    share = min(1.0, count / len(data.part("train")))
    for part in ("train", "val"):
        rows = np.random.default_rng(seed).permutation(data.part(part))
        rows = rows[np.argsort(data.targets[rows], kind="stable")]
        kept = rows[np.unique(np.linspace(0, len(rows) - 1, max(2, round(share * len(rows)))).astype(int))]
        data.samples.loc[np.setdiff1d(rows, kept), "split"] = LEFT_OUT


def how_computed(run: TrainingRun) -> Turn:
    """Precision, compilation and threads of a run."""
    compiled = getattr(run.classifier.backbone.body, "_compiled_call_impl", None) is not None
    words = [str(run.trainer.precision), *["compiled"] * compiled, f"{torch.get_num_threads()} threads"]
    return {"computed": ", ".join(words)}
