"""The recipe of the tutorials: files decoded anew by workers, float32, a plain loop. What everyone's default costs."""

import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, RandomSampler, Subset
from torchvision import transforms

from defectcls.benchmarking.contenders import keep_few, steps_of, with_dataset
from defectcls.benchmarking.turns import Stopwatch, Turns
from defectcls.evaluation.metrics import compute_metrics, defect_numbers
from defectcls.evaluation.predictions import predictions_table
from defectcls.model.backbone import Backbone
from defectcls.model.losses import balanced_weights
from defectcls.settings import AugmentSettings, BenchmarkSettings
from defectcls.training.build import build_data, device_of

FULL_RATE, HEAD_RATE = 1e-4, 1e-3  # Adam's learning rates, as the tutorials have them


class PlainImages(Dataset):
    """Files and classes, each image decoded at every access.

    Args:
        transform: from a PIL image to a tensor.
    """

    def __init__(self, files: list[Path], targets: np.ndarray, transform: transforms.Compose) -> None:
        self.files, self.targets, self.transform = files, targets, transform

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        with Image.open(self.files[index]) as image:
            return self.transform(image.convert("RGB")), int(self.targets[index])


def plain_transforms(
    size: int, mean: tuple[float, ...], std: tuple[float, ...], augment: AugmentSettings | None
) -> transforms.Compose:
    """torchvision's transforms of one image that match the run's augmentation; None: of an evaluation."""
    steps: list = [transforms.Resize((size, size))]
    if augment is not None:
        if augment.horizontal_flip:
            steps.append(transforms.RandomHorizontalFlip())
        if augment.vertical_flip:
            steps.append(transforms.RandomVerticalFlip())
        if augment.quarter_turns:
            steps.append(transforms.RandomChoice([transforms.RandomRotation((a, a)) for a in (0, 90, 180, 270)]))
        if augment.rotation or augment.shift or augment.scale:
            scale = (1 - augment.scale, 1 + augment.scale)
            steps.append(transforms.RandomAffine(augment.rotation, (augment.shift, augment.shift), scale))
        colours = (augment.brightness, augment.contrast, augment.saturation, augment.hue)
        if any(colours):
            steps.append(transforms.ColorJitter(*colours))
    return transforms.Compose([*steps, transforms.ToTensor(), transforms.Normalize(mean, std)])


class PlainRecipe:
    """Model, loaders and loss on the run's own images.

    Args:
        frozen: only a linear head trains, on the backbone in evaluation mode.
    """

    def __init__(self, settings: BenchmarkSettings, frozen: bool) -> None:
        torch.manual_seed(settings.seed)
        self.settings, self.frozen = settings, frozen
        self.data = build_data(with_dataset(settings, cache="off"))
        if frozen:
            keep_few(self.data, settings.probe_images, settings.seed)
        self.device = device_of(settings.trainer)
        backbone = Backbone(settings.model.name, settings.model.pool, settings.image_size)
        if settings.model.pretrained:
            backbone.load_pretrained(settings.model.weights)
        self.constants = (backbone.pretrained_config.mean, backbone.pretrained_config.std)
        self.body, self.head = backbone.body, nn.Linear(backbone.features, len(self.data.classes))
        self.model = nn.Sequential(self.body, self.head).to(self.device)
        self.body.requires_grad_(not frozen)
        trained = self.head.parameters() if frozen else self.model.parameters()
        self.optimizer = torch.optim.Adam(trained, lr=HEAD_RATE if frozen else FULL_RATE)
        self.loss = nn.CrossEntropyLoss(self.class_weights().to(self.device))

    def class_weights(self) -> torch.Tensor:
        """Balanced, float32 (classes,)."""
        counts = np.bincount(self.data.targets[self.data.part("train")], minlength=len(self.data.classes))
        return torch.tensor(balanced_weights(counts.tolist()))

    def loader(self, part: str, images: int | None = None) -> DataLoader:
        """The training part in random order and augmented, `images` of it an epoch; another part as it is."""
        training, workers = part == "train", self.settings.plain.workers or os.cpu_count() or 1
        transform = plain_transforms(
            self.settings.image_size, *self.constants, self.settings.augment if training else None
        )
        files = [self.settings.dataset.root / path for path in self.data.samples["path"]]
        dataset = Subset(PlainImages(files, self.data.targets, transform), self.data.part(part).tolist())
        return DataLoader(
            dataset,
            self.settings.batch_size,
            sampler=RandomSampler(dataset, num_samples=images) if training else None,
            num_workers=workers,
            persistent_workers=True,
            pin_memory=self.device.type == "cuda",
        )

    def train_epoch(self, loader: DataLoader) -> tuple[int, float]:
        """Images seen, and their mean loss."""
        self.model.train()
        if self.frozen:
            self.body.eval()  # else its BatchNorm would move
        seen, total = 0, torch.zeros((), device=self.device)
        for image, target in loader:
            image, target = image.to(self.device), target.to(self.device)
            self.optimizer.zero_grad()
            loss = self.loss(self.model(image), target)
            loss.backward()
            self.optimizer.step()
            total += loss.detach() * len(image)
            seen += len(image)
        return seen, float(total) / seen

    @torch.no_grad()
    def auroc(self) -> float | None:
        """Of the test part."""
        self.model.eval()
        batches = [self.model(image.to(self.device)).softmax(1).cpu() for image, _ in self.loader("test")]
        rows, classes = self.data.part("test"), self.data.classes
        names = list(classes), list(classes.values())
        table = predictions_table(self.data.samples.loc[rows], torch.cat(batches).double().numpy(), *names)
        return defect_numbers(compute_metrics(table, *names))["auroc"]


def plain(turns: Turns, settings: BenchmarkSettings, folder: Path) -> None:  # noqa: ARG001  as all contenders
    """All layers trained, as many batches a turn as the others."""
    recipe = PlainRecipe(settings, frozen=False)
    loader = recipe.loader("train", steps_of(recipe.data, settings) * settings.batch_size)
    turns.play(recipe.device, lambda: recipe.train_epoch(loader)[0])


def plain_frozen(turns: Turns, settings: BenchmarkSettings, folder: Path) -> None:  # noqa: ARG001  as all contenders
    """Epochs with frozen layers, once."""
    recipe = PlainRecipe(settings, frozen=True)
    loader, stopwatch = recipe.loader("train"), Stopwatch(recipe.device)
    recipe.model(next(iter(recipe.loader("val")))[0].to(recipe.device))  # warms up, as the probe does
    turns.wait()
    stopwatch.start()
    for _ in range(settings.plain.epochs):
        recipe.train_epoch(loader)
    turn = stopwatch.stop(None)
    turns.wait(turn | {"auroc": recipe.auroc()})
