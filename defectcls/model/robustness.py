"""What a classifier still knows when camera, light and transport are not quite those of its training images."""

import math
from collections.abc import Callable

import pandas as pd
import torch
from torchvision.transforms.v2 import functional as F

from defectcls.evaluation.metrics import compute_metrics, defect_numbers
from defectcls.model.features import AS_IT_IS, View

RATES = ("recall", "overkill_rate", "auroc")


def blur(images: torch.Tensor, deviation: float) -> torch.Tensor:
    """Gaussian; the deviation is a share of the side."""
    sigma = deviation * images.shape[-1]
    size = 2 * math.ceil(3 * sigma) + 1
    return F.gaussian_blur(images, [size, size], [sigma, sigma])


def noise(images: torch.Tensor, deviation: float) -> torch.Tensor:
    """Gaussian, for every pixel and colour; drawn on the CPU, to be the same on every device and in every image."""
    drawn = torch.randn(images.shape[1:], generator=torch.Generator().manual_seed(0)).to(images.device)
    return (images + deviation * drawn).round().clamp(0, 255).to(torch.uint8)


def jpeg(images: torch.Tensor, quality: float) -> torch.Tensor:
    """Compressed and decoded; the codec runs on the CPU."""
    return F.jpeg(images.cpu(), int(quality)).to(images.device)


# What changes images, uint8 (batch, 3, side, side), each in the same way in any batch; by how much, and in words.
CORRUPTIONS: dict[str, tuple[Callable[[torch.Tensor, float], torch.Tensor], tuple[float, ...], str]] = {
    "blur": (blur, (0.005, 0.01, 0.02), "{:.1%} of the side"),
    "noise": (noise, (8, 16, 32), "{} grey values"),
    "dark": (F.adjust_brightness, (0.8, 0.6, 0.4), "x {}"),
    "bright": (F.adjust_brightness, (1.25, 1.6, 2.2), "x {}"),
    "jpeg": (jpeg, (50, 25, 10), "quality {}"),
}


def corrupted(name: str, value: float) -> View:
    """Images under a corruption of `CORRUPTIONS`."""
    change = CORRUPTIONS[name][0]
    return View(f"{name} {value}", lambda images, _: change(images, value))


def measure_robustness(predict: Callable[[View], pd.DataFrame], classes: dict[str, bool]) -> pd.DataFrame:
    """Rows {corruption, strength 1 to 3, setting in words, recall, overkill_rate, auroc}; first `none`, of strength 0.

    NaN where a rate is undefined.

    Args:
        predict: the predictions table of images in a view.
    """
    conditions = [("none", 0, "", AS_IT_IS)]
    for name, (_, values, words) in CORRUPTIONS.items():
        for strength, value in enumerate(values, 1):
            conditions.append((name, strength, words.format(value), corrupted(name, value)))
    rows = []
    for name, strength, setting, view in conditions:
        numbers = defect_numbers(compute_metrics(predict(view), classes))
        rows.append([name, strength, setting, *(numbers.get(rate) for rate in RATES)])
    return pd.DataFrame(rows, columns=["corruption", "strength", "setting", *RATES]).astype(dict.fromkeys(RATES, float))
