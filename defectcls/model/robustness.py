"""What a classifier still knows when camera, light and transport are not quite those of its training images."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pandas as pd
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from defectcls.evaluation.metrics import compute_metrics, defect_numbers

Corrupt = Callable[[torch.Tensor], torch.Tensor]  # uint8 (batch, 3, side, side) -> the same

STRENGTHS = (1, 2, 3)
RATES = ("recall", "overkill_rate", "auroc")


class Corruption(NamedTuple):
    """`apply` changes images by one of three values: whenever it is called in the same way, so that models compare."""

    apply: Callable[[torch.Tensor, float], torch.Tensor]
    values: tuple[float, float, float]
    unit: str  # the value in words, as a format

    def at(self, strength: int) -> Corrupt:
        """The corruption at strength 1, 2 or 3."""
        return lambda images: self.apply(images, self.values[strength - 1])


def blur(images: torch.Tensor, deviation: float) -> torch.Tensor:
    """Gaussian."""
    sigma = deviation * images.shape[-1]
    size = 2 * math.ceil(3 * sigma) + 1
    return F.gaussian_blur(images, [size, size], [sigma, sigma])


def noise(images: torch.Tensor, deviation: float) -> torch.Tensor:
    """Gaussian, for every image of a batch, pixel and colour anew; drawn on the CPU, to be the same on every device."""
    drawn = torch.randn(images.shape, generator=torch.Generator().manual_seed(0)).to(images.device)
    return (images + deviation * drawn).round().clamp(0, 255).to(torch.uint8)


def jpeg(images: torch.Tensor, quality: float) -> torch.Tensor:
    """Compressed and decoded; the codec runs on the CPU."""
    return F.jpeg(images.cpu(), int(quality)).to(images.device)


def rotation(images: torch.Tensor, degrees: float) -> torch.Tensor:
    """About the centre, every other image the other way; reflected borders, since a black corner would be a cue."""
    side = images.shape[-1]
    border = math.ceil(side * math.sin(math.radians(degrees)))
    turned = F.pad(images, [border], padding_mode="reflect")
    for first, angle in enumerate((degrees, -degrees)):
        turned[first::2] = F.rotate(turned[first::2], angle, InterpolationMode.BILINEAR)
    return F.center_crop(turned, [side, side])


def shift(images: torch.Tensor, share: float) -> torch.Tensor:
    """Right, left, down and up in turn, image by image; reflected borders."""
    side = images.shape[-1]
    step = round(share * side)
    padded, moved = F.pad(images, [step], padding_mode="reflect"), images.clone()
    for first, (right, down) in enumerate(((step, 0), (-step, 0), (0, step), (0, -step))):
        moved[first::4] = F.crop(padded[first::4], step - down, step - right, side, side)
    return moved


CORRUPTIONS = {  # deviations are standard deviations; grey values end at 255
    "blur": Corruption(blur, (0.005, 0.01, 0.02), "{:.1%} of the side"),
    "noise": Corruption(noise, (8, 16, 32), "{} grey values"),
    "dark": Corruption(F.adjust_brightness, (0.8, 0.6, 0.4), "x {}"),
    "bright": Corruption(F.adjust_brightness, (1.25, 1.6, 2.2), "x {}"),
    "jpeg": Corruption(jpeg, (50, 25, 10), "quality {}"),
    "rotation": Corruption(rotation, (2, 5, 10), "{}°"),
    "shift": Corruption(shift, (0.02, 0.05, 0.1), "{:.0%} of the side"),
}


def measure_robustness(
    predict: Callable[[Corrupt], pd.DataFrame], class_names: list[str], defective_classes: list[bool]
) -> pd.DataFrame:
    """Rows {corruption, strength, setting in words, recall, overkill_rate, auroc}; first `none`, of strength 0.

    NaN where a rate is undefined.

    Args:
        predict: the predictions table of images that went through the given function, batch by batch.
    """

    def measured(corrupt: Corrupt) -> dict[str, Any]:
        numbers = compute_metrics(predict(corrupt), class_names, defective_classes)
        return {rate: defect_numbers(numbers).get(rate) for rate in RATES}

    rows = [{"corruption": "none", "strength": 0, "setting": ""} | measured(lambda images: images)]
    for name, one in CORRUPTIONS.items():
        for strength, value in zip(STRENGTHS, one.values, strict=True):
            condition = {"corruption": name, "strength": strength, "setting": one.unit.format(value)}
            rows.append(condition | measured(one.at(strength)))
    return pd.DataFrame(rows).astype(dict.fromkeys(RATES, float))
