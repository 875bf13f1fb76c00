"""Losses over logits (batch, classes) and targets (batch,)."""

import inspect

import torch
import torch.nn.functional as F
from torch import nn

from defectcls.config import named
from defectcls.errors import UserError
from defectcls.settings import LossSettings


class FocalLoss(nn.Module):
    """Cross-entropy that looks away from what is already right: (1 - p)^gamma weighs each class term.

    Lin et al. 2017, "Focal Loss for Dense Object Detection". `gamma` 0 is cross-entropy, and class weights and label
    smoothing mean what they mean there.
    """

    def __init__(self, gamma: float, label_smoothing: float = 0, weight: torch.Tensor | None = None) -> None:
        super().__init__()
        self.gamma, self.label_smoothing = gamma, label_smoothing
        self.weight = None if weight is None else nn.Buffer(weight)

    def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Mean loss of logits (batch, classes) against classes (batch,), weighted as torch's cross-entropy."""
        classes = logits.shape[1]
        true = F.one_hot(target, classes).to(logits.dtype)
        weight = torch.ones(classes, device=logits.device) if self.weight is None else self.weight
        share = true * (1 - self.label_smoothing) + self.label_smoothing / classes
        log_p = F.log_softmax(logits, dim=1)
        away = (1 - log_p.exp()).clamp_min(1e-8)  # at 0, a gamma below 1 has an infinite slope
        return -(share * weight * away**self.gamma * log_p).sum() / (true * weight).sum()


def build_loss(settings: LossSettings, weight: list[float] | None) -> nn.Module:
    """The loss that the settings name, with their further keys and `weight`, one factor a class, if it takes one.

    Raises:
        UserError: class weights are asked for, and the loss takes none.
    """
    kind = named(settings.target, nn.Module)
    takes_weight = "weight" in inspect.signature(kind).parameters
    if not takes_weight and settings.class_weights not in ("auto", "none"):
        raise UserError(
            f"loss.class_weights are given, and {settings.target} has no argument `weight` to take them: "
            "loss.class_weights=none, or give it one"
        )
    factors = {"weight": torch.tensor(weight)} if takes_weight and weight is not None else {}
    return kind(**settings.further, **factors)


def balanced_weights(counts: list[int]) -> list[float]:
    """images / (classes x images of the class): every class weighs the same in all, and the mean image weighs 1.

    A class without images weighs as one with a single one: it is what validation may have.
    """
    return [sum(counts) / (len(counts) * max(count, 1)) for count in counts]
