"""Augmentation of a whole batch on its device: one colour transform, then one resampling for all geometry."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from defectcls.settings import AugmentSettings


class Augment(nn.Module):
    """What torchvision.transforms.v2 does image by image, for a batch: the same operations and distributions.

    In the order of ColorJitter, flips and quarter turns, RandomAffine, RandomResizedCrop, but for this: colours change
    in one order (saturation, hue, brightness, contrast) and are clamped once, after it; hue is a rotation about the
    grey axis, which keeps the mean and the chroma of a colour, not HSV's value and saturation; shifts are not rounded
    to pixels; what comes in at the border is a reflection, not black. Of images that are not square, which a quarter
    turn does not leave in their frame, half turns are made.

    What each setting means says conf/augment/none.yaml. Flips and quarter turns alone change no pixel value.
    """

    DRAWN = (
        *("horizontal_flip", "vertical_flip", "quarter_turns", "crop", "crop_across", "crop_along"),
        *("rotation", "scale", "shift_across", "shift_along", "brightness", "contrast", "saturation", "hue"),
    )
    DRAWS = len(DRAWN)  # uniform numbers that an image takes

    def __init__(self, settings: AugmentSettings) -> None:
        super().__init__()
        self.settings = one = settings
        self.resamples = bool(one.rotation or one.scale or one.shift or one.crop)
        self.moves = self.resamples or one.horizontal_flip or one.vertical_flip or one.quarter_turns
        self.tints = bool(one.saturation or one.hue)
        self.recolours = bool(self.tints or one.brightness or one.contrast)
        # Buffers: a constant that is made in forward would make the host wait for the GPU.
        shift = 2 * one.shift  # in grid units: the whole side is 2
        colours = (one.brightness, one.contrast, one.saturation, 2 * math.pi * one.hue)
        limits = (math.radians(one.rotation), one.scale, shift, shift, *colours)
        third = torch.full((3, 3), 1 / 3)
        cross = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]]) / math.sqrt(3)
        self.limits = nn.Buffer(torch.tensor(limits), persistent=False)
        self.grey = nn.Buffer(torch.tensor([0.299, 0.587, 0.114]), persistent=False)  # ITU-R BT.601 luma
        self.hues = nn.Buffer(torch.stack([third, torch.eye(3) - third, cross]), persistent=False)

    def forward(self, image: torch.Tensor, draws: torch.Tensor | None = None) -> torch.Tensor:
        """Pixels 0..255, float or uint8 (batch, 3, height, width) -> float32, same shape and range.

        Args:
            draws: uniform numbers in [0, 1), float32 (batch, DRAWS). They say all that happens to an image, whatever
                else is in the batch. None: from torch's global generator.
        """
        if draws is None:
            draws = torch.rand(len(image), self.DRAWS, device=image.device)
        # A few images at a time stay in a CPU's cache: half the time of passes over the whole batch.
        count = 4 * torch.get_num_threads() if image.device.type == "cpu" else len(image)
        with torch.autocast(image.device.type, enabled=False):  # half precision would round grey values
            pieces = zip(image.split(count), draws.split(count), strict=True)
            return torch.cat([self._move(self._recolour(some.float(), drawn), drawn) for some, drawn in pieces])

    def _move(self, image: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        """All geometry in one resampling; flips and quarter turns alone land on pixel centres."""
        if not self.moves:
            return image
        height, width = image.shape[2:]
        flip_across, flip_along, turn, area, left, top = draws[:, :6].unbind(1)
        angle, scale, across, along = ((2 * draws[:, 6:10] - 1) * self.limits[:4]).unbind(1)
        if self.settings.quarter_turns:
            turns = 4 if height == width else 2
            angle = angle + (turns * turn).floor() * (2 * math.pi / turns)
        cos, sin = angle.cos() / (1 + scale), angle.sin() / (1 + scale)
        matrix = torch.stack([cos, sin * height / width, -sin * width / height, cos], 1).view(-1, 2, 2)
        window = (1 - self.settings.crop * area).sqrt()
        centre = torch.stack([(2 * left - 1) * (1 - window) - across, (2 * top - 1) * (1 - window) - along], 1)
        # Where the pixels of an image come from: (batch, 2, 3), as torch's `affine_grid` takes it.
        place = torch.cat([matrix * window[:, None, None], (matrix * centre[:, None]).sum(2, keepdim=True)], 2)
        one = self.settings
        flip = torch.stack([flip_across < one.horizontal_flip / 2, flip_along < one.vertical_flip / 2], 1)
        place = torch.where(flip[:, :, None], -place, place)
        down, right = ((2 * torch.arange(side, device=image.device) + 1) / side - 1 for side in (height, width))
        x = right[:, None] * place[:, None, :, 0] + place[:, None, :, 2]
        y = down[:, None] * place[:, None, :, 1]
        grid = x[:, None] + y[:, :, None]  # as affine_grid does in three times the time
        mode = "bilinear" if self.resamples else "nearest"
        return F.grid_sample(image, grid, mode=mode, padding_mode="reflection", align_corners=False)

    def _recolour(self, image: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
        """A matrix for the colours, and an offset from the mean colour.

        Saturation mixes with grey, and hue turns about the grey axis, which neither changes: both are one sum.
        Contrast is about the mean grey of the image, which the matrix has changed before.
        """
        if not self.recolours:
            return image
        brightness, contrast, saturation, hue = ((2 * draws[:, 10:] - 1) * self.limits[4:]).unbind(1)
        shares = torch.stack([torch.ones_like(hue), hue.cos(), hue.sin()], 1)
        turned = (shares[:, :, None, None] * self.hues).sum(1)
        kept = (1 + saturation)[:, None, None]
        colours = (1 + brightness)[:, None, None] * (kept * turned + (1 - kept) * self.grey)
        shades = -contrast[:, None] * (self.grey[:, None] * colours).sum(1)
        colours = (1 + contrast)[:, None, None] * colours
        offset = (shades * image.mean((2, 3))).sum(1)[:, None, None, None]
        if not self.tints:  # the three colours by the same factor
            return torch.addcmul(offset, image, colours[:, :1, :1, None]).clamp_(0, 255)
        # A matrix product may be one of TF32 on a GPU, and is slower on a CPU.
        red, green, blue = image[:, None].unbind(2)
        by_red, by_green, by_blue = colours[..., None, None].unbind(2)
        return torch.addcmul(offset, red, by_red).addcmul_(green, by_green).addcmul_(blue, by_blue).clamp_(0, 255)
