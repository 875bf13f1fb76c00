"""The loss that a preset names, and how much each class weighs in it."""

import inspect

import torch
from torch import nn

from defectcls.config import named
from defectcls.errors import UserError
from defectcls.settings import LossSettings


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
