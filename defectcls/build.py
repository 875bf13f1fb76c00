"""From a configuration to the objects of a run: the one place that instantiates."""

import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import Logger
from timm.optim import list_optimizers

from defectcls.data.datamodule import DefectDataModule
from defectcls.errors import UserError, did_you_mean
from defectcls.model.classifier import Classifier
from defectcls.model.losses import balanced_weights
from defectcls.settings import LossSettings, TrainerSettings, TrainSettings


def build_data(settings: TrainSettings, classes: dict[str, bool] | None = None, split: bool = True) -> DefectDataModule:
    """The dataset of a configuration, listed, read, labelled and split."""
    data = DefectDataModule(
        settings.dataset,
        target=settings.target,
        image_size=settings.image_size,
        batch_size=settings.batch_size,
        sampler=settings.sampler,
        seed=settings.seed,
        cache_gb=settings.trainer.cache_gb,
        workers=settings.trainer.workers,
        classes=classes,
        split=split,
    )
    data.prepare_data()
    data.setup()
    return data


def build_classifier(settings: TrainSettings, data: DefectDataModule) -> Classifier:
    """A classifier for the classes of `data`, with its pretrained weights where asked for."""
    classifier = Classifier(
        **{
            part: getattr(settings, part).model_dump(mode="json")
            for part in ("model", "loss", "finetune", "optim", "augment")
        },
        class_weights=class_weights(settings.loss, data),
        classes=data.classes,
        image_size=settings.image_size,
        channels_last=settings.trainer.channels_last,
        seed=settings.seed,
    )
    try:
        classifier.configure_optimizers()  # a wrong name or option is told now, not after the probe
    except (TypeError, ValueError) as error:
        near = did_you_mean(settings.optim.name, map(str, list_optimizers()))
        raise UserError(f"optim.name={settings.optim.name}, {settings.optim.options}: {error}{near}") from error
    if settings.model.pretrained:
        classifier.backbone.load_pretrained(settings.model.weights)
    return classifier


def class_weights(settings: LossSettings, data: DefectDataModule) -> list[float] | None:
    """Factor of each class in the loss, in logit order."""
    names = list(data.classes)
    if settings.class_weights == "none":
        return None
    if settings.class_weights == "balanced":
        return balanced_weights(np.bincount(data.targets[data.part("train")], minlength=len(names)).tolist())
    if set(settings.class_weights) != set(names):
        given = ", ".join(settings.class_weights)
        raise UserError(f"loss.class_weights names {given}, but the classes are {', '.join(names)}")
    return [settings.class_weights[name] for name in names]


def build_trainer(
    settings: TrainerSettings,
    folder: Path,
    logger: Logger | None,
    callbacks: list[L.Callback],
    training: TrainSettings | None = None,
) -> L.Trainer:
    """Lightning's Trainer: it does not save or print by itself."""
    _quiet()
    if settings.accelerator == "gpu" and not (torch.cuda.is_available() or torch.backends.mps.is_available()):
        raise UserError("trainer.accelerator=gpu, but torch finds no GPU here: use trainer=auto or trainer=cpu")
    stages = training.finetune.active_stages.values() if training else []
    epochs = [stage.epochs for stage in stages]
    strategy = settings.strategy
    if strategy == "ddp" and any(stage.trainable != "all" for stage in stages):
        strategy = "ddp_find_unused_parameters_true"  # frozen layers send no gradients
    return L.Trainer(
        accelerator=settings.accelerator,
        devices=settings.devices,
        strategy=strategy,
        precision=precision_of(settings),
        max_epochs=sum(epoch or 0 for epoch in epochs) if None not in epochs else -1,
        min_epochs=0,
        gradient_clip_val=training.optim.clip if training else None,
        logger=logger or False,
        callbacks=callbacks,
        default_root_dir=folder,
        enable_checkpointing=False,
        enable_progress_bar=sys.stdout.isatty(),  # a log file gets one line an epoch instead
        enable_model_summary=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,  # the data module deals its own
        log_every_n_steps=10,
    )


def precision_of(settings: TrainerSettings) -> Any:
    """Lightning's precision: bf16 autocast where the hardware computes in it, else float32."""
    if settings.precision != "auto":
        return {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}[settings.precision]
    if settings.accelerator != "cpu" and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return "bf16-mixed" if any(getattr(torch.cpu, check, bool)() for check in checks) else "32-true"


def _quiet() -> None:
    """Lightning's advice on workers and hardware is not for the user of this tool."""
    for name in ("timm", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", module="torchmetrics")
    warnings.filterwarnings("ignore", message=".*_register_pytree_node.*")
