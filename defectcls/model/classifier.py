"""The LightningModule: uint8 pixels -> augmentation, backbone, head -> logits."""

import inspect
import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import nn
from torchmetrics.functional import auroc, f1_score, precision, recall

from defectcls.config import named
from defectcls.data.batches import Batch
from defectcls.errors import UserError
from defectcls.evaluation.calibration import calibrated_loss
from defectcls.model.augment import Augment
from defectcls.model.features import AS_IT_IS, FrozenFeatures, View, copy_of
from defectcls.model.network import Network
from defectcls.model.stages import Stage, build_optimizer, plan_stages, set_learning_rate, stage_at, switch_training
from defectcls.settings import AugmentSettings, FinetuneSettings, LossSettings, ModelSettings, OptimSettings, Precision

LOG_EVERY = 10  # steps
CHECK_FINITE_EVERY = 50  # steps; reading the loss makes a GPU wait


class Classifier(Network, L.LightningModule):
    """A `Network` that learns.

    All arguments are plain values, so that a checkpoint loads without Hydra. It trains, validates and tests with any
    Trainer of Lightning's.

    A model of one's own is a subclass, which a preset names by its `_target_`; `options` are the preset's further keys.
    It may replace `backbone`, `head` or `augment` in its constructor and override `forward`, `training_step` or
    `configure_optimizers`: whatever evaluates asks `forward`. What it learns must be in its state dict.

    Args:
        model, loss, finetune, optim, augment: the settings of these names, as dictionaries.
        class_weights: factor of each class in the loss, in logit order; None weighs all alike.
        classes: class name -> defective, in logit order.
        image_size: height and width in pixels.
        members: see `Network`, also for what is refused; one that is trained by gradients has one.
        seed: every epoch draws its augmentation from (seed, epoch), so a resumed run repeats nothing.
    """

    def __init__(
        self,
        model: dict[str, Any],
        loss: dict[str, Any],
        finetune: dict[str, Any],
        optim: dict[str, Any],
        augment: dict[str, Any],
        class_weights: list[float] | None,
        classes: dict[str, bool],
        image_size: Sequence[int],
        seed: int,
        members: int = 1,
    ) -> None:
        super().__init__(ModelSettings(**model), classes, (image_size[0], image_size[1]), members)
        self.save_hyperparameters()
        self.finetune, self.optim, self.seed = FinetuneSettings(**finetune), OptimSettings(**optim), seed
        self.augment = Augment(AugmentSettings(**augment))
        self._loss = LossSettings(**loss), class_weights
        self.plan: list[Stage] = []
        self.ended: dict[str, int] = {}  # stages that ended before their time, and at which step
        self.stage: Stage | None = None
        self.stored_features: FrozenFeatures | None = None  # of the backbone as it was before training
        self.folds: torch.Tensor | None = None  # of the rows of the sample table, -1 of those that no member has seen
        self.out_of_fold: torch.Tensor | None = None  # logits of these rows by their members, where they are known
        self._head_trains_on: FrozenFeatures | None = None  # in a stage of the head alone
        self._evaluate: Callable[[Batch], torch.Tensor] | None = None  # of the evaluation that runs
        self._outputs: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        self.evaluated: tuple[np.ndarray, np.ndarray] = (np.empty(0, np.int64), np.empty((0, len(classes)), np.float32))

    @cached_property
    def loss(self) -> nn.Module:
        """Of logits and targets, with `class_weights` if it takes a `weight`.

        No part of the network: a file that names one is evaluated without it being called.

        Raises:
            UserError: class weights are asked for, and the loss takes none.
        """
        settings, weight = self._loss
        kind = named(settings.target, nn.Module)
        takes_weight = "weight" in inspect.signature(kind).parameters
        if not takes_weight and settings.class_weights not in ("auto", "none"):
            raise UserError(
                f"loss.class_weights are given, and {settings.target} has no argument `weight` to take them: "
                "loss.class_weights=none, or give it one"
            )
        factors = {"weight": torch.tensor(weight)} if takes_weight and weight is not None else {}
        return kind(**settings.further, **factors).to(self.device)

    def evaluation(self) -> Callable[..., torch.Tensor]:
        """As `inference`, of batches of the data module, and of a `View` of them if one is given besides.

        Where features are stored of the weights of now, they stand in for the backbone.
        """
        stored, infer = self._features_now(), self.inference()

        @torch.inference_mode()
        def evaluate(batch: Batch, view: View = AS_IT_IS) -> torch.Tensor:
            if self.out_of_fold is not None and view == AS_IT_IS:
                return self.out_of_fold[batch["index"]].to(self.device)
            folds = [] if self.folds is None else [self.folds[batch["index"]]]
            if stored is None:
                return infer(view.change(batch["image"], []), *folds)
            seen = [stored.look(batch, view.then(way)) for way in self.ways]
            return self.judge([tuple(one.to(self.device) for one in way) for way in seen], folds[0] if folds else None)

        return evaluate

    def _features_now(self) -> FrozenFeatures | None:
        """The stored features, if they are of the present weights, and nothing but `judge` makes logits of them."""
        stored = self.stored_features
        plain = type(self).forward is Network.forward
        return stored if plain and stored is not None and stored.weights == self.backbone.digest() else None

    def setup(self, stage: str) -> None:  # noqa: ARG002  Lightning's signature
        ours: dict[str, Precision] = {"bf16-mixed": "bf16", "16-mixed": "16"}
        self.backbone.precision = ours.get(str(self.trainer.precision), "32")  # of those that cast the weights, too
        if self.trainer.world_size > 1:
            self._agree()

    def _agree(self) -> None:
        """What the first process has solved before it met the others is everybody's: its head, and what that judges.

        Raises:
            UserError: `auto` is another precision for another process, in all of them.
        """
        own = {name: value.cpu() for name, value in self.state_dict().items() if not name.startswith("backbone.body.")}
        said, strategy = (self.backbone.precision, own, self.out_of_fold), self.trainer.strategy
        precision, solved, self.out_of_fold = strategy.broadcast(said)
        if not strategy.reduce_boolean_decision(precision == self.backbone.precision):
            raise UserError(f"not all processes compute best in {precision}: trainer.precision=32, bf16 or 16 for all")
        self.load_state_dict(solved, strict=False)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        moved = {name: values for name, values in batch.items() if name != "index"}
        # The index stays with those who ask for it: to fetch it would make a GPU wait.
        return super().transfer_batch_to_device(moved, device, dataloader_idx) | {"index": batch["index"].cpu()}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = build_optimizer(self.backbone, self.head, self.optim)
        known = {parameter for group in optimizer.param_groups for parameter in group["params"]}
        if more := [parameter for parameter in self.parameters() if parameter not in known]:  # a subclass's own
            optimizer.add_param_group({"params": more})
        return optimizer

    def on_fit_start(self) -> None:
        if not self.finetune.stages:
            raise UserError(
                f"finetune={self.finetune.name} has no stage to train: defectcls.run solves its head, and fit takes "
                "finetune=full, finetune=head or another"
            )

    def on_train_epoch_start(self) -> None:
        steps = math.ceil(int(self.trainer.num_training_batches) / self.trainer.accumulate_grad_batches)
        self.plan = plan_stages(self.finetune, steps, self.ended)
        self.stage = None  # the evaluation between two epochs may have changed the modes

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002  Lightning's signature
        step = self.trainer.global_step
        stage = stage_at(self.plan, step)
        if stage != self.stage:
            switch_training(self.backbone, self.head, stage, self.finetune.batchnorm)
            self.stage = stage
            self._head_trains_on = self._features_now() if stage.settings.trainable == "head" else None
            if self.stored_features is not None:  # whose network would lie on the device beside the one that trains
                self.stored_features._look = None
        set_learning_rate(self.trainer.optimizers[0], self.optim, stage, step)
        if self.logger and step % LOG_EVERY == 0:  # not by `log`, which would make it a tensor
            self.logger.log_metrics({"lr": self.trainer.optimizers[0].param_groups[-1]["lr"]}, step)
        if batch_idx == 0:  # by the epoch, so that a resumed run goes on as it would have
            epoch = self.seed * 1_000_003 + self.trainer.current_epoch
            torch.manual_seed(epoch * self.trainer.world_size + self.trainer.global_rank)

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        target = batch["target"]
        if self._head_trains_on is not None:
            copy = self.trainer.current_epoch % (1 + self.finetune.probe_views)  # the epochs take turns with them
            logits = self.head(self._head_trains_on.look(batch, copy_of(copy, self.augment, self.seed))[0])
        else:
            logits = self(self.augment(batch["image"]))
        loss = self.loss(logits, target)
        if batch_idx % CHECK_FINITE_EVERY == 0 and not torch.isfinite(loss):
            step = self.trainer.global_step
            raise UserError(f"the loss is {loss.item()} at step {step}: lower optim.lr, or try trainer.precision=32")
        values = {"train/loss": loss.detach(), "train/accuracy": (logits.argmax(1) == target).float().mean()}
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=len(logits), sync_dist=True)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002
        if self.trainer.global_step >= self.plan[-1].end:
            self.trainer.should_stop = True

    def on_validation_epoch_start(self) -> None:
        self._evaluate = self.evaluation()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:  # noqa: ARG002
        assert self._evaluate is not None
        self._outputs.append((batch["index"], batch["target"], self._evaluate(batch)))

    def on_validation_epoch_end(self) -> None:
        logits, target = self._gather()
        probabilities = logits.double().softmax(1)  # float32 would call what is surely right as sure as can be
        scores, count = logits.softmax(1), len(self.classes)
        # Of class 1, the defective one, with two classes; of more the mean over classes.
        given, task = (scores[:, 1], "binary") if count == 2 else (scores, "multiclass")
        watched: dict[str, Any] = {"precision": precision, "recall": recall, "f1": f1_score, "auroc": auroc}
        values: dict[str, Any] = {
            "loss": nn.functional.cross_entropy(logits, target),
            "calibrated_loss": torch.tensor(calibrated_loss(probabilities.numpy(), target.numpy())),
            "accuracy": (logits.argmax(1) == target).float().mean(),
            **{name: of(given, target, task, num_classes=count, average="macro") for name, of in watched.items()},
        }
        sides = torch.tensor(list(self.classes.values()))
        if sides.any() and not sides.all():  # of defective against sound, as everywhere
            values["auroc"] = auroc(scores[:, sides].sum(1).clamp(max=1), sides[target].long(), "binary")
        self.log_dict({f"val/{name}": value.float() for name, value in values.items()})  # alike in all processes

    on_test_epoch_start, test_step = on_validation_epoch_start, validation_step

    def on_test_epoch_end(self) -> None:
        self._gather()

    def _gather(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits and targets of all processes in the order of `index`, every image once; keeps them in `evaluated`.

        On the CPU: of an Apple GPU there would be no float64.
        """
        index, target, logits = (torch.cat(column) for column in zip(*self._outputs, strict=True))
        self._outputs.clear()
        self._evaluate = None
        if self.trainer.world_size > 1:
            own = (column.to(self.device) for column in (index, target, logits))
            index, target, logits = (torch.as_tensor(self.all_gather(column)).flatten(0, 1) for column in own)
        rows, first = np.unique(index.cpu().numpy(), return_index=True)
        logits, target = logits.cpu()[first], target.cpu()[first]
        self.evaluated = rows, logits.numpy()
        return logits, target
