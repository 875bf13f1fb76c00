"""A dataset, from files to batches: `image` uint8 (batch, 3, height, width), `target` and `index` int64 (batch,)."""

import inspect
import logging
from typing import Any

import lightning as L
import numpy as np
import pandas as pd
import torch
from pydantic import ValidationError, create_model
from torch.utils.data import DataLoader, DistributedSampler, default_convert

from defectcls.config import named, presets, shipped_dataset
from defectcls.data.batches import Part, PartLoader
from defectcls.data.download import fetch_archive
from defectcls.data.duplicates import NO_PAIRS, contradiction, first_of, near_identical_pairs, split_units
from defectcls.data.images import further_pages, typical_size
from defectcls.data.overlay import lay_over
from defectcls.data.reading import Images
from defectcls.data.samples import classes_of, counted, group_consecutive, in_order, label_samples, refuse_spellings
from defectcls.data.splits import PARTS, deal_folds, leaked_units, split_samples
from defectcls.errors import UserError, explain
from defectcls.settings import BatchSettings, DatasetSettings, Settings, SplitSettings, TrainSettings

log = logging.getLogger(__name__)

BATCH = tuple(BatchSettings.model_fields)


class DefectDataModule(L.LightningDataModule):
    """The photos of one dataset: a subclass, which annotates options of its own and lists its files.

        class Bolts(DefectDataModule):
            days: list[str]

            def list_samples(self) -> pd.DataFrame:
                kinds = {"good": False, "bad": True}
                folders = {f"{day}/{kind}": {"defective": kinds[kind]} for day in self.days for kind in kinds}
                return samples_in(self.root, folders, "<day>/{good,bad}/<image>")

        data = Bolts(root="photos", days=["monday"], image_size=448)
        L.Trainer(max_epochs=3).fit(classifier, data)

    After `setup`, `samples` is the table that the `index` of every batch points into, `images[rows]` are the pixels of
    its rows and `digests` 16 bytes of each one's content; `classes` says of each class, by name and in the order of the
    logits, whether it is defective. `settings` are the options of every dataset; its depth is then no longer auto.

    Args:
        device: where the images may be kept, as the option `cache` says; batches are then on it.
        classes: those of a trained model; None: taken from the data.
        test_all: puts all images into the test part, instead of splitting them.
        options: of conf/dataset_base.yaml and conf/dataset/<name>.yaml; `target`, `image_size`, `batch_size` and `seed`
            of conf/train.yaml; `workers` of conf/trainer/auto.yaml. What is not given is as it stands there.

    Raises:
        UserError: an option is unknown, has a wrong value, or has to be given and is not.
    """

    images: Images
    targets: np.ndarray  # number of each row's class, int64 (images,)

    def __init__(
        self,
        *,
        device: torch.device = torch.device("cpu"),  # noqa: B008  immutable
        classes: dict[str, bool] | None = None,
        test_all: bool = False,
        **options: Any,
    ) -> None:
        super().__init__()
        kind, train = type(self), presets("train")
        kinds = kind.__mro__[: kind.__mro__.index(DefectDataModule)]
        hints = [inspect.get_annotations(each, eval_str=True) for each in kinds]
        fields: Any = {name: (hint, getattr(kind, name, ...)) for each in hints for name, hint in each.items()}
        plain = presets("dataset_base") | {"name": kind.__name__, "_target_": _path(kind)}
        defaults = next(filter(None, (shipped_dataset(_path(each)) for each in kinds)), plain)
        defaults |= {name: train[name] for name in BATCH} | {"workers": presets("trainer/auto")["workers"]}
        values = {name: value for name, value in (defaults | options).items() if value != "???"}  # has to be given
        values["split"] = defaults["split"] | values["split"]
        try:
            batches = BatchSettings(**{name: values.pop(name) for name in BATCH})
            self.workers = values.pop("workers")
            self.settings = DatasetSettings(**values)
            own = create_model(kind.__name__, __base__=Settings, **fields)(**self.settings.further)
        except ValidationError as error:
            raise UserError(explain(error)) from None
        self.target, self.image_size, self.batch_size = batches.target, batches.image_size, batches.batch_size
        self.seed, self.device, self.classes, self.test_all = batches.seed, device, classes or {}, test_all
        self.root = self.settings.root
        self.samples = pd.DataFrame()
        self.digests: list[bytes] = []
        self.unreadable: list[dict[str, str]] = []
        self.overlay: dict[str, Any] = {}  # what `lay_over` remembers; with `labels` of before these are laid over
        self.near = NO_PAIRS  # rows of near-identical images, where the split asks for them
        self.kept: dict[str, str] = {}  # by its digest the part that a photo stays in, with all that is tied to it
        vars(self).update({name: getattr(own, name) for name in fields})

    @staticmethod
    def from_settings(settings: TrainSettings, **more: Any) -> "DefectDataModule":
        """The data module that `dataset._target_` names, see `named`; `more` are device, classes and test_all."""
        kind = named(settings.dataset.target, DefectDataModule)
        batches = {name: getattr(settings, name) for name in BATCH}
        return kind(**settings.dataset.model_dump(), **batches, workers=settings.trainer.workers, **more)

    def list_samples(self) -> pd.DataFrame:
        """One row an image, in any order, by names alone: nothing is decoded. See `defectcls.data.samples`.

        Raises:
            UserError: a folder or file is missing, empty, out of place or under another name; nothing is left out.
        """
        raise NotImplementedError

    @property
    def class_names(self) -> list[str]:
        """In the order of the logits."""
        return list(self.classes)

    def prepare_data(self) -> None:
        """Fetch the archive where the root folder is missing and `download` is true; or make it where the images are.

        Raises:
            UserError: it is missing; where to get the data.
        """
        root, source, archive = self.root, self.settings.source, self.settings.archive
        if source is None:
            root.mkdir(parents=True, exist_ok=True)
        elif not root.is_dir() and self.settings.download and archive:
            fetch_archive(archive.url, archive.sha256, root)
        elif not root.is_dir():
            more = ", or dataset.download=true" if archive else ""
            raise UserError(f"the folder {root} does not exist: get it from {source}, or dataset.root=<folder>{more}")

    def sample_table(self) -> pd.DataFrame:
        """What `list_samples` lists, in the order of paths, with groups of `consecutive`.

        Raises:
            UserError: no images, or names of classes that differ in spelling alone.
        """
        listed, consecutive = self.list_samples(), self.settings.consecutive
        if listed.empty:
            raise UserError(f"the folder {self.root} holds no images of '{self.settings.name}'")
        samples = in_order(listed)
        for column in samples.columns.intersection(["defect_type", "category"]):
            refuse_spellings(samples[column])
        return samples if consecutive is None else group_consecutive(samples, consecutive)

    def setup(self, stage: str | None = None) -> None:  # noqa: ARG002  Lightning's signature
        """List, read, label and split the images; a second call does nothing.

        Raises:
            UserError: unreadable images, contradicting labels, classes that are missing, unknown or too small to
                split, or what `lay_over` refuses.
        """
        if not self.samples.empty:
            return
        samples = self.sample_table()
        if left_out := samples.attrs.get("left_out"):
            log.info("beside the photos: %s", counted(left_out))
        samples = self._read(samples)
        samples["photo"] = [digest.hex() for digest in self.digests]
        if said := self.overlay.get("labels", self.settings.verdicts):
            samples, found = lay_over(samples, self.target, said)
            self.overlay = found | self.overlay
        samples = label_samples(samples, self.target)
        if contradicted := contradiction(samples, self.digests):
            if self.settings.contradictions == "error":
                raise UserError(f"{contradicted}: delete the wrong ones, or dataset.contradictions=allow")
            log.warning("%s; taken as they are", contradicted)
        found = classes_of(samples)
        if not self.classes and len(found) < 2:
            one = f"all {len(samples)} images are of one: {', '.join(found)}"
            raise UserError(f"a classifier needs two classes, but {one}; model.head=memory needs sound ones alone")
        self.classes = self.classes or found
        if unknown := [name for name in found if name not in self.classes]:
            raise UserError(f"the model does not know the classes {', '.join(unknown)}, only {', '.join(self.classes)}")
        self.targets = samples["label"].map({name: i for i, name in enumerate(self.classes)}).to_numpy(np.int64)
        self._tied = self._units(samples)
        samples["unit"] = split_units(first_of(self._tied), samples.get("group"))  # a split may ignore what is related
        self._listed, self.samples = samples, samples.assign(split="test")  # with the published split, and with ours
        if not self.test_all:
            self.deal(self.settings.split, self.seed)

    def part(self, name: str) -> np.ndarray:
        """Rows of the sample table that belong to one part (train, val, test), int64 (images,)."""
        return np.flatnonzero(self.samples["split"].to_numpy() == name)

    def train_dataloader(self) -> DataLoader:
        return self.part_dataloader("train", shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return self.part_dataloader("val")

    def test_dataloader(self) -> DataLoader:
        return self.part_dataloader("test")

    def part_dataloader(self, name: str, shuffle: bool = False) -> DataLoader:
        """One part, in the order of its rows, or in one that is a function of seed and epoch alone.

        Every process gets equally many, so the first images are repeated at the end where the count does not divide;
        their `index` tells, and evaluation counts them once.
        """
        part = Part(self.images, self.targets, self.part(name))
        rank, world = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        device = self.trainer.strategy.root_device if self.trainer else self.device
        workers = self.workers if self.images.place == "off" else 0
        return PartLoader(
            part,
            batch_size=self.batch_size,
            sampler=DistributedSampler(part, world, rank, shuffle, self.seed * 1_000_003),  # the epoch is added to it
            drop_last=shuffle and len(part) >= self.batch_size * world,  # BatchNorm cannot train on one left-over image
            collate_fn=default_convert,  # a Part has put the batch together
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=device.type == "cuda" and self.images.place != "device",
        )

    def _read(self, samples: pd.DataFrame) -> pd.DataFrame:
        """The rows that can be read; `images` and `digests` are theirs."""
        files = [f"{self.root}/{name}" for name in samples["path"]]
        if self.image_size == "auto":
            self.image_size = typical_size(files)
        self.images = images = Images(files, self.settings, self.image_size, self.device)
        if paged := int(images.records["paged"].sum()):
            log.info(further_pages(paged))
        self.settings = self.settings.model_copy(update={"depth": images.depth})
        self.unreadable = [{"path": samples["path"][row], "reason": why} for row, why in images.errors.items()]
        if self.unreadable:
            shown = ", ".join(f"{entry['path']} ({entry['reason']})" for entry in self.unreadable[:3])
            more = " …" if len(self.unreadable) > 3 else ""
            sentence = f"{len(self.unreadable)} of {len(samples)} images cannot be read: {shown}{more}"
            if self.settings.on_unreadable == "error" or len(self.unreadable) == len(samples):
                raise UserError(f"{sentence}; mend or delete them, or leave them out with dataset.on_unreadable=skip")
            log.warning("%s; left out", sentence)
        self.digests = images.digests
        kept = f"{images.nbytes / 1e6:,.1f} MB of pixels, place: {images.place}"
        log.info("%d images, size %d x %d, depth %s: %s", len(images.paths), *images.size, images.depth, kept)
        return samples.drop(index=list(images.errors)).reset_index(drop=True)

    def _units(self, samples: pd.DataFrame) -> np.ndarray:
        """Number of the images that each image is tied to, (images,); says how many copies and near twins are tied."""
        together = self.settings.split.together
        identical = first_of(self.digests) if "identical" in together else np.arange(len(samples))
        self.near = near_identical_pairs(self.images) if "near_identical" in together else NO_PAIRS
        copies = np.bincount(identical)
        for kind, count in (("identical", copies[copies > 1].sum()), ("near-identical", len(np.unique(self.near)))):
            if count:
                log.info("%s to another: %d images; those that are tied count as one", kind, count)
        return split_units(identical, samples.get("group") if "group" in together else None, self.near)

    def deal(self, split: SplitSettings, seed: int, validates: bool = True) -> None:
        """Split the images that were read, as a cross-validation does for each of its folds; see `split_samples`."""
        self.settings, self.seed = self.settings.model_copy(update={"split": split}), seed
        parts = split_samples(self._listed, self._tied, split, seed, validates)
        if self.kept and split.folds is not None:
            raise UserError("from=<run> keeps the test photos of that run, and folds test all: leave one of them out")
        kept = self._listed["photo"].map(self.kept).replace({} if validates else {"val": "train"})
        for name in PARTS:  # of what is tied, one that was tested keeps all from being trained on
            parts[np.isin(self._tied, self._tied[kept == name])] = name
        if leaks := leaked_units(parts, self._tied):
            log.warning("the published split leaks: %d groups; dataset.split.published=false mends it", leaks)
        sizes = {name: int((parts == name).sum()) for name in PARTS}
        log.info("%s", ", ".join(f"{name} {size}" for name, size in sizes.items() if size or validates))
        self.samples["split"] = parts

    def folds(self, rows: np.ndarray, count: int) -> np.ndarray:
        """The fold of each of some rows of the sample table, int64 (rows,); what is tied stays together."""
        generator = np.random.default_rng([self.seed, 4])
        return deal_folds(self.samples.iloc[rows], self._tied[rows], count, generator)


def _path(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
