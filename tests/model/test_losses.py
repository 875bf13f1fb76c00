"""Losses against torch's cross-entropy and scikit-learn's balanced weights."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.utils.class_weight import compute_class_weight

from defectcls.errors import UserError
from defectcls.model.losses import balanced_weights, build_loss
from defectcls.settings import LossSettings

WEIGHTS = [None, [0.5, 2.0, 1.25]]
SMOOTHINGS = [0.0, 0.1]


def loss_of(weight: list[float] | None = None, **arguments: float) -> Any:
    return build_loss(LossSettings(_target_="torch.nn.CrossEntropyLoss", class_weights="none", **arguments), weight)


@pytest.fixture
def logits() -> torch.Tensor:
    return 3 * torch.randn(20, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def hard() -> torch.Tensor:
    return torch.randint(3, (20,), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("smoothing", SMOOTHINGS)
def test_cross_entropy_is_torchs(
    weights: list | None, smoothing: float, logits: torch.Tensor, hard: torch.Tensor
) -> None:
    factors = None if weights is None else torch.tensor(weights)
    expected = F.cross_entropy(logits, hard, factors, label_smoothing=smoothing)
    assert loss_of(weights, label_smoothing=smoothing)(logits, hard).item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("counts", [[300, 25], [10, 10], [7, 100, 1, 40]])
def test_balanced_weights_are_scikit_learns(counts: list[int]) -> None:
    targets = np.repeat(np.arange(len(counts)), counts)
    expected = compute_class_weight("balanced", classes=np.arange(len(counts)), y=targets)
    assert balanced_weights(counts) == pytest.approx(expected)


def test_a_class_without_images_weighs_as_one_with_a_single_one() -> None:
    assert balanced_weights([30, 0]) == [0.5, 15]


def test_weights_move_with_the_loss_to_its_device() -> None:
    assert "weight" in dict(loss_of([1.0, 2.0]).named_buffers())


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
