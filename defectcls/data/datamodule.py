"""From a dataset's settings to batches: `image` uint8 (batch, 3, side, side), `target` and `index` int64 (batch,)."""

import logging
from collections.abc import Iterator
from typing import Any, Literal

import lightning as L
import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from defectcls.data.duplicates import first_of, related_images, split_units
from defectcls.data.images import UnreadableImageError, decode, decode_all
from defectcls.data.listing import fetch, list_samples
from defectcls.data.samples import Target, classes_of, label_samples
from defectcls.data.splits import PARTS, leaked_units, split_samples
from defectcls.errors import UserError
from defectcls.settings import DatasetSettings

log = logging.getLogger(__name__)

Batch = dict[str, torch.Tensor]


class DefectDataModule(L.LightningDataModule):
    """The images of one dataset. After `setup`, `samples` is the table that the `index` of every batch points into.

    Args:
        image_size: side in pixels that every image is brought to.
        batch_size: images per process and step.
        sampler: `shuffle`, or `balanced`: every class equally often, images of small ones repeated.
        cache_gb: decoded images are kept in memory where they fit into so many gigabytes.
        workers: processes that decode, where the images are not kept in memory.
        classes: class name -> defective, in the order of a trained model's logits. None: taken from the data.
        split: False puts all images into the test part.
    """

    def __init__(
        self,
        settings: DatasetSettings,
        *,
        target: Target,
        image_size: int,
        batch_size: int,
        sampler: Literal["shuffle", "balanced"],
        seed: int,
        cache_gb: float,
        workers: int,
        classes: dict[str, bool] | None = None,
        split: bool = True,
    ) -> None:
        super().__init__()
        self.settings, self.target, self.image_size, self.batch_size = settings, target, image_size, batch_size
        self.sampler, self.seed, self.cache_gb, self.workers = sampler, seed, cache_gb, workers
        self.classes, self.split = classes or {}, split
        self.samples = pd.DataFrame()
        self.unreadable: list[dict[str, str]] = []

    def prepare_data(self) -> None:
        """Fetch what is missing; see `defectcls.data.listing.fetch`."""
        fetch(self.settings)

    def setup(self, stage: str | None = None) -> None:  # noqa: ARG002  Lightning's signature
        """List, read, label and split the images; a second call does nothing.

        Raises:
            UserError: no images, unreadable images, classes that are missing, unknown or too small to split.
        """
        if not self.samples.empty:
            return
        samples, self.images = self._read(list_samples(self.settings))
        samples = label_samples(samples, self.target)
        found = classes_of(samples)
        if not self.classes and len(found) < 2:
            raise UserError(
                f"a classifier needs two classes, but all {len(samples)} images are of one: {', '.join(found)}"
            )
        self.classes = self.classes or found
        if unknown := [name for name in found if name not in self.classes]:
            known = ", ".join(self.classes)
            raise UserError(
                f"the data has classes that the model does not know: {', '.join(unknown)}; it knows {known}"
            )
        samples["split"] = self._split(samples) if self.split else "test"
        self.samples = samples
        self.targets = samples["label"].map({name: i for i, name in enumerate(self.classes)}).to_numpy(np.int64)

    def part(self, name: str) -> np.ndarray:
        """Rows of the sample table that belong to one part (train, val, test), int64 (images,)."""
        return np.flatnonzero(self.samples["split"].to_numpy() == name)

    def train_dataloader(self) -> DataLoader:
        rows = self.part("train")
        weights = None
        if self.sampler == "balanced":
            counts = np.bincount(self.targets[rows], minlength=len(self.targets))
            weights = torch.from_numpy(1.0 / counts[self.targets[rows]])
        return self._loader(rows, shuffle=True, weights=weights)

    def val_dataloader(self) -> DataLoader:
        return self.part_dataloader("val")

    def test_dataloader(self) -> DataLoader:
        return self.part_dataloader("test")

    def part_dataloader(self, name: str) -> DataLoader:
        """One part in the order of its rows, every image once."""
        return self._loader(self.part(name), shuffle=False, weights=None)

    def _loader(self, rows: np.ndarray, shuffle: bool, weights: torch.Tensor | None) -> DataLoader:
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        workers = self.workers if self.images.pixels is None else 0
        return DataLoader(
            _Part(self.images, self.targets, rows),
            batch_size=self.batch_size,
            sampler=EpochSampler(len(rows), self.seed, shuffle, weights, rank, world),
            collate_fn=_as_batch,
            drop_last=shuffle and len(rows) >= self.batch_size * world,  # BatchNorm cannot train on one left-over image
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def _read(self, samples: pd.DataFrame) -> tuple[pd.DataFrame, "Images"]:
        """Decode every image once: to keep it where memory allows, and to know the unreadable ones before training."""
        root, size, resize = self.settings.root, self.image_size, self.settings.resize
        paths = [root / path for path in samples["path"]]
        fits = len(paths) * 3 * size * size <= self.cache_gb * 1e9
        pixels = np.empty((len(paths), 3, size, size), dtype=np.uint8) if fits else None
        readable = np.ones(len(paths), dtype=bool)
        decoded = tqdm(decode_all(paths, size, resize), "reading", len(paths), unit="img", disable=None, leave=False)
        for row, image in enumerate(decoded):
            if isinstance(image, UnreadableImageError):
                readable[row] = False
                self.unreadable.append({"path": samples["path"].iloc[row], "reason": str(image)})
            elif pixels is not None:
                pixels[row] = image
        if self.unreadable:
            self._report_unreadable(len(paths))
            samples = samples[readable].reset_index(drop=True)
            pixels = None if pixels is None else pixels[readable]
            paths = [path for path, kept in zip(paths, readable, strict=True) if kept]
        return samples, Images(paths, size, resize, pixels)

    def _report_unreadable(self, count: int) -> None:
        shown = ", ".join(f"{entry['path']} ({entry['reason']})" for entry in self.unreadable[:3])
        more = f" and {len(self.unreadable) - 3} more" if len(self.unreadable) > 3 else ""
        sentence = f"{len(self.unreadable)} of {count} images cannot be read: {shown}{more}"
        if self.settings.on_unreadable == "error" or len(self.unreadable) == count:
            raise UserError(f"{sentence}; mend or delete them, or leave them out with dataset.on_unreadable=skip")
        log.warning("%s; left out, as dataset.on_unreadable=skip says", sentence)

    def _split(self, samples: pd.DataFrame) -> pd.Series:
        units = related_images(samples, self.settings)
        samples["unit"] = split_units(first_of(units), samples.get("group"))  # a split may ignore what is related
        parts = split_samples(samples, units, self.settings.split, self.seed)
        if leaks := leaked_units(parts, units):
            log.warning(
                "the published split leaks: %d groups of copies, near twins or related images stand on both sides; "
                "dataset.split.published=false splits anew without leaks",
                leaks,
            )
        log.info("%s", ", ".join(f"{name} {int((parts == name).sum())}" for name in PARTS))
        return parts


class Images:
    """Decoded images by row: from memory, or decoded anew at every access."""

    def __init__(self, paths: list, size: int, resize: Literal["squash", "pad"], pixels: np.ndarray | None) -> None:
        self.paths, self.size, self.resize, self.pixels = paths, size, resize, pixels

    def __getitem__(self, rows: np.ndarray) -> torch.Tensor:
        """uint8 (rows, 3, size, size)."""
        if self.pixels is not None:
            return torch.from_numpy(self.pixels[rows])
        return torch.from_numpy(np.stack([decode(self.paths[row], self.size, self.resize) for row in rows]))


class EpochSampler(Sampler[int]):
    """The order of one epoch as a pure function of seed and epoch, dealt in turn to the processes.

    Every process gets equally many, so the first images are repeated at the end where the count does not divide; their
    `index` tells, and evaluation counts them once.

    Args:
        weights: chance of each image to be drawn, with replacement; None draws each once.
        rank, world: number of this process and of all.
    """

    def __init__(
        self, count: int, seed: int, shuffle: bool, weights: torch.Tensor | None = None, rank: int = 0, world: int = 1
    ) -> None:
        self.count, self.seed, self.shuffle, self.weights, self.rank, self.world = (
            count,
            seed,
            shuffle,
            weights,
            rank,
            world,
        )
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning at the start of every epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-self.count // self.world)

    def __iter__(self) -> Iterator[int]:
        # One generator for all processes: they deal the same order among themselves.
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        if self.weights is not None:
            order = torch.multinomial(self.weights, self.count, replacement=True, generator=generator)
        elif self.shuffle:
            order = torch.randperm(self.count, generator=generator)
        else:
            order = torch.arange(self.count)
        own = torch.arange(self.rank, len(self) * self.world, self.world) % max(self.count, 1)
        return iter(order[own].tolist())


class _Part(Dataset):
    """Rows of the sample table, fetched a whole batch at a time."""

    def __init__(self, images: Images, targets: np.ndarray, rows: np.ndarray) -> None:
        self.images, self.targets, self.rows = images, targets, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, positions: list[int]) -> Batch:
        rows = self.rows[positions]
        return {
            "image": self.images[rows],
            "target": torch.from_numpy(self.targets[rows]),
            "index": torch.from_numpy(rows),
        }


def _as_batch(batch: Any) -> Batch:
    return batch  # `__getitems__` has already put it together
