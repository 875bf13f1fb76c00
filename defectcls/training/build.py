"""From a configuration to the objects of a run: the one place that instantiates."""

import logging
import sys
import warnings
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from timm.layers import convert_sync_batchnorm
from timm.optim import list_optimizers

from defectcls.config import named
from defectcls.data.datamodule import DefectDataModule
from defectcls.data.store import Store
from defectcls.data.threads import keep_freed_memory
from defectcls.errors import UserError, did_you_mean
from defectcls.model.backbone import Backbone
from defectcls.model.checkpoint import CLASSIFIER
from defectcls.model.classifier import LOG_EVERY, Classifier
from defectcls.model.features import FrozenFeatures
from defectcls.model.hardware import find_device, native_precision, tune
from defectcls.model.head import FOLDS
from defectcls.settings import TrainSettings
from defectcls.tables import DEFECTIVE, SOUND

log = logging.getLogger(__name__)

FEW_DEFECTS = 500  # photos: of fewer each is worth more in training than in a part that is set aside


def build_data(
    settings: TrainSettings,
    classes: dict[str, bool] | None = None,
    split: bool = True,
    device: torch.device = torch.device("cpu"),  # noqa: B008  immutable
    overlay: dict[str, Any] | None = None,
) -> DefectDataModule:
    """The dataset of a configuration, listed, read, labelled and split; `device` and `overlay` as of its class."""
    if settings.model.head == "memory" and classes is None and settings.target == "defect":
        classes = {SOUND: False, DEFECTIVE: True}  # of a dataset without defects too
    data = DefectDataModule.from_settings(settings, device=device, classes=classes, test_all=True)
    data.overlay = overlay or {}
    data.prepare_data()
    data.setup()
    if split:
        deal(settings, data)
    return data


def knows_few(settings: TrainSettings, data: DefectDataModule) -> bool:
    """Whether a head is solved, and of fewer defects than `FEW_DEFECTS`."""
    solves = settings.finetune.solves and settings.model.target == CLASSIFIER
    return solves and int(data.samples["defective"].sum()) < FEW_DEFECTS


def deal(settings: TrainSettings, data: DefectDataModule, learns: bool = False) -> Literal["crossval", "holdout"]:
    """Split the images as `evaluation` asks, by a rule where it is auto.

    Args:
        learns: each class that the head learns from has to stand in the training part.

    Returns:
        How the run is judged.

    Raises:
        UserError: a class has too few images to be judged, or learned from, so.
    """
    split, evaluation, seed, head = settings.dataset.split, settings.evaluation, settings.seed, settings.model.head
    taught = [target for target, defective in enumerate(data.classes.values()) if head != "memory" or not defective]
    if evaluation == "crossval" or (evaluation == "auto" and split.train is None and knows_few(settings, data)):
        data.deal(split, seed, validates=False)
        rows = data.part("train")
        folds, targets = data.folds(rows, FOLDS), data.targets[rows]
        short = [data.class_names[target] for target in taught if len(set(folds[targets == target])) == 1]
        if not short:
            log.info("no photo is set aside to validate: each is judged by one of %d models new to it", FOLDS)
            evaluation = "crossval"
        elif evaluation == "crossval":
            raise UserError(
                f"evaluation=crossval judges each image by a model that has learned of others of its class, and all of "
                f"'{short[0]}' are tied to each other: add some, or evaluation=holdout"
            )
    if evaluation != "crossval":
        evaluation = "holdout"
        data.deal(split, seed)
    if learns and (untaught := {*taught} - {*data.targets[data.part("train")].tolist()}):
        target = min(untaught)
        raise UserError(
            f"model.head={head} learns from '{data.class_names[target]}', and the split leaves none of its "
            f"{(data.targets == target).sum()} images for training: model.head=memory finetune=probe needs sound ones "
            "alone, dataset.split.anomalies=10 shows ten, dataset.split.published=false its share"
        )
    return evaluation


def build_classifier(settings: TrainSettings, data: DefectDataModule, fetch: bool = True) -> Classifier:
    """A classifier for the classes of `data`, with its pretrained weights where asked for, see `load_pretrained`.

    With a member for each fold where it is cross-validated, or has a memory.
    """
    head = settings.model.head
    folded = settings.evaluation == "crossval" or head in ("joined", "memory")
    folded |= head == "auto" and knows_few(settings, data)
    classifier: Classifier = named(settings.model.target, Classifier)(
        **settings.model_dump(mode="json", include={"model", "loss", "finetune", "optim", "augment"}),
        class_weights=class_weights(settings, data),
        classes=data.classes,
        image_size=data.image_size,
        seed=settings.seed,
        **({"members": FOLDS} if folded else {}),
    )
    classifier.backbone.precision = settings.trainer.precision  # type: ignore[assignment]  # no longer auto
    try:
        classifier.configure_optimizers()  # a wrong name or option is told now, not after the probe
    except (TypeError, ValueError) as error:
        near = did_you_mean(settings.optim.name, map(str, list_optimizers()))
        raise UserError(f"optim.name={settings.optim.name}, {settings.optim.options}: {error}{near}") from error
    if settings.model.pretrained:
        classifier.backbone.load_pretrained(settings.model.weights, fetch)
    if settings.trainer.further.get("sync_batchnorm"):
        classifier = convert_sync_batchnorm(classifier)  # Lightning would drop the activations that timm's norms hold
    if settings.trainer.compile:
        classifier.backbone.body.compile()  # in place: no name in a checkpoint changes
    return classifier


