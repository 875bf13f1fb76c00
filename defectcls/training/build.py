"""From a configuration to the objects of a run: the one place that instantiates."""

import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from timm.optim import list_optimizers

from defectcls.config import named
from defectcls.data.datamodule import DefectDataModule
from defectcls.data.store import Store
from defectcls.errors import UserError, did_you_mean
from defectcls.model.backbone import Backbone
from defectcls.model.classifier import LOG_EVERY, Classifier
from defectcls.model.features import FrozenFeatures
from defectcls.model.hardware import allow_tf32, choose_compute, find_device, keep_freed_memory
from defectcls.settings import TrainSettings
from defectcls.tables import DEFECTIVE, SOUND


def build_data(
    settings: TrainSettings,
    classes: dict[str, bool] | None = None,
    split: bool = True,
    device: torch.device = torch.device("cpu"),  # noqa: B008  immutable
) -> DefectDataModule:
    """The dataset of a configuration, listed, read, labelled and split.

    Args:
        device: that of the training, where the images may be kept.

    Raises:
        UserError: no image of a defective class is for training, and `model.head` is none that needs none.
    """
    alone, trains = settings.model.head == "memory", classes is None
    if alone and trains and settings.target == "defect":
        classes = {SOUND: False, DEFECTIVE: True}  # of a dataset without defects too
    data = DefectDataModule.from_settings(settings, device=device, classes=classes, test_all=not split)
    data.prepare_data()
    data.setup()
    if trains and split and not alone:
        for target in set(range(len(data.classes))) - set(data.targets[data.part("train")]):
            raise UserError(
                f"model.head={settings.model.head} learns from every class, and the split leaves none of the "
                f"{(data.targets == target).sum()} images of '{list(data.classes)[target]}' for training: "
                "model.head=memory finetune=probe needs sound ones alone, dataset.split.anomalies=10 shows ten, "
                "dataset.split.published=false its share"
            )
    return data


def build_classifier(settings: TrainSettings, data: DefectDataModule) -> Classifier:
    """A classifier for the classes of `data`, with its pretrained weights where asked for."""
    classifier: Classifier = named(settings.model.target, Classifier)(
        **settings.model_dump(mode="json", include={"model", "loss", "finetune", "optim", "augment"}),
        class_weights=class_weights(settings, data),
        classes=data.classes,
        image_size=settings.image_size,
        seed=settings.seed,
    )
    classifier.backbone.precision = settings.trainer.precision  # type: ignore[assignment]  # no longer auto
    try:
        classifier.configure_optimizers()  # a wrong name or option is told now, not after the probe
    except (TypeError, ValueError) as error:
        near = did_you_mean(settings.optim.name, map(str, list_optimizers()))
        raise UserError(f"optim.name={settings.optim.name}, {settings.optim.options}: {error}{near}") from error
    if settings.model.pretrained:
        classifier.backbone.load_pretrained(settings.model.weights)
    if settings.trainer.compile:
        classifier.backbone.body.compile()  # in place: no name in a checkpoint changes
    return classifier


def build_features(settings: TrainSettings, data: DefectDataModule, backbone: Backbone) -> FrozenFeatures:
    """The features of a frozen backbone, kept in `dataset.cache_dir` unless `dataset.cache` is off."""
    dataset = settings.dataset
    store = None if dataset.cache == "off" else Store(dataset.cache_dir, dataset.cache_max_gb)
    return FrozenFeatures(backbone, data.digests, store, f"{dataset.resize} {data.settings.depth}")


def with_compute(settings: TrainSettings) -> TrainSettings:
    """The settings with `auto` in the precision replaced by what gains on the device that is there.

    Raises:
        UserError: a GPU is asked for, or float16, and there is none.
    """
    trainer = settings.trainer
    device = find_device(trainer.accelerator, trainer.precision)
    return settings.model_copy(update={"trainer": choose_compute(trainer, device)})


def class_weights(settings: TrainSettings, data: DefectDataModule) -> list[float] | None:
    """Factor of each class in the loss, in logit order."""
    if settings.loss.class_weights == "none":
        return None
    counts = np.bincount(data.targets[data.part("train")], minlength=len(data.classes))
    # Every class weighs the same in all, and the mean image 1; one without images, as validation may have, as one.
    return (counts.sum() / (len(counts) * counts.clip(1))).tolist()


def build_trainer(
    training: TrainSettings, folder: Path, logger: Logger | None = None, callbacks: Sequence[L.Callback] = ()
) -> L.Trainer:
    """Lightning's Trainer: it does not save or print by itself. An evaluation has no callbacks."""
    settings, stages = training.trainer, training.finetune.active_stages.values()
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
        trainer = L.Trainer(**arguments | settings.further, logger=logger or False, callbacks=list(callbacks))
    except (TypeError, ValueError, MisconfigurationException) as error:
        raise UserError(f"Lightning's Trainer: {error}") from error
    device = trainer.strategy.root_device
    if device.type == "cpu":
        keep_freed_memory()
    if settings.precision != "32":
        allow_tf32(device)
    return trainer


def build_callbacks(settings: TrainSettings) -> list[L.Callback]:
    """Those of the group `callbacks`; no progress bar but on a terminal: a log file gets one line an epoch instead.

    Raises:
        UserError: one cannot be made of its arguments, or is no callback.
    """
    callbacks = []
    for name, given in settings.callbacks.items():
        if given is not None:
            try:
                callback = named(given.target, L.Callback)(**given.further)
            except (TypeError, ValueError, MisconfigurationException) as error:
                raise UserError(f"callbacks.{name}: {error}") from error
            if sys.stdout.isatty() or not isinstance(callback, ProgressBar):
                callbacks.append(callback)
    return callbacks
