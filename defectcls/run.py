"""Train a run and measure it, or measure a trained one again."""

import json
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pandas as pd
import torch
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.environments import LightningEnvironment
from pydantic import ValidationError
from scipy.special import softmax

from defectcls.build import build_classifier, build_data, build_trainer
from defectcls.config import job_command, parse
from defectcls.data.datamodule import DefectDataModule
from defectcls.errors import UserError, explain
from defectcls.evaluation.metrics import compute_metrics
from defectcls.evaluation.predictions import predictions_table
from defectcls.model.classifier import Classifier, load_classifier
from defectcls.model.probe import extract_features, fit_probe
from defectcls.model.record import Progress, Record, collapse, stage_summary
from defectcls.results import provenance
from defectcls.settings import EvaluateSettings, TrainSettings

log = logging.getLogger(__name__)

PARTS = ("train", "val", "test")


class Run:
    """A data module, a classifier and a trainer that fit together, and the seconds that their phases took."""

    def __init__(self, data: DefectDataModule, classifier: Classifier, trainer: L.Trainer) -> None:
        self.data, self.classifier, self.trainer = data, classifier, trainer
        self.seconds: dict[str, float] = {}
        self.images_per_second: dict[str, float] = {}

    @contextmanager
    def timed(self, phase: str, images: int = 0) -> Iterator[None]:
        """Add to `seconds`, and to `images_per_second` where images are counted."""
        start = time.perf_counter()
        yield
        self.seconds[phase] = time.perf_counter() - start
        if images:
            self.images_per_second[phase] = images / self.seconds[phase]

    def predict(self, part: str) -> pd.DataFrame:
        """Predictions table of one part."""
        self.trainer.test(self.classifier, dataloaders=self.data.part_dataloader(part), verbose=False)
        index, logits = self.classifier.evaluated
        classes = self.data.classes
        probabilities = softmax(logits.astype(np.float64), axis=1)
        return predictions_table(self.data.samples.loc[index], probabilities, list(classes), list(classes.values()))

    def metrics(self, predictions: pd.DataFrame) -> dict[str, Any]:
        """Numbers of a predictions table."""
        return compute_metrics(predictions, list(self.data.classes), list(self.data.classes.values()))

    def describe(self) -> dict[str, Any]:
        """What metrics.json says of the run besides its numbers."""
        return {
            "class_names": list(self.data.classes),
            "defective_classes": list(self.data.classes.values()),
            "unreadable": self.data.unreadable,
            "seconds": self.seconds,
            "images_per_second": self.images_per_second,
            "command": job_command(),
        }

    def close(self) -> None:
        """Let go of the other processes: the next job of a sweep starts its own."""
        if torch.distributed.is_initialized():
            started_here = isinstance(getattr(self.trainer.strategy, "cluster_environment", None), LightningEnvironment)
            torch.distributed.destroy_process_group()
            for name in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE") if started_here else ():
                os.environ.pop(name, None)


