"""Losses against torch's cross-entropy, scikit-learn's balanced weights, and a focal loss worked by hand."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_class_weight

from defectcls.errors import UserError
from defectcls.model.losses import balanced_weights, build_loss
from defectcls.settings import LossSettings

LOSSES = {
    "cross_entropy": lambda **given: {"_target_": "torch.nn.CrossEntropyLoss", **given},
    "focal": lambda gamma=0.0, **given: {"_target_": "defectcls.model.losses.FocalLoss", "gamma": gamma, **given},
}
WEIGHTS = [None, [0.5, 2.0, 1.25]]
SMOOTHINGS = [0.0, 0.1]


def loss_of(name: str, weight: list[float] | None = None, **arguments: float) -> Any:
    return build_loss(LossSettings(class_weights="none", **LOSSES[name](**arguments)), weight)


@pytest.fixture
def logits() -> torch.Tensor:
    return 3 * torch.randn(20, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def hard() -> torch.Tensor:
    return torch.randint(3, (20,), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("smoothing", SMOOTHINGS)
@pytest.mark.parametrize("name", ["cross_entropy", "focal"])
def test_cross_entropy_and_focal_at_gamma_0_are_torchs_cross_entropy(
    name: str, weights: list | None, smoothing: float, logits: torch.Tensor, hard: torch.Tensor
) -> None:
    factors = None if weights is None else torch.tensor(weights)
    expected = F.cross_entropy(logits, hard, factors, label_smoothing=smoothing)
    assert loss_of(name, weights, label_smoothing=smoothing)(logits, hard).item() == pytest.approx(
        expected.item(), rel=1e-5
    )


def test_focal_by_hand() -> None:
    """p of the true class is 0.9 and 0.2: the mean of 0.1^2 x -ln 0.9 and 0.8^2 x -ln 0.2."""
    logits = torch.tensor([[0.9, 0.1], [0.8, 0.2]]).log()
    expected = (0.01 * -math.log(0.9) + 0.64 * -math.log(0.2)) / 2
    assert loss_of("focal", gamma=2)(logits, torch.tensor([0, 1])).item() == pytest.approx(expected, rel=1e-5)


def test_weighted_focal_by_hand() -> None:
    """The same with weights 1 and 3: a weighted mean, as torch's cross-entropy takes it."""
    logits = torch.tensor([[0.9, 0.1], [0.8, 0.2]]).log()
    expected = (0.1 * -math.log(0.9) + 3 * 0.8 * -math.log(0.2)) / 4
    loss = loss_of("focal", [1.0, 3.0], gamma=1)(logits, torch.tensor([0, 1]))
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal_slopes_are_finite_where_the_model_is_as_sure_as_float32_can_say(
    gamma: float, hard: torch.Tensor
) -> None:
    sure = (50 * F.one_hot(hard, 3).float()).requires_grad_()
    loss_of("focal", gamma=gamma)(sure, hard).backward()
    assert sure.grad is not None
    assert torch.isfinite(sure.grad).all()


def test_the_higher_gamma_the_less_counts_what_is_right(logits: torch.Tensor, hard: torch.Tensor) -> None:
    losses = [loss_of("focal", gamma=gamma)(logits, hard).item() for gamma in (0.0, 1.0, 2.0, 5.0)]
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize("counts", [[300, 25], [10, 10], [7, 100, 1, 40]])
def test_balanced_weights_are_scikit_learns(counts: list[int]) -> None:
    targets = np.repeat(np.arange(len(counts)), counts)
    expected = compute_class_weight("balanced", classes=np.arange(len(counts)), y=targets)
    assert balanced_weights(counts) == pytest.approx(expected)


def test_a_class_without_images_weighs_as_one_with_a_single_one() -> None:
    assert balanced_weights([30, 0]) == [0.5, 15]


def test_weights_move_with_the_loss_to_its_device() -> None:
    for name in ("cross_entropy", "focal"):
        assert "weight" in dict(loss_of(name, [1.0, 2.0]).named_buffers())


class Unweighted(torch.nn.Module):
    """Takes no class weights."""

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return logits.mean() - target.float().mean()


def test_a_loss_without_weight_is_not_given_any(logits: torch.Tensor, hard: torch.Tensor) -> None:
    target = f"{__name__}.Unweighted"
    loss = build_loss(LossSettings(_target_=target, class_weights="auto"), [1.0, 2.0, 3.0])
    assert loss(logits, hard) == logits.mean() - hard.float().mean()
    with pytest.raises(UserError, match="loss.class_weights are given, and .*Unweighted has no argument `weight`"):
        build_loss(LossSettings(_target_=target, class_weights="balanced"), [1.0, 2.0, 3.0])
