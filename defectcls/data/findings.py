"""What is wrong with a set of images, found without a model: copies, leaks, unreadable and odd files, thin classes."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np
import pandas as pd

from defectcls.data.datamodule import DefectDataModule
from defectcls.data.duplicates import contradiction, identical_files, related_images, split_units
from defectcls.data.images import MAX_PIXELS, Depth, UnreadableImageError, upright_pixels
from defectcls.data.near_duplicates import PLAIN, near_identical_pairs
from defectcls.data.reading import CPU, Images
from defectcls.data.samples import label_samples
from defectcls.data.splits import PARTS, leaked_units, split_samples
from defectcls.errors import UserError
from defectcls.settings import DatasetSettings

USUAL = 0.9  # share of a category's images from which a size or a mode is the usual one and the others are odd
THIN = 20  # images of a class: with fewer, a test part of a fifth holds less than four
LOPSIDED = 10  # times as many images in the largest class as in the smallest
TELLTALE = 0.5  # share of a majority vote's errors that the size, mode or suffix of a file saves: a short cut


class Finding(NamedTuple):
    """One row of audit.csv, but for the splits; an empty label is that of `path`."""

    kind: str
    path: str = ""
    other: str = ""
    label: str = ""
    other_label: str = ""
    detail: str = ""


@dataclass(frozen=True)
class Inventory:
    """A set of images as `train` would take it, and what was found."""

    samples: pd.DataFrame  # labelled, one row a file; `split` is "" where unreadable, or where none can be made
    readable: np.ndarray  # bool (images,)
    units: np.ndarray  # of the readable images: tied by a copy, a near-identical twin or a group
    copies: np.ndarray  # of the readable images: tied by a copy or a near-identical twin alone
    findings: list[Finding]
    refusal: str  # why `train` would refuse the set, "" where it would not
    depth: Depth  # that `train` would take

    @property
    def leaks(self) -> int:
        """How many sets of copies and near-identical images stand on both sides of the split."""
        return leaked_units(self.samples["split"][self.readable].reset_index(drop=True), self.copies)

    def table(self, more: list[Finding]) -> pd.DataFrame:
        """All findings as audit.csv has them, pairs across the split first, then those across classes."""
        found = pd.DataFrame([*self.findings, *more], columns=list(Finding._fields))
        of_path = self.samples.set_index("path")[["split", "label"]]
        for side, path in (("", "path"), ("other_", "other")):
            known = of_path.reindex(found[path]).fillna("").reset_index(drop=True)
            found[f"{side}split"] = known["split"]
            found[f"{side}label"] = found[f"{side}label"].where(found[f"{side}label"] != "", known["label"])
        paired = found["other"] != ""
        dealt = found["split"].isin(PARTS) & found["other_split"].isin(PARTS)
        across_split = paired & dealt & (found["split"] != found["other_split"])
        across_classes = paired & (found["label"] != found["other_label"])
        order = np.lexsort((np.arange(len(found)), ~across_classes, ~across_split))
        columns = ["kind", "path", "other", "split", "other_split", "label", "other_label", "detail"]
        return found.iloc[order][columns].reset_index(drop=True)


def take_inventory(data: DefectDataModule) -> Inventory:
    """List, read, compare and split the images; whatever cannot be read is a finding.

    Raises:
        UserError: the folder is missing, holds no images, or is not laid out as the dataset expects.
    """
    data.prepare_data()
    samples, settings = label_samples(data.sample_table(), data.target), data.settings
    anywhere = settings.model_copy(update={"cache": "auto"}) if settings.cache == "device" else settings
    images = Images([f"{settings.root}/{path}" for path in samples["path"]], anywhere, data.image_size, CPU)
    records, digests, every = images.records, images.digests, np.arange(len(samples))
    readable = ~np.isin(every, list(images.errors))
    first = identical_files(digests)
    near = near_identical_pairs(images)
    kept, split, refusal = samples[readable].reset_index(drop=True), pd.Series("", samples.index), ""
    kept_digests = [digests[row] for row in every[readable]]
    try:
        if kept.empty:
            raise UserError("no image can be read")
        units = related_images(kept, settings, kept_digests, (np.cumsum(readable) - 1)[near])
        split[readable] = split_samples(kept, units, settings.split, data.seed).to_numpy()
        if kept["label"].nunique() < 2:
            raise UserError(f"a classifier needs two classes, but all images are of one: {kept['label'].iloc[0]}")
    except UserError as error:
        split[:], refusal = "", str(error)
    samples = samples.assign(split=split)
    if not refusal and settings.contradictions == "error" and (refusal := contradiction(kept, kept_digests)):
        refusal += ": delete the wrong ones, or add dataset.contradictions=allow"
    paths = samples["path"]
    findings = [
        *(Finding("identical", paths[row], paths[first[row]]) for row in every[first != every]),
        *(Finding("near_identical", paths[row], paths[other]) for row, other in near),
        *(Finding("unreadable", paths[row], detail=reason) for row, reason in sorted(images.errors.items())),
        *(Finding("further_pages", path) for path in paths[records["paged"]]),
        *_odd_files(samples[readable], records[readable]),
        *_misfit_masks(samples[readable], records[readable], settings),
        *_thin_classes(samples),
    ]
    copies, units = (split_units(first, group, near)[readable] for group in (None, samples.get("group")))
    return Inventory(samples, readable, units, copies, findings, refusal, images.depth)


def balance(samples: pd.DataFrame) -> pd.DataFrame:
    """Images by category, class and part of the split, with the sum of the parts."""
    rows = [column for column in ("category", "label") if column in samples]
    counts = pd.crosstab([samples[column] for column in rows], samples["split"].replace("", "no split"))
    order = [part for part in ("train", "val", "test", "unused", "no split") if part in counts]
    return counts[order].assign(all=counts.sum(axis=1)).reset_index()


def _odd_files(samples: pd.DataFrame, records: np.ndarray) -> Iterator[Finding]:
    """Images without variation, of an unusual size or mode; and file properties that give the class away."""
    sizes = [f"{width} x {height}" for width, height in zip(records["width"], records["height"], strict=True)]
    suffixes = [PurePosixPath(path).suffix.lower() for path in samples["path"]]
    files = samples.assign(size=sizes, mode=records["mode"], suffix=suffixes)
    for path in files["path"][records["spread"] < PLAIN]:
        yield Finding("constant", path, detail="every pixel is nearly the same")
    for kind, column in (("odd_size", "size"), ("odd_mode", "mode")):
        for _, of_category in files.groupby(files.get("category", pd.Series("", files.index))):
            shares = of_category[column].value_counts(normalize=True)
            usual = str(shares.index[0])
            odd = of_category[of_category[column] != usual] if shares.iloc[0] >= USUAL else of_category[:0]
            for path, value in zip(odd["path"], odd[column], strict=True):
                yield Finding(kind, path, detail=f"{value}, usual is {usual}")
    for column in ("size", "mode", "suffix"):
        counts = pd.crosstab(files[column], files["label"])
        errors = len(files) - counts.sum().max() if len(counts) else 0
        saved = errors - (len(files) - counts.max(axis=1).sum()) if errors else 0
        if errors and saved >= TELLTALE * errors:
            told = "; ".join(f"{value} is mostly {label}" for value, label in counts.idxmax(axis=1).head(4).items())
            yield Finding("short_cut", detail=f"the {column} of the file tells the class without a look at it: {told}")


def _misfit_masks(samples: pd.DataFrame, records: np.ndarray, settings: DatasetSettings) -> Iterator[Finding]:
    if "mask" not in samples:
        return
    some_have = (samples["mask"][samples["defective"]] != "").mean() > 0.5
    for row, record in zip(samples.to_dict("records"), records, strict=True):
        reason = ""
        if not row["mask"]:
            reason = "a defective image without a mask" if row["defective"] and some_have else ""
        elif not row["defective"]:
            reason = "a mask on a sound image"
        else:
            try:
                mask = upright_pixels(settings.root / row["mask"], MAX_PIXELS, None)
                height, width = mask.shape[:2]
                if (width, height) != (record["width"], record["height"]):
                    reason = f"the mask is of {width} x {height} px, the image is not"
                elif not mask.any():
                    reason = "the mask is empty"
            except UnreadableImageError as error:
                reason = f"the mask cannot be read: {error}"
        if reason:
            yield Finding("mask_misfit", row["path"], detail=reason)


def _thin_classes(samples: pd.DataFrame) -> Iterator[Finding]:
    """Classes of few images and lopsided sets, within each category where there are categories."""
    for category, of_category in samples.groupby(samples.get("category", pd.Series("", samples.index))):
        place = f"category {category}: " if category else ""
        counts = of_category["label"].value_counts()
        for label, count in counts[counts < THIN].items():
            yield Finding("few_images", label=str(label), detail=f"{place}{count} images")
        if len(counts) > 1 and counts.iloc[0] >= LOPSIDED * counts.iloc[-1]:
            ratio = counts.iloc[0] / counts.iloc[-1]
            detail = f"{place}{ratio:.0f} times fewer than {counts.index[0]} ({counts.iloc[-1]} and {counts.iloc[0]})"
            yield Finding("imbalance", label=str(counts.index[-1]), detail=detail)
