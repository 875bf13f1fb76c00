"""Stages: what trains at which step, how fast, and with which BatchNorm, by hand."""

import math
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from defectcls.config import CONF_DIR
from defectcls.model.backbone import Backbone
from defectcls.model.stages import build_optimizer, plan_stages, set_learning_rate, stage_at, switch_training
from defectcls.settings import FinetuneSettings, OptimSettings

RESNET = "test_resnet.r160_in1k"  # five depths: stem 0, then four residual stages


def finetune(**stages: dict[str, Any] | None) -> FinetuneSettings:
    preset = OmegaConf.to_container(OmegaConf.load(CONF_DIR / "finetune" / "probe_then_full.yaml"))
    assert isinstance(preset, dict)
    return FinetuneSettings(**preset | {"probe": True, "stages": stages})


def stage(epochs: int = 1, trainable: Any = "all", lr_scale: float = 1) -> dict[str, Any]:
    return {"epochs": epochs, "trainable": trainable, "lr_scale": lr_scale}


def optim(**changed: Any) -> OptimSettings:
    preset = OmegaConf.to_container(OmegaConf.load(CONF_DIR / "optim" / "adamw.yaml"))
    assert isinstance(preset, dict)
    return OptimSettings(**preset | changed)


def network(name: str = RESNET) -> tuple[Backbone, nn.Module]:
    backbone = Backbone(name, None, (32, 32))
    return backbone, nn.Linear(backbone.feature_count, 2)


# --- the plan ---------------------------------------------------------------------------------------------------------


def test_stages_follow_one_another_in_steps_and_null_ones_are_left_out() -> None:
    plan = plan_stages(finetune(head=stage(2), gone=None, some=stage(3), all=stage(1)), 10, {})
    assert [(one.name, one.start, one.end) for one in plan] == [("head", 0, 20), ("some", 20, 50), ("all", 50, 60)]


@pytest.mark.parametrize(
    ("step", "name"),
    [(0, "head"), (19, "head"), (20, "some"), (49, "some"), (50, "all"), (59, "all"), (60, "all"), (999, "all")],
)
def test_a_step_belongs_to_the_stage_it_falls_into_and_to_the_last_one_after_the_end(step: int, name: str) -> None:
    plan = plan_stages(finetune(head=stage(2), some=stage(3), all=stage(1)), 10, {})
    assert stage_at(plan, step).name == name


def test_the_stage_after_one_that_ended_early_begins_there() -> None:
    plan = plan_stages(finetune(head=stage(9), some=stage(3), all=stage(2)), 10, {"head": 30, "all": 70})
    assert [(one.name, one.start, one.end) for one in plan] == [("head", 0, 30), ("some", 30, 60), ("all", 60, 70)]


# --- learning rates ---------------------------------------------------------------------------------------------------


def cosine(step: int, steps: int, warmup: int, peak: float, low: float) -> float:
    """Straight up over the warm-up, then the cosine of the whole stage."""
    if step < warmup:
        return low + (peak - low) * step / warmup
    return low + (peak - low) * (1 + math.cos(math.pi * step / steps)) / 2


@pytest.mark.parametrize("step", [0, 1, 9, 10, 11, 50, 98, 99])
def test_learning_rate_warms_up_and_falls_as_a_cosine_over_the_stage(step: int) -> None:
    backbone, head = network()
    settings = optim(lr=0.02, warmup=0.1, min_lr_ratio=0.01)
    optimizer = build_optimizer(backbone, head, settings)
    plan = plan_stages(finetune(first=stage(3), second=stage(10, lr_scale=0.5)), 10, {})
    set_learning_rate(optimizer, settings, plan[1], 30 + step)
    expected = cosine(step, 100, 10, 0.01, 0.0001)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([expected] * len(optimizer.param_groups))


def test_learning_rates_begin_low_peak_after_the_warm_up_and_end_low() -> None:
    backbone, head = network()
    settings = optim(lr=1.0, warmup=0.1, min_lr_ratio=0.01)
    optimizer = build_optimizer(backbone, head, settings)
    (plan,) = plan_stages(finetune(all=stage(10)), 10, {})
    rates = []
    for step in range(100):
        set_learning_rate(optimizer, settings, plan, step)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates[0] == pytest.approx(0.01)
    assert rates.index(max(rates)) == 10
    assert max(rates) == pytest.approx(0.9758, abs=1e-4)
    assert rates[-1] == pytest.approx(0.01, abs=1e-3)


def test_without_a_warm_up_a_stage_starts_at_its_peak() -> None:
    backbone, head = network()
    settings = optim(lr=0.02, warmup=0)
    optimizer = build_optimizer(backbone, head, settings)
    set_learning_rate(optimizer, settings, plan_stages(finetune(all=stage(100)), 1, {})[0], 0)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.02)


