"""What a training run keeps as it goes: its history, its best and its last checkpoint."""

import contextlib
import logging
import math
import time
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import lightning as L
import pandas as pd
import torch
from lightning.pytorch.callbacks import Checkpoint, WeightAveraging

from defectcls.errors import UserError
from defectcls.files import BEST, LAST, written_whole
from defectcls.model.classifier import Classifier
from defectcls.model.stages import stage_at

log = logging.getLogger(__name__)

Row = dict[str, Any]

CRITERION = "val/calibrated_loss"  # lower is better


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What `Record` wrote there; runs no code that the file might hold.

    Raises:
        UserError: it is gone, cut off or of another tool, and how its run begins anew.
    """
    with contextlib.suppress(Exception):  # torch raises whatever the foreign bytes happen to trip over
        content = torch.load(path, map_location="cpu", weights_only=True)
        if {"config", "history", "fitted"} <= content["defectcls"].keys():
            return content
    again = "it" if path.name == LAST.name else f"it and {LAST}"
    raise UserError(f"{path} is damaged: delete {again} to begin the fine-tuning anew")


class Record(Checkpoint):
    """Writes metrics.csv, best.ckpt and last.ckpt, and in each its history, one row an evaluation.

    As Lightning has it of what writes checkpoints, it comes after all other callbacks.

    The probe that a run begins with is row 0 and a candidate for the best checkpoint like every epoch after it. A stage
    that ends without having reached the best evaluation before it is rolled back: the next one starts from the best.

    Args:
        folder: of the run.
        patience: a stage ends after so many evaluations that have not bettered it; None: never.
    """

    def __init__(self, folder: Path, patience: int | None) -> None:
        self.folder, self.patience = folder, patience
        self.about: dict[str, Any] = {}  # plain values that go into every checkpoint, enough to evaluate it anywhere
        self.best, self.last = folder / BEST, folder / LAST
        self.history: list[Row] = []
        self.fitted = False  # a run that stopped early must not go on when it is resumed
        self._started, self._images = time.perf_counter(), 0

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:  # noqa: ARG002
        checkpoint["defectcls"] = self.about | {"history": self.history, "fitted": self.fitted}

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: Classifier) -> None:  # type: ignore[override]  # noqa: ARG002
        self._started, self._images = time.perf_counter(), 0
        pl_module.ended = ended_stages(self.history, self.patience)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Classifier, batch: Any, batch_idx: int) -> None:  # type: ignore[override]  # noqa: ARG002
        self._images += len(batch["index"])
        starting = stage_at(pl_module.plan, trainer.global_step)
        if trainer.global_step != starting.start or not self.history:
            return
        if (before := self.history[-1]["stage"]) not in (starting.name, best_row(self.history)["stage"]):
            log.warning("stage '%s' was rolled back: stage '%s' starts from the best", before, starting.name)
            pl_module.load_state_dict(read_checkpoint(self.best)["state_dict"])
            trainer.optimizers[0].state.clear()
            for averaging in (one for one in trainer.callbacks if isinstance(one, WeightAveraging)):  # type: ignore[attr-defined]
                assert averaging._average_model is not None
                averaging._average_model.n_averaged.zero_()  # the next step begins it anew

    def on_validation_end(self, trainer: L.Trainer, pl_module: Classifier) -> None:  # type: ignore[override]
        stage, epoch = (pl_module.stage.name, trainer.current_epoch + 1) if pl_module.stage else ("probe", 0)
        row: Row = {"epoch": epoch, "step": trainer.global_step, "stage": stage}
        row |= {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        self.history.append(row)
        self._keep(trainer, self.best if best_row(self.history) is row else None)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Classifier) -> None:  # type: ignore[override]
        row, seconds = self.history[-1], time.perf_counter() - self._started
        row |= {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("train/")}
        row |= {"lr": trainer.optimizers[0].param_groups[-1]["lr"], "seconds": seconds}
        row["images_per_second"] = self._images * trainer.world_size / seconds
        log.info(
            "epoch %d (%s): training loss %.4f, calibrated validation loss %.4f, AUROC %.4f, %.0f img/s",
            *(row[key] for key in ("epoch", "stage", "train/loss", CRITERION, "val/auroc", "images_per_second")),
        )
        if (stage := row["stage"]) in ended_stages(self.history, self.patience):
            log.info("stage '%s' ends: %d epochs in a row did not better it", stage, self.patience)
            trainer.should_stop |= stage == pl_module.plan[-1].name
        self.fitted = trainer.should_stop
        self._keep(trainer, self.last)

    def _keep(self, trainer: L.Trainer, checkpoint: Path | None) -> None:
        if checkpoint is not None:
            with written_whole(checkpoint, trainer.is_global_zero) as unfinished:
                trainer.save_checkpoint(unfinished)
            trainer.strategy.barrier()
        if trainer.is_global_zero:
            pd.DataFrame(self.history).to_csv(self.folder / "metrics.csv", index=False)


def best_row(history: list[Row]) -> Row:
    """The evaluation with the lowest calibrated validation loss, of equal ones the highest AUROC, of equal the first.

    A loss, because AUROC and accuracy have few values on a small validation part and are all 1 on an easy one. Why
    this loss: see `calibrated_loss`.
    """

    def rank(row: Row) -> list[float]:
        return [math.inf if math.isnan(value) else value for value in (row[CRITERION], -row["val/auroc"])]

    return min(history, key=rank)


def ended_stages(history: list[Row], patience: int | None) -> dict[str, int]:
    """The step after which a stage had gone `patience` evaluations without a better one of its own, by its name."""
    ended = {}
    for name, group in groupby(history, key=itemgetter("stage")):
        rows = [*group]
        if patience is not None and len(rows) - 1 - rows.index(best_row(rows)) >= patience:
            ended[name] = rows[-1]["step"]
    return ended


def stage_summary(history: list[Row]) -> list[dict[str, Any]]:
    """Each stage that ran: {name, epochs, best: {metric: value}, rolled_back: it did not better what came before}."""
    summary: list[dict[str, Any]] = []
    until_then: list[Row] = []
    for name, group in groupby(history, key=itemgetter("stage")):
        rows = [*group]
        until_then += rows
        best = {key.removeprefix("val/"): value for key, value in best_row(rows).items() if key.startswith("val/")}
        worse = best_row(until_then)["stage"] != name
        summary.append({"name": name, "epochs": len(rows), "best": best, "rolled_back": worse})
    return summary
