"""From a dataset's settings to batches: `image` uint8 (batch, 3, side, side), `target` and `index` int64 (batch,)."""

import logging
from collections.abc import Iterator
from typing import Any, Literal

import lightning as L
import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from defectcls.data.cache import Images, open_images
from defectcls.data.depth import examine_files
from defectcls.data.digests import digest_files
from defectcls.data.duplicates import NO_PAIRS, contradiction, first_of, identical_files, related_images, split_units
from defectcls.data.fingerprints import Fingerprints, fingerprint_files
from defectcls.data.listing import fetch, list_samples
from defectcls.data.near_duplicates import near_identical_pairs
from defectcls.data.pixel_file import Files
from defectcls.data.samples import Target, classes_of, counted, label_samples
from defectcls.data.splits import PARTS, leaked_units, split_samples
from defectcls.data.store import image_store
from defectcls.errors import UserError
from defectcls.settings import DatasetSettings, SplitSettings

log = logging.getLogger(__name__)

Batch = dict[str, torch.Tensor]


class DefectDataModule(L.LightningDataModule):
    """The images of one dataset. After `setup`, `samples` is the table that the `index` of every batch points into.

    `images[rows]` are their pixels, `digests` 16 bytes of each one's content, and `settings.depth` is no longer auto.

    Args:
        image_size: side in pixels that every image is brought to.
        batch_size: images per process and step.
        sampler: `shuffle`, or `balanced`: every class equally often, images of small ones repeated.
        workers: processes that decode, where no decoded images are kept; 0: the threads of this one.
        device: where the images may be kept, as `dataset.cache` says; batches are then on it.
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
        workers: int,
        device: torch.device,
        classes: dict[str, bool] | None = None,
        split: bool = True,
    ) -> None:
        super().__init__()
        self.settings, self.target, self.image_size, self.batch_size = settings, target, image_size, batch_size
        self.sampler, self.seed, self.workers, self.device = sampler, seed, workers, device
        self.classes, self.split = classes or {}, split
        self.samples = pd.DataFrame()
        self.digests: list[bytes] = []
        self.unreadable: list[dict[str, str]] = []
        self.prints: Fingerprints | None = None  # where the split asks for them
        self.near = NO_PAIRS

    def prepare_data(self) -> None:
        """Fetch what is missing; see `defectcls.data.listing.fetch`."""
        fetch(self.settings)

    def setup(self, stage: str | None = None) -> None:  # noqa: ARG002  Lightning's signature
        """List, read, label and split the images; a second call does nothing.

        Raises:
            UserError: no images, unreadable images, labels that contradict each other, classes that are missing,
                unknown or too small to split.
        """
        if not self.samples.empty:
            return
        samples = list_samples(self.settings)
        if left_out := samples.attrs.get("left_out"):
            log.info("beside the photos: %s", counted(left_out))
        samples = label_samples(self._read(samples), self.target)
        if contradicted := contradiction(samples, self.digests):
            if self.settings.contradictions == "error":
                raise UserError(
                    f"{contradicted}: delete the wrong ones, or take them as they are with dataset.contradictions=allow"
                )
            log.warning("%s; taken as they are", contradicted)
        found = classes_of(samples)
        if not self.classes and len(found) < 2:
            raise UserError(
                f"a classifier needs two classes, but all {len(samples)} images are of one: {', '.join(found)}; "
                "model.head=memory finetune=probe learns from sound ones alone"
            )
        self.classes = self.classes or found
        if unknown := [name for name in found if name not in self.classes]:
            known = ", ".join(self.classes)
            raise UserError(
                f"the data has classes that the model does not know: {', '.join(unknown)}; it knows {known}"
            )
        self._tied = self._units(samples)
        samples["unit"] = split_units(first_of(self._tied), samples.get("group"))  # a split may ignore what is related
        self.samples = samples
        if self.split:
            self.deal(self.settings.split, self.seed)
        else:
            samples["split"] = "test"
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
        return _Loader(
            _Part(self.images, self.targets, rows),
            batch_size=self.batch_size,
            sampler=EpochSampler(len(rows), self.seed, shuffle, weights, rank, world),
            collate_fn=_as_batch,
            drop_last=shuffle and len(rows) >= self.batch_size * world,  # BatchNorm cannot train on one left-over image
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available() and not isinstance(self.images.pixels, torch.Tensor),
        )

    def _read(self, samples: pd.DataFrame) -> pd.DataFrame:
        """The rows that can be read; `images` and `digests` are theirs."""
        paths = [f"{self.settings.root}/{name}" for name in samples["path"].tolist()]
        known, settings = digest_files(paths), self.settings
        depths = examine_files(paths, known, image_store(settings))
        depth = depths.resolve(settings.depth)
        for sentence in depths.told(depth):
            log.info(sentence)
        self.settings = settings.model_copy(update={"depth": depth})
        files = Files(settings.root, samples["path"].array, known, self.image_size, settings.resize, depth)
        self.images, unreadable = open_images(files, self.settings, self.device)
        self.digests = self.images.files.known.digests
        self._report_unreadable(unreadable, samples["path"])
        log.info("%s", self.images)
        return samples.drop(index=list(unreadable)).reset_index(drop=True) if unreadable else samples

    def _report_unreadable(self, reasons: dict[int, str], paths: pd.Series) -> None:
        if not reasons:
            return
        self.unreadable = [{"path": paths.iloc[row], "reason": reason} for row, reason in reasons.items()]
        shown = ", ".join(f"{entry['path']} ({entry['reason']})" for entry in self.unreadable[:3])
        more = f" and {len(reasons) - 3} more" if len(reasons) > 3 else ""
        sentence = f"{len(reasons)} of {len(paths)} images cannot be read: {shown}{more}"
        if self.settings.on_unreadable == "error" or len(reasons) == len(paths):
            raise UserError(f"{sentence}; mend or delete them, or leave them out with dataset.on_unreadable=skip")
        log.warning("%s; left out, as dataset.on_unreadable=skip says", sentence)

    def _units(self, samples: pd.DataFrame) -> np.ndarray:
        """Number of the images that each image is tied to, (images,); says how many copies and near twins are tied."""
        together, copies = self.settings.split.together, np.bincount(identical_files(self.digests))
        if "identical" in together and (copies > 1).any():
            log.info("identical to another: %d images; those that are tied count as one", copies[copies > 1].sum())
        if "near_identical" in together:
            self.find_near_identical(samples["path"])
        if len(self.near):
            twins = len(np.unique(self.near))
            log.info("near-identical to another: %d images; those that are tied count as one", twins)
        return related_images(samples, self.settings, self.digests, self.near)

    def deal(self, split: SplitSettings, seed: int) -> None:
        """Split the images that were read, as a cross-validation does for each of its folds.

        Raises:
            UserError: too few of a class.
        """
        self.settings, self.seed = self.settings.model_copy(update={"split": split}), seed
        parts = split_samples(self.samples, self._tied, split, seed)
        if leaks := leaked_units(parts, self._tied):
            log.warning(
                "the published split leaks: %d groups of copies, near twins or related images stand on both sides; "
                "dataset.split.published=false splits anew without leaks",
                leaks,
            )
        log.info("%s", ", ".join(f"{name} {int((parts == name).sum())}" for name in PARTS))
        self.samples["split"] = parts

    def find_near_identical(self, names: pd.Series) -> None:
        """Fingerprint all images and pair the near-identical ones: `prints` and `near`."""
        paths = [f"{self.settings.root}/{name}" for name in names]
        store = image_store(self.settings)
        self.prints = fingerprint_files(paths, self.digests, self.settings.depth, store)
        if self.settings.on_unreadable == "error":
            self._report_unreadable(self.prints.errors, names)  # with dataset.cache=off nobody has decoded them before
        self.near = near_identical_pairs(paths, self.prints, store)


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

    def __getitems__(self, positions: list[int]) -> Batch | UserError:
        rows = self.rows[positions]
        try:
            images = self.images[rows]
        except UserError as error:
            return error  # a worker process would pass on a traceback in its place
        batch = {"image": images, "target": torch.from_numpy(self.targets[rows]), "index": torch.from_numpy(rows)}
        return {name: values.to(images.device, non_blocking=True) for name, values in batch.items()}


class _Loader(DataLoader):
    """Raises what a worker process has met."""

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        for batch in super().__iter__():
            if isinstance(batch, UserError):
                raise batch
            yield batch


def _as_batch(batch: Any) -> Batch:
    return batch  # `__getitems__` has already put it together
