"""The recipe of the tutorials: files decoded anew by workers, float32, a plain loop. What everyone's default costs."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score
from sklearn.utils.class_weight import compute_class_weight
from torch import nn
from torch.utils.data import DataLoader, Dataset, RandomSampler, Subset
from torchvision import transforms

from benchmarks.contenders import Plan, keep_few
from benchmarks.turns import Stopwatch, Turns
from defectcls.model.backbone import Backbone
from defectcls.model.hardware import find_device
from defectcls.settings import AugmentSettings
from defectcls.training.build import build_data

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
    size: tuple[int, int], mean: tuple[float, ...], std: tuple[float, ...], augment: AugmentSettings | None
) -> transforms.Compose:
    """torchvision's transforms of one image that match the run's augmentation; None: of an evaluation."""
    steps: list = [transforms.Resize(size)]
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

    def __init__(self, plan: Plan, frozen: bool) -> None:
        self.plan, self.settings, self.frozen = plan, plan.settings, frozen
        torch.manual_seed(self.settings.seed)
        self.data = build_data(plan.of_dataset(cache="off"))
        if frozen:
            keep_few(self.data, plan.probe_images, self.settings.seed)
        self.device = find_device(self.settings.trainer.accelerator)
        backbone = Backbone(self.settings.model.name, self.settings.model.pool, self.data.images.size)
        if self.settings.model.pretrained:
            backbone.load_pretrained(self.settings.model.weights)
        self.constants = (backbone.pretrained_config.mean, backbone.pretrained_config.std)
        self.body = backbone.body.to(memory_format=torch.contiguous_format)
        self.head = nn.Linear(backbone.feature_count, len(self.data.classes))
        self.model = nn.Sequential(self.body, self.head).to(self.device)
        self.body.requires_grad_(not frozen)
        trained = self.head.parameters() if frozen else self.model.parameters()
        self.optimizer = torch.optim.Adam(trained, lr=HEAD_RATE if frozen else FULL_RATE)
        targets = self.data.targets[self.data.part("train")]
        weights = compute_class_weight("balanced", classes=np.arange(len(self.data.classes)), y=targets)
        self.loss = nn.CrossEntropyLoss(torch.tensor(weights, dtype=torch.float32, device=self.device))

    def loader(self, part: str, images: int | None = None) -> DataLoader:
        """The training part in random order and augmented, `images` of it an epoch; another part as it is."""
        training = part == "train"
        augment = self.settings.augment if training else None
        transform = plain_transforms(self.data.images.size, *self.constants, augment)
        files = [self.settings.dataset.root / path for path in self.data.samples["path"]]
        dataset = Subset(PlainImages(files, self.data.targets, transform), self.data.part(part).tolist())
        return DataLoader(
            dataset,
            self.settings.batch_size,
            sampler=RandomSampler(dataset, num_samples=images) if training else None,
            num_workers=self.plan.workers,
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
    def auroc(self) -> float:
        """Of the test part, defective against sound."""
        self.model.eval()
        scores = torch.cat([self.model(image.to(self.device)).softmax(1).cpu() for image, _ in self.loader("test")])
        defective = np.array(list(self.data.classes.values()))
        return roc_auc_score(defective[self.data.targets[self.data.part("test")]], scores[:, defective].sum(1))


def plain_recipe(plan: Plan, turns: Turns) -> None:
    """All layers trained, as many batches a turn as the others."""
    recipe = PlainRecipe(plan, frozen=False)
    loader = recipe.loader("train", plan.steps_of(recipe.data) * plan.settings.batch_size)
    turns.play(recipe.device, lambda: recipe.train_epoch(loader)[0])


def plain_frozen(plan: Plan, turns: Turns) -> None:
    """Epochs with frozen layers, once."""
    recipe = PlainRecipe(plan, frozen=True)
    loader, stopwatch = recipe.loader("train"), Stopwatch(recipe.device)
    recipe.model(next(iter(recipe.loader("val")))[0].to(recipe.device))  # warms up, as the probe does
    turns.wait()
    stopwatch.start()
    for _ in range(plan.epochs):
        recipe.train_epoch(loader)
    turns.wait(stopwatch.stop(None) | {"auroc": recipe.auroc()})
