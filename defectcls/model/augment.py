"""Augmentation of a whole batch on its device: one resampling for all geometry, then colour."""

import math

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.transforms import v2

GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601 luma


class Augment(nn.Module):
    """Random flips, quarter turns, rotation, scale, shift and colour; draws from torch's global generator.

    Args:
        horizontal_flip, vertical_flip: each in half of the images.
        quarter_turns: turn by 0, 90, 180 or 270 degrees.
        rotation: up to so many degrees either way.
        scale: side scaled by 1 - scale to 1 + scale.
        shift: up to this share of the side, in each direction.
        brightness, contrast, saturation: factor 1 - x to 1 + x.
        hue: turn of the colour circle, up to this share of it.
    """

    def __init__(
        self,
        *,
        horizontal_flip: bool,
        vertical_flip: bool,
        quarter_turns: bool,
        rotation: float,
        scale: float,
        shift: float,
        brightness: float,
        contrast: float,
        saturation: float,
        hue: float,
    ) -> None:
        super().__init__()
        self.horizontal_flip, self.vertical_flip, self.quarter_turns = horizontal_flip, vertical_flip, quarter_turns
        self.rotation, self.scale, self.shift = rotation, scale, shift
        self.brightness, self.contrast, self.saturation, self.hue = brightness, contrast, saturation, hue
        self.resamples = bool(rotation or scale or shift)
        self.recolours = bool(brightness or contrast or saturation or hue)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Pixels 0..255, float or uint8 (batch, 3, side, side) -> float, same shape and range."""
        image = image.float()
        if self.resamples or self.horizontal_flip or self.vertical_flip or self.quarter_turns:
            image = self._move(image)
        if self.recolours:
            image = self._recolour(image)
        return image

    def _move(self, image: torch.Tensor) -> torch.Tensor:
        """One affine resampling; without a rotation, scale or shift it lands on pixel centres and changes no value."""
        count, device = len(image), image.device
        angle = _uniform(count, math.radians(self.rotation), device)
        if self.quarter_turns:
            angle = angle + torch.randint(4, (count,), device=device) * (math.pi / 2)
        side = 1 / (1 + _uniform(count, self.scale, device))
        across = _signs(count, self.horizontal_flip, device) * side
        along = _signs(count, self.vertical_flip, device) * side
        shift = _uniform((count, 2), 2 * self.shift, device)  # in grid units: the whole side is 2
        cos, sin = angle.cos(), angle.sin()
        matrix = torch.stack([across * cos, -across * sin, along * sin, along * cos], 1).view(count, 2, 2)
        grid = F.affine_grid(torch.cat([matrix, shift[:, :, None]], 2), list(image.shape), align_corners=False)
        return F.grid_sample(image, grid, mode="bilinear", padding_mode="reflection", align_corners=False)

    def _recolour(self, image: torch.Tensor) -> torch.Tensor:
        """Brightness, saturation and hue are one 3 x 3 matrix an image; contrast is about the image's mean grey."""
        count, device = len(image), image.device
        grey = torch.tensor(GREY, device=device).expand(3, 3)
        saturation = 1 + _uniform(count, self.saturation, device)[:, None, None]
        identity = torch.eye(3, device=device)
        matrix = saturation * identity + (1 - saturation) * grey
        if self.hue:
            matrix = _hue_rotation(_uniform(count, 2 * math.pi * self.hue, device)) @ matrix
        matrix = matrix * (1 + _uniform(count, self.brightness, device))[:, None, None]
        contrast = 1 + _uniform(count, self.contrast, device)
        matrix = matrix * contrast[:, None, None]
        mean = torch.einsum("bij,bj->bi", matrix / contrast[:, None, None], image.mean((2, 3))) @ grey[0]
        offset = ((1 - contrast) * mean)[:, None, None]
        colours = torch.baddbmm(offset, matrix, image.flatten(2))
        return colours.clamp(0, 255).view_as(image)


def mirrored(image: torch.Tensor, views: int) -> list[torch.Tensor]:
    """The first few of the eight ways to lay an image (batch, 3, side, side): as it is, mirrored, upside down …"""
    turned = (image, image.rot90(2, (2, 3)), image.rot90(1, (2, 3)), image.rot90(3, (2, 3)))
    return [view for turn in turned for view in (turn, turn.flip(3))][:views]


def mixer(mixup: float, cutmix: float, classes: int) -> nn.Module | None:
    """torchvision's mixup and cutmix by their Beta parameters, 0 is off: (image, target) -> (image, soft target)."""
    kinds = [(v2.MixUp, mixup), (v2.CutMix, cutmix)]
    chosen = [kind(alpha=alpha, num_classes=classes) for kind, alpha in kinds if alpha > 0]
    return v2.RandomChoice(chosen) if chosen else None


def _hue_rotation(angle: torch.Tensor) -> torch.Tensor:
    """Rotation about the grey axis (1, 1, 1), which stands for the hue circle: (count,) radians -> (count, 3, 3)."""
    third = torch.full((3, 3), 1 / 3, device=angle.device)
    cross = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]], device=angle.device) / math.sqrt(3)
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    return cos * torch.eye(3, device=angle.device) + (1 - cos) * third + sin * cross


def _uniform(shape: int | tuple[int, ...], limit: float, device: torch.device) -> torch.Tensor:
    return (torch.rand(shape, device=device) * 2 - 1) * limit


def _signs(count: int, flips: bool, device: torch.device) -> torch.Tensor:
    return torch.where(torch.rand(count, device=device) < 0.5, -1.0, 1.0) if flips else torch.ones(count, device=device)
