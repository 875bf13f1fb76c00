"""Time ways to augment a batch, in turns, and write timings.csv: python experiments/augmentation/compare.py [rounds]

What is not installed (kornia) is left out. Takes about a minute.
"""

import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import torch
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from defectcls.model.augment import Augment
from defectcls.model.backbone import Backbone
from defectcls.model.hardware import autocast
from defectcls.settings import AugmentSettings
from defectcls.training.results import provenance

BATCH, SIDE, BATCHES = 32, 224, 8
OFF = {"vertical_flip": False, "quarter_turns": False, "crop": 0}
MOVES = {"horizontal_flip": True, "rotation": 10, "scale": 0.1, "shift": 0.1}
COLOURS = {"brightness": 0.2, "contrast": 0.2, "saturation": 0.2, "hue": 0.05}
PRESET = {**MOVES, "brightness": 0.2, "contrast": 0.2, "saturation": 0, "hue": 0}  # what conf/augment/ uses of it


class Images(Dataset[torch.Tensor]):
    """Decoded images, so that nothing but the transform is timed."""

    def __init__(self, pixels: torch.Tensor, transform: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.pixels, self.transform = pixels, transform

    def __len__(self) -> int:
        return BATCHES * BATCH

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.transform(self.pixels[index % BATCH])


def in_workers(pixels: torch.Tensor, transform: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[], None]:
    """Batches of DataLoader workers, one for each thread here; the next ones are made while one is handed over."""
    loader = DataLoader(Images(pixels, transform), BATCH, num_workers=torch.get_num_threads(), persistent_workers=True)

    def endless() -> Iterator[torch.Tensor]:
        while True:
            yield from loader

    batches = endless()

    def epoch() -> None:
        for _ in itertools.islice(batches, BATCHES):
            pass

    return epoch


def contenders(pixels: torch.Tensor, device: torch.device) -> dict[str, tuple[Callable[[], object], int]]:
    """Name -> what to call, and how many batches it makes."""
    ours, preset = (Augment(AugmentSettings(**OFF | MOVES | colours)).to(device) for colours in (COLOURS, PRESET))
    jitter = v2.ColorJitter(0.2, 0.2, 0.2, 0.05)
    affine = v2.RandomAffine(10, (0.1, 0.1), (0.9, 1.1), interpolation=v2.InterpolationMode.BILINEAR)
    torchvision = v2.Compose([v2.RandomHorizontalFlip(), affine, jitter])
    backbone = Backbone("resnet18", None, (SIDE, SIDE)).train().to(device)

    def step() -> None:
        with autocast("bf16", device):
            features = backbone(pixels)
        features.float().square().mean().backward()
        backbone.zero_grad()

    found: dict[str, tuple[Callable[[], object], int]] = {
        "training step of resnet18, bf16, channels_last": (step, 1),
        "defectcls, batched": (lambda: [ours(pixels) for _ in range(4)], 4),
        "defectcls, batched, without saturation and hue": (lambda: [preset(pixels) for _ in range(4)], 4),
        "torchvision v2, image by image": (lambda: torch.stack([torchvision(image) for image in pixels]), 1),
    }
    if device.type == "cpu":
        found["torchvision v2, in workers that have all cores"] = (in_workers(pixels, torchvision), BATCHES)
    try:
        import kornia.augmentation as kornia
    except ImportError:
        return found
    batched = kornia.AugmentationSequential(
        kornia.RandomHorizontalFlip(),
        kornia.RandomAffine(10, (0.1, 0.1), (0.9, 1.1), p=1, padding_mode="reflection"),
        kornia.ColorJiggle(0.2, 0.2, 0.2, 0.05, p=1),
        data_keys=["input"],
    )
    return found | {"kornia, batched": (lambda: batched(pixels.float() / 255), 1)}


def seconds(call: Callable[[], object], device: torch.device) -> float:
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main(rounds: int) -> None:
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pixels = torch.randint(0, 256, (BATCH, 3, SIDE, SIDE), dtype=torch.uint8).to(device)
    found = contenders(pixels, device)
    times: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(rounds + 1):
        for name, (call, batches) in found.items():
            times[name].append(1000 * seconds(call, device) / batches)
    made = provenance(0, {})
    step = next(iter(times.values()))[1:]
    rows = [
        {
            "what": name,
            "milliseconds": round(statistics.median(all_rounds[1:]), 2),  # the first round warms up
            "fastest": round(min(all_rounds[1:]), 2),
            "slowest": round(max(all_rounds[1:]), 2),
            "images_per_second": round(1000 * BATCH / statistics.median(all_rounds[1:])),
            "share_of_step": round(statistics.median(a / b for a, b in zip(all_rounds[1:], step, strict=True)), 3),
            "rounds": rounds,
            "version": ""
            if name == "training step of resnet18, bf16, channels_last"
            else version(name.split(" ")[0].strip(",")),
            "torch": torch.__version__,
            "commit": made["commit"],
            "hardware": made["hardware"],
        }
        for name, all_rounds in times.items()
    ]
    table = pd.DataFrame(rows)
    table.to_csv(Path(__file__).parent / "timings.csv", index=False)
    print(table.iloc[:, :6].to_string(index=False))


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 9)