def build_features(
    settings: TrainSettings, data: DefectDataModule, backbone: Backbone, with_map: bool = False
) -> FrozenFeatures:
    """The features of a frozen backbone, kept in `dataset.cache_dir` unless `dataset.cache` is off."""
    dataset = settings.dataset
    store = None if dataset.cache == "off" else Store(dataset.cache_dir, dataset.cache_max_gb)
    return FrozenFeatures(backbone, data.digests, store, f"{dataset.resize} {data.settings.depth}", with_map)


def with_compute(settings: TrainSettings) -> TrainSettings:
    """The settings with `auto` in the precision replaced by what gains on the device that is there, `find_device`'s."""
    trainer = settings.trainer
    device = find_device(trainer.accelerator, trainer.precision)
    precision = native_precision(device) if trainer.precision == "auto" else trainer.precision
    tune(device, precision)
    return settings.model_copy(update={"trainer": trainer.model_copy(update={"precision": precision})})


def class_weights(settings: TrainSettings, data: DefectDataModule) -> list[float] | None:
    """Factor of each class in the loss, in logit order."""
    if settings.loss.class_weights == "none":
        return None
    counts = np.bincount(data.targets[data.part("train")], minlength=len(data.classes))
    # Every class weighs the same in all, and the mean image 1; one without images, as validation may have, as one.
    return (counts.sum() / (len(counts) * counts.clip(1))).tolist()


def build_trainer(
    training: TrainSettings, folder: Path, logger: Logger | None = None, record: L.Callback | None = None
) -> L.Trainer:
    """Lightning's Trainer: it does not save or print by itself. An evaluation has no `record` and no other callbacks.

    Raises:
        UserError: an argument, or a callback, is wrong, or what is named is no callback.
    """
    settings, stages = training.trainer, training.finetune.stages.values()
    callbacks = [] if record is None else [*_callbacks(training), record]
    for name in ("timm", "lightning.pytorch", "lightning.fabric"):  # their advice is not for the user of this tool
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning|torchmetrics")
    strategy = settings.strategy
    if strategy == "ddp" and any(stage.trainable != "all" for stage in stages):
        strategy = "ddp_find_unused_parameters_true"  # frozen layers send no gradients
    arguments: dict[str, Any] = {
        "accelerator": settings.accelerator,
        "devices": settings.devices,
        "strategy": strategy,
        "precision": "32-true" if settings.precision == "32" else f"{settings.precision}-mixed",
        "max_epochs": sum(stage.epochs for stage in stages),
        "gradient_clip_val": training.optim.clip,
        "default_root_dir": folder,
        "enable_checkpointing": bool(callbacks),
        "enable_progress_bar": any(isinstance(one, ProgressBar) for one in callbacks),
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,  # the data module deals its own
        "log_every_n_steps": LOG_EVERY,
    }
    try:
        arguments |= settings.further | {"sync_batchnorm": False}  # the classifier is of them
        trainer = L.Trainer(**arguments, logger=logger or False, callbacks=callbacks)
        if (environment := getattr(trainer.strategy, "cluster_environment", None)) is not None:
            environment.validate_settings(trainer.num_devices, trainer.num_nodes)
    except (TypeError, ValueError, RuntimeError, MisconfigurationException) as error:
        raise UserError(f"Lightning's Trainer: {error}") from error
    device = trainer.strategy.root_device
    if device.type == "cpu":
        keep_freed_memory()
    tune(device, settings.precision)
    return trainer


def _callbacks(settings: TrainSettings) -> list[L.Callback]:
    """Those of the group `callbacks`; no progress bar but on a terminal: a log file gets one line an epoch instead."""
    callbacks = []
    for name, given in settings.callbacks.items():
        try:
            callback = named(given.target, L.Callback)(**given.further)
        except (TypeError, ValueError, MisconfigurationException) as error:
            raise UserError(f"callbacks.{name}: {error}") from error
        if sys.stdout.isatty() or not isinstance(callback, ProgressBar):
            callbacks.append(callback)
    return callbacks