class TrainingRun(Run):
    """A run that trains: from the probe through the stages to the best checkpoint."""

    def __init__(self, settings: TrainSettings, config: dict[str, Any], folder: Path, logger: Logger | None) -> None:
        self.settings, self.config, self.folder, self.logger = settings, config, folder, logger
        start = time.perf_counter()
        L.seed_everything(settings.seed, workers=True, verbose=False)
        data = build_data(settings)
        about = {"config": json.loads(json.dumps(config, default=str))}
        self.record = Record(folder, about, settings.batch_size)
        trainer = build_trainer(settings.trainer, folder, logger, self._callbacks(), settings)
        classifier = build_classifier(settings, data)
        super().__init__(data, classifier, trainer)
        self.seconds["data"] = time.perf_counter() - start

    def _callbacks(self) -> list[L.Callback]:
        callbacks: list[L.Callback] = [self.record]
        if sys.stdout.isatty():
            callbacks.append(Progress(self.settings.batch_size))
        if self.settings.finetune.patience is not None:
            callbacks.append(EarlyStopping("val/auroc", mode="max", patience=self.settings.finetune.patience))
        if self.settings.optim.ema is not None:
            callbacks.append(EMAWeightAveraging(decay=self.settings.optim.ema))
        return callbacks

    def train(self) -> None:
        """Baseline, probe, stages; ends with the best weights in place. Goes on from last.ckpt where there is one."""
        last = str(self.record.last) if self.record.last.is_file() else None
        if last is None:
            self._begin()
        else:
            self.record.load_state_dict(torch.load(last, map_location="cpu", weights_only=True)["callbacks"]["Record"])
        if self.settings.finetune.active_stages:
            if not self.record.measured.get("fitted"):
                with self.timed("fit"):
                    self.trainer.fit(self.classifier, datamodule=self.data, ckpt_path=last, weights_only=True)
            for row in stage_summary(self.record.history):
                if row["rolled_back"]:
                    log.warning("%s", collapse(self.record.history, row["name"]))
            speeds = [row["images_per_second"] for row in self.record.history if "images_per_second" in row]
            self.images_per_second["fit"] = float(np.median(speeds))
        best = torch.load(self.record.best, map_location="cpu", weights_only=True)
        self.classifier.load_state_dict(best["state_dict"])

    def _begin(self) -> None:
        """Measure the untrained head; then solve the probe, and make it the first candidate for the best checkpoint."""
        with self.timed("baseline", len(self.data.part("test"))):
            self.record.measured["baseline"] = self.metrics(self.predict("test"))
        if not self.settings.finetune.probe:
            return
        views = self.settings.finetune.probe_views
        seen = len(self.data.part("train")) * (1 + views) + len(self.data.part("val"))
        with self.timed("probe", seen):
            backbone, device = self.classifier.backbone, self.trainer.strategy.root_device
            backbone.to(device)
            autocast = self.trainer.precision_plugin.forward_context
            loaders = [self.data.part_dataloader(part) for part in ("train", "val")]
            torch.manual_seed(self.settings.seed)
            train = extract_features(backbone, loaders[0], device, autocast(), self.classifier.augment, views)
            val = extract_features(backbone, loaders[1], device, autocast())
            weights = self.classifier.hparams["class_weights"]
            head = fit_probe(train, val, self.settings.finetune.probe_c, weights, views)
        log.info("probe: C = %g", head.c)
        self.classifier.head.load(head)
        self.trainer.validate(self.classifier, datamodule=self.data, verbose=False)

    def measure(self) -> tuple[dict[str, Any], pd.DataFrame]:
        """metrics.json and the predictions table of all three parts, from the best weights."""
        tables = {}
        for part in PARTS:
            with self.timed(f"evaluate {part}", len(self.data.part(part))):
                tables[part] = self.predict(part)
        metrics: dict[str, Any] = {
            "dataset": self.settings.dataset.name,
            "model": self.settings.model.name,
            "baseline": self.record.measured["baseline"],
            **{part: self.metrics(table) for part, table in tables.items()},
            "stages": stage_summary(self.record.history),
            **self.describe(),
            **provenance(self.settings.seed, self.config),
        }
        return metrics, pd.concat(tables.values()).sort_index()


class EvaluationRun(Run):
    """A trained model on one part of its own dataset, or of another, computed as it was in training."""

    def __init__(self, settings: EvaluateSettings, folder: Path) -> None:
        self.part = settings.part or ("test" if settings.dataset is None else "all")
        checkpoint = checkpoint_file(settings.checkpoint)
        # Where it ran is not to be repeated, how it computed is.
        place = {"accelerator": "auto", "devices": 1, "strategy": "auto"}
        try:
            classifier, about = load_classifier(checkpoint)
            trained = parse(TrainSettings, about["config"] | {"trainer": about["config"]["trainer"] | place})
        except (ValidationError, TypeError, RuntimeError) as error:  # a key, an argument or a layer that is no more
            reason = explain(error) or str(error).splitlines()[0]
            raise UserError(f"{checkpoint} is of another version of defectcls: {reason}") from error
        self.trained = trained.model_copy(update={"dataset": settings.dataset or trained.dataset})
        if self.part in ("train", "all") and self.trained.dataset.root.resolve() == trained.dataset.root.resolve():
            log.warning("these images are, or hold, the ones that the model learnt from: new ones it will judge worse")
        data = build_data(self.trained, classifier.classes, split=self.part != "all")
        super().__init__(data, classifier, build_trainer(self.trained.trainer, folder, None, []))

    def measure(self) -> tuple[dict[str, Any], pd.DataFrame]:
        """metrics.json and the predictions table of the part."""
        part = "test" if self.part == "all" else self.part
        with self.timed(f"evaluate {part}", len(self.data.part(part))):
            predictions = self.predict(part)
        metrics = {
            "dataset": self.trained.dataset.name,
            "model": self.trained.model.name,
            part: self.metrics(predictions),
            **self.describe(),
            **provenance(self.trained.seed, self.trained.model_dump(mode="json")),
        }
        return metrics, predictions


def checkpoint_file(path: Path) -> Path:
    """The file itself, or the best checkpoint of a run folder.

    Raises:
        UserError: neither is there.
    """
    if path.is_file():
        return path
    best = path / "checkpoints" / "best.ckpt"
    if not path.is_dir():
        raise UserError(f"checkpoint={path} does not exist: give a run folder or a .ckpt file")
    if not best.is_file():
        raise UserError(f"the folder {path} holds no checkpoint: {best.relative_to(path)} is missing")
    return best
