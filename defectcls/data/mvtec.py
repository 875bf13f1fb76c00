"""MVTec AD, Bergmann et al. 2019, https://www.mvtec.com/company/research/datasets/mvtec-ad, CC BY-NC-SA 4.0.

    root/
        bottle/                                     any of the fifteen categories
            train/good/000.png …                    sound parts only
            test/good/000.png …
            test/broken_large/000.png …             one folder a defect type
            ground_truth/broken_large/000_mask.png  the defect's pixels; a category may come without masks

The published split is made for anomaly detection: it holds no defect in training.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pandas as pd

from defectcls.data.samples import folded, folders_in, images_expected_in, images_in, sample_table
from defectcls.errors import UserError, did_you_mean

CATEGORIES = (
    *("bottle", "cable", "capsule", "carpet", "grid", "hazelnut", "leather", "metal_nut"),
    *("pill", "screw", "tile", "toothbrush", "transistor", "wood", "zipper"),
)
LAYOUT = "<category>/{train,test}/<good or defect type>/<image>"


def list_samples(root: Path, categories: Literal["all"] | list[str]) -> pd.DataFrame:
    """The sample table (see `defectcls.data.samples`) of the chosen categories; `all` are those that `root` holds.

    Raises:
        UserError: an unknown category, one that `root` lacks, an image out of place, or a mask without its image.
    """
    present = [name for name in folders_in(root) if name in CATEGORIES]
    for category in present if categories == "all" else categories:
        if category not in CATEGORIES:
            hint = did_you_mean(category, CATEGORIES)
            raise UserError(f"MVTec AD has the categories {', '.join(CATEGORIES)}; not '{category}'{hint}")
        if category not in present:
            raise UserError(f"category '{category}' is not in {root}, which holds: {', '.join(present) or 'none'}")
    chosen = present if categories == "all" else list(dict.fromkeys(categories))
    if not chosen:
        raise UserError(f"no category of MVTec AD to read from {root}, which holds: {', '.join(present) or 'none'}")
    folders = [f"{category}/{split}" for category in chosen for split in ("train", "test")]
    images, left_out = images_expected_in(root, folders, LAYOUT)
    return sample_table((row for category in chosen for row in category_rows(root, category, images)), left_out)


def category_rows(root: Path, category: str, images: dict[str, list[str]]) -> Iterator[dict]:
    """Rows of the sample table of one category, whose images are given by folder."""
    masks = set(images_in(root, f"{category}/ground_truth"))
    without_image = set(masks)
    for split in ("train", "test"):
        for path in images[f"{category}/{split}"]:
            folders = Path(path).parent.parts
            if len(folders) != 3:
                raise UserError(f"'{path}' in {root} is not where MVTec AD keeps an image: expected {LAYOUT}")
            defect_type = folders[-1]
            mask = f"{category}/ground_truth/{defect_type}/{Path(path).stem}_mask.png"
            without_image.discard(mask)
            yield {
                "path": path,
                "defective": folded(defect_type) != "good",
                "defect_type": defect_type,
                "category": category,
                "split": split,
                "mask": mask if mask in masks else "",
            }
    if without_image:
        first, count = min(without_image), len(without_image)
        raise UserError(f"mask '{first}' belongs to no image ({count} such in {root / category}): are images missing?")
