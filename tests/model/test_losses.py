"""Losses against torch's cross-entropy."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from defectcls.errors import UserError
from tests.model.test_classifier import THREE, classifier

WEIGHTS = [None, [0.5, 2.0, 1.25]]
SMOOTHINGS = [0.0, 0.1]


def loss_of(weight: list[float] | None = None, **settings: Any) -> torch.nn.Module:
    return classifier(THREE, weight, loss=settings).loss


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


class Unweighted(torch.nn.Module):
    """Takes no class weights."""

    def __init__(self, label_smoothing: float) -> None:
        super().__init__()

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return logits.mean() - target.float().mean()


def test_a_loss_without_weight_is_not_given_any(logits: torch.Tensor, hard: torch.Tensor) -> None:
    own = {"_target_": f"{__name__}.Unweighted"}
    loss = loss_of([1.0, 2.0, 3.0], class_weights="auto", **own)
    assert loss(logits, hard) == logits.mean() - hard.float().mean()
    with pytest.raises(UserError, match="loss.class_weights are given, and .*Unweighted has no argument `weight`"):
        loss_of([1.0, 2.0, 3.0], class_weights="balanced", **own)
