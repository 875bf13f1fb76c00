"""The sample table: one row an image, made by each dataset's `list_samples` without decoding a pixel.

| column        | meaning                                                             |          |
| ------------- | ------------------------------------------------------------------- | -------- |
| `path`        | image file, relative to the dataset's root, with forward slashes    | required |
| `defective`   | bool: whether a human inspector would reject the part               | required |
| `defect_type` | the finest class known; sound images carry their sound class        | optional |
| `category`    | bottle, screw … : which product or surface                          | optional |
| `group`       | photo, part, module, video: what must not straddle a split          | optional |
| `split`       | train, val or test, where the dataset publishes one                 | optional |
| `mask`        | file with the defect's pixels, relative to the root; "" where none  | optional |

`target` turns the table into a classification problem by adding `label`.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import pandas as pd

from defectcls.errors import UserError

Target = Literal["defect", "defect_type"]

SOUND, DEFECTIVE = "sound", "defective"
IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
OPTIONAL_COLUMNS = ("defect_type", "category", "group", "split", "mask")
# How people name the folders and cells of a split.
SPLIT_NAMES = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def folders_in(folder: Path) -> list[str]:
    """Names of the visible folders in `folder`, sorted."""
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith("."))


def images_in(root: Path, folder: str) -> list[str]:
    """Image files anywhere under `root/folder`, relative to `root`, with forward slashes, sorted."""
    found = []
    for directory, folders, files in os.walk(root / folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = Path(directory).relative_to(root).as_posix()
        prefix = "" if inside == "." else f"{inside}/"
        # Strings, since a path object for each of a million files takes ten seconds.
        names = (f for f in files if os.path.splitext(f)[1].lower() in IMAGE_SUFFIXES)  # noqa: PTH122
        found += [prefix + name for name in names if not name.startswith(".")]
    return sorted(found)


def images_expected_in(root: Path, folder: str, layout: str) -> list[str]:
    """`images_in` a folder that the dataset's layout must have.

    Raises:
        UserError: the folder is missing or holds no image.
    """
    if not (root / folder).is_dir():
        raise UserError(f"'{folder}' is missing in {root}: expected {layout}")
    images = images_in(root, folder)
    if not images:
        raise UserError(f"'{folder}' in {root} holds no image: expected {layout}")
    return images


def sample_table(rows: Iterable[dict] | pd.DataFrame) -> pd.DataFrame:
    """Rows as a sample table in the order of their paths, so that no result depends on how a disk lists its files."""
    samples = rows.copy() if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows))
    if samples.empty:
        return pd.DataFrame({"path": pd.Series(dtype=str), "defective": pd.Series(dtype=bool)})
    for column in samples.columns.intersection(list(OPTIONAL_COLUMNS)):
        samples[column] = samples[column].fillna("").astype(str)
    return samples.sort_values("path", ignore_index=True)


def group_consecutive(samples: pd.DataFrame, count: int) -> pd.DataFrame:
    """The table with each `count` files in a row of a folder as one group, where they have none of their own.

    For photos whose names follow the time or the place of capture: neighbours show the same wall, part or light.
    """
    folder = samples["path"].str.rpartition("/")[0]
    block = folder + "/" + (samples.groupby(folder).cumcount() // count).astype(str)
    own = samples["group"] if "group" in samples else pd.Series("", samples.index)
    return samples.assign(group=own.where(own != "", block))


def label_samples(samples: pd.DataFrame, target: Target) -> pd.DataFrame:
    """The table with its `label` column: sound or defective, or the defect type.

    Raises:
        UserError: the dataset names no defect types.
    """
    if target == "defect":
        return samples.assign(label=samples["defective"].map({False: SOUND, True: DEFECTIVE}))
    if "defect_type" not in samples:
        raise UserError("this dataset names no defect types: use target=defect")
    return samples.assign(label=samples["defect_type"])


def classes_of(samples: pd.DataFrame) -> dict[str, bool]:
    """Class name -> whether it is defective, in logit order: sound classes first, so that of two, class 1 is defective.

    Raises:
        UserError: a class is called sound in some rows and defective in others.
    """
    classes = samples[["defective", "label"]].drop_duplicates().sort_values(["defective", "label"])
    twice = classes["label"][classes["label"].duplicated()]
    if len(twice):
        raise UserError(f"class '{twice.iloc[0]}' is called sound for some images and defective for others")
    return dict(zip(classes["label"], classes["defective"].astype(bool), strict=True))