def test_learning_rates_are_a_function_of_the_step_alone() -> None:
    """As after a resume: whatever was set before, or came with a checkpoint, does not matter."""
    backbone, head = network()
    settings = optim(lr=0.02)
    fresh, used = build_optimizer(backbone, head, settings), build_optimizer(backbone, head, settings)
    plan = plan_stages(finetune(a=stage(20, lr_scale=3), b=stage(20)), 1, {})
    for step in (3, 39, 0, 21):
        set_learning_rate(used, settings, stage_at(plan, step), step)
    used.load_state_dict(used.state_dict())
    for optimizer in (fresh, used):
        set_learning_rate(optimizer, settings, plan[1], 27)
    assert [group["lr"] for group in fresh.param_groups] == [group["lr"] for group in used.param_groups]


# --- the optimiser ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [RESNET, "test_vit", "test_convnext"])
def test_every_parameter_is_in_one_group_and_biases_and_norms_do_not_decay(name: str) -> None:
    backbone, head = network(name)
    optimizer = build_optimizer(backbone, head, optim(weight_decay=0.05))
    decay = [(parameter, group["weight_decay"]) for group in optimizer.param_groups for parameter in group["params"]]
    parameters = [*backbone.named_parameters(), *head.named_parameters()]
    assert sorted(id(parameter) for parameter, _ in decay) == sorted(id(parameter) for _, parameter in parameters)
    by_id = {id(parameter): value for parameter, value in decay}
    spared = getattr(backbone.body, "no_weight_decay", set)()
    for full_name, parameter in parameters:
        own = full_name.removeprefix("body.")
        expected = 0 if parameter.ndim <= 1 or own in spared else 0.05
        assert by_id[id(parameter)] == expected, full_name


def test_the_optimiser_is_the_one_that_was_named_with_its_options() -> None:
    backbone, head = network()
    optimizer = build_optimizer(backbone, head, optim(name="sgd", options={"momentum": 0.8, "nesterov": True}))
    assert isinstance(optimizer, torch.optim.SGD)
    assert {(group["momentum"], group["nesterov"]) for group in optimizer.param_groups} == {(0.8, True)}
    adamw = build_optimizer(backbone, head, optim(options={"betas": [0.8, 0.9]}))
    assert isinstance(adamw, torch.optim.AdamW)
    assert tuple(adamw.param_groups[0]["betas"]) == (0.8, 0.9)


# --- what trains ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("trainable", "depths"),
    [
        ("head", set()),
        ("all", {0, 1, 2, 3, 4}),
        (0.2, {4}),  # one of five
        (0.4, {3, 4}),
        (0.6, {2, 3, 4}),
        (1.0, {0, 1, 2, 3, 4}),
    ],
)
@pytest.mark.parametrize("batchnorm", ["train", "frozen"])
def test_a_share_of_the_deepest_layers_trains_and_frozen_batchnorm_keeps_its_statistics(
    trainable: Any, depths: set[int], batchnorm: str
) -> None:
    backbone, head = network()
    backbone.eval()
    head.requires_grad_(False)
    (plan,) = plan_stages(finetune(one=stage(1, trainable)), 10, {})
    switch_training(backbone, head, plan, batchnorm)
    layers = backbone.layers()
    assert {name: p.requires_grad for name, p in backbone.body.named_parameters()} == {
        name: layers[name] in depths for name, _ in backbone.body.named_parameters()
    }
    assert all(parameter.requires_grad for parameter in head.parameters())
    norms = {name: module for name, module in backbone.body.named_modules() if isinstance(module, _BatchNorm)}
    assert len(norms) > 5
    for name, module in norms.items():
        assert module.training == (batchnorm == "train" and layers[f"{name}.weight"] in depths), name
    assert backbone.training


def test_stages_can_follow_in_any_order() -> None:
    """A stage sets everything it means: nothing is left over from the one before."""
    backbone, head = network()
    settings = finetune(all=stage(), head=stage(1, "head"), again=stage())
    whole, only_head, again = plan_stages(settings, 1, {})
    for one, trains in ((whole, True), (only_head, False), (again, True)):
        switch_training(backbone, head, one, "train")
        assert {parameter.requires_grad for parameter in backbone.parameters()} == {trains}
        assert {m.training for m in backbone.modules() if isinstance(m, _BatchNorm)} == {trains}


def test_frozen_layers_do_not_drift_in_a_step() -> None:
    """Neither weights nor statistics of frozen layers change, even with weight decay; the others' do."""
    backbone, head = network()
    settings = optim(lr=0.1, weight_decay=0.1, warmup=0)
    optimizer = build_optimizer(backbone, head, settings)
    (plan,) = plan_stages(finetune(one=stage(1, 0.2)), 10, {})
    switch_training(backbone, head, plan, "train")
    set_learning_rate(optimizer, settings, plan, 0)
    before = {name: value.clone() for name, value in backbone.body.state_dict().items()}
    image = torch.randint(0, 256, (8, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    head(backbone(image)).logsumexp(1).sum().backward()
    optimizer.step()
    depths = backbone.layers()
    moved = {name for name, value in backbone.body.state_dict().items() if not torch.equal(value, before[name])}
    deepest = {name for name, depth in depths.items() if depth == 4}
    prefixes = {name.rsplit(".", 1)[0] for name in deepest}
    assert moved
    assert {name.rsplit(".", 1)[0] for name in moved} == prefixes
