"""Fine-tuning stages: what trains, with which learning rates and BatchNorm mode, as a pure function of the step.

All optimiser groups exist from the first step, so that a run can be resumed anywhere; a stage only switches
`requires_grad`, learning rates and BatchNorm modes.
"""

from typing import NamedTuple

import torch
from timm.optim import create_optimizer_v2, param_groups_weight_decay
from timm.scheduler import create_scheduler_v2
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from defectcls.model.backbone import Backbone
from defectcls.settings import FinetuneSettings, OptimSettings, StageSettings


class Stage(NamedTuple):
    """One stage in steps of the optimiser."""

    name: str
    start: int
    end: int
    settings: StageSettings


def plan_stages(settings: FinetuneSettings, steps_per_epoch: int, ended: dict[str, int]) -> list[Stage]:
    """The stages one after another.

    Args:
        ended: the step at which a stage ended before its time, by its name; the next one begins there.
    """
    plan: list[Stage] = []
    for name, stage in settings.stages.items():
        start = plan[-1].end if plan else 0
        plan.append(Stage(name, start, ended.get(name, start + stage.epochs * steps_per_epoch), stage))
    return plan


def stage_at(plan: list[Stage], step: int) -> Stage:
    """The stage that a step belongs to; steps past the end belong to the last one."""
    return next((stage for stage in plan if step < stage.end), plan[-1])


def build_optimizer(backbone: Backbone, head: nn.Module, settings: OptimSettings) -> torch.optim.Optimizer:
    """timm's optimiser over all parameters; biases and norms do not decay."""
    spared: set[str] = getattr(backbone.body, "no_weight_decay", set)()  # timm models name what else must not decay
    groups = param_groups_weight_decay(backbone.body, settings.weight_decay, no_weight_decay_list=spared)
    groups += param_groups_weight_decay(head, settings.weight_decay)
    return create_optimizer_v2(groups, opt=settings.name, lr=settings.lr, **settings.options)


def set_learning_rate(optimizer: torch.optim.Optimizer, settings: OptimSettings, stage: Stage, step: int) -> None:
    """Learning rate of every group at a step: timm's schedule over the stage's steps."""
    lr = settings.lr * stage.settings.lr_scale
    for group in optimizer.param_groups:
        group["initial_lr"] = lr  # the schedule starts from here, whatever a resumed checkpoint left behind
    least, steps = lr * settings.min_lr_ratio, stage.end - stage.start
    scheduler, _ = create_scheduler_v2(
        optimizer,
        settings.schedule,
        num_epochs=steps,  # in timm's words a step is an epoch of one update
        updates_per_epoch=1,
        step_on_epochs=False,
        warmup_epochs=round(settings.warmup * steps),
        warmup_lr=least,
        min_lr=least,
    )
    scheduler.step_update(step - stage.start)


def switch_training(backbone: Backbone, head: nn.Module, stage: Stage, batchnorm: str) -> None:
    """Let the stage's share of the network train; BatchNorm of frozen layers, or of all, keeps its statistics."""
    depth = backbone.layers()
    deepest = max(depth.values())
    share = {"head": 0.0, "all": 1.0}.get(str(stage.settings.trainable), stage.settings.trainable)
    trained = {name for name, layer in depth.items() if layer > deepest - float(share) * (deepest + 1)}
    for name, parameter in backbone.body.named_parameters():
        parameter.requires_grad_(name in trained)
    head.requires_grad_(True).train()
    backbone.train()
    for module in backbone.modules():
        if isinstance(module, _BatchNorm):
            moves = module.weight is None or module.weight.requires_grad
            module.train(moves and batchnorm == "train")
