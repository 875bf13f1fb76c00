"""The sample table: one row an image, listed by each dataset without decoding a pixel.

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
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Set
from itertools import filterfalse
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
from pydantic import BeforeValidator

from defectcls.errors import UserError
from defectcls.tables import DEFECTIVE, OPTIONAL_COLUMNS, SOUND


def _as_names(given: Any) -> list[str]:
    return [str(name) for name in (given if isinstance(given, list | tuple) else [given])]


Names = Annotated[list[str], BeforeValidator(_as_names)]  # of classes: one, or each in a list, as text: YAML knows 0

# Of the kinds that Pillow opens those of photos; .heic and .heif it does not open, and they are named.
IMAGE_SUFFIXES = {
    *(".avif", ".bmp", ".dib", ".gif", ".heic", ".heif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".mpo"),
    *(".pbm", ".pcx", ".pfm", ".pgm", ".png", ".pnm", ".ppm", ".qoi", ".tga", ".tif", ".tiff", ".webp"),
}
# What operating systems, file servers and tools leave behind in a folder, apart from names with a dot.
LEFT_BEHIND = {
    *("$recycle.bin", "system volume information", "thumbs.db", "desktop.ini", "__macosx", "lost+found"),
    *("@eadir", "#recycle", "#snapshot", "@recycle", "__pycache__"),
}


def is_left_behind(name: str) -> bool:
    """Whether a file or folder of this name is hidden, or no person's: neither listed nor counted."""
    return name.startswith(".") or name.casefold() in LEFT_BEHIND


def folders_in(folder: Path) -> list[str]:
    """Names of the visible folders in `folder`, sorted."""
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not is_left_behind(entry.name))


def images_in(
    root: Path,
    folder: str,
    left_out: Counter[str] | None = None,
    below: bool = True,
    suffixes: Set[str] = IMAGE_SUFFIXES,
) -> list[str]:
    """Image files under `root/folder`, relative to `root`, with forward slashes, sorted; each linked folder once.

    Args:
        left_out: to which the visible files of other kinds are added by suffix, since a million are not walked twice.
        below: at any depth; False: those in the folder itself.
        suffixes: of the files that are sought.

    Raises:
        UserError: a folder cannot be read.
    """
    found, others, seen = [], Counter[str]() if left_out is None else left_out, set()
    for directory, folders, files in os.walk(root / folder, onerror=_refuse_unreadable, followlinks=True):
        real = os.path.realpath(directory)  # so that no link leads round and round
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if below and not is_left_behind(name))
        inside = Path(directory).relative_to(root).as_posix()
        prefix = "" if inside == "." else f"{inside}/"
        for name in filterfalse(is_left_behind, files):
            suffix = os.path.splitext(name)[1].lower()  # noqa: PTH122  a path object for each of a million takes 10 s
            if suffix in suffixes:
                found.append(prefix + name)
            else:
                others[writable(suffix) or "without suffix"] += 1
    return sorted(found)


def _refuse_unreadable(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):  # gone since, or never there: the caller's to say
        raise UserError(f"the folder {error.filename} cannot be read: {error.strerror}") from None


def samples_in(root: Path, folders: Mapping[str, Mapping[str, Any]], layout: str) -> pd.DataFrame:
    """A row for each image in the folders that a dataset's layout must have, with the columns of its folder.

    How many files of other kinds lie there, by suffix, is in `attrs["left_out"]`.

    Raises:
        UserError: a folder is missing or holds no image, or the name of a file is no UTF-8.
    """
    tables, left_out = [], Counter[str]()
    for folder, columns in folders.items():
        images = images_in(root, folder, left_out)
        if not images:
            raise UserError(f"'{folder}' in {root} {what_is_there(root / folder)}: expected {layout}")
        if odd := [name for name in images if writable(name) != name]:
            raise UserError(f"the file name '{writable(odd[0])}' in {root} is no UTF-8: rename it")
        tables.append(pd.DataFrame({"path": images, **columns}))
    samples = pd.concat(tables, ignore_index=True)
    samples.attrs["left_out"] = left_out
    return samples


def what_is_there(folder: Path) -> str:
    """Of a folder without images: that it is missing, or of which kinds its files are."""
    if not folder.is_dir():
        return "is missing"
    left_out = Counter[str]()
    images_in(folder, "", left_out)
    return f"holds no image, only {counted(left_out)}" if left_out else "holds no image"


def counted(left_out: Mapping[str, int]) -> str:
    """`40 .txt, 1 .csv`, the eight most frequent."""
    return ", ".join(f"{count} {suffix}" for suffix, count in Counter(left_out).most_common(8))


def writable(name: str) -> str:
    """The name as text; bytes in it that are no UTF-8, as file systems allow, as \\udc.. of Python."""
    return name.encode("utf-8", "backslashreplace").decode()


def in_order(rows: pd.DataFrame) -> pd.DataFrame:
    """A sample table in the order of paths, so that no result depends on how a disk lists its files."""
    optional = [column for column in OPTIONAL_COLUMNS if column in rows]
    others = rows.columns.difference(["path", "defective", *optional], sort=False)
    samples = rows[["path", "defective", *optional, *others]].sort_values("path", ignore_index=True)
    samples[optional] = samples[optional].astype(object).fillna("").astype(str)
    return samples


def refuse_spellings(names: pd.Series) -> None:
    """Raise a UserError where some names of one kind differ in spelling alone."""
    for _, alike in names.value_counts().sort_index().groupby(folded):
        if len(alike) > 1:
            told = " and ".join(f"'{name}' ({count} images)" for name, count in alike.items())
            raise UserError(f"the names {told} differ in spelling alone: rename them")


def folded(name: str) -> str:
    """What names have in common that differ in spelling alone: in case and space."""
    return " ".join(unicodedata.normalize("NFC", name).casefold().split())


def group_consecutive(samples: pd.DataFrame, count: int) -> pd.DataFrame:
    """The table with each `count` files in a row of a folder as one group, where they have none of their own.

    For photos whose names follow the time or the place of capture: neighbours show the same wall, part or light. In
    natural order, since 10.png was taken after 2.png.
    """
    folder = samples["path"].str.rpartition("/")[0]
    keys = [[int(one) if at % 2 else one for at, one in enumerate(re.split(r"(\d+)", p))] for p in samples["path"]]
    in_turn = folder.iloc[sorted(range(len(keys)), key=keys.__getitem__)]
    block = folder + "/" + (in_turn.groupby(in_turn).cumcount() // count).astype(str)
    own = samples["group"] if "group" in samples else pd.Series("", samples.index)
    return samples.assign(group=own.where(own != "", block))


def label_samples(samples: pd.DataFrame, target: Literal["defect", "defect_type"]) -> pd.DataFrame:
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
