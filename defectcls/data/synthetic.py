"""Photos of three surfaces with and without defects, drawn from a seed on first use: a dataset that is always at hand.

    root/
        3f0c9a1b52/                     one folder for each combination of knobs, so that no two sets mix
            samples.csv                 the sample table, and the truth that an audit is scored against
            images/photo_0007_2.jpg     crop 2 of photo 7
            masks/photo_0007_2.png      0 or 255: the defect's pixels; only of images that show one

Each photo is one canvas of concrete, brushed metal or casting with its own light, texture and camera; its crops, which
do not overlap, are the images, and it is their `group`. Columns beyond those of every sample table:

| column             | meaning                                                                |
| ------------------ | ---------------------------------------------------------------------- |
| `severity`         | 0..1: from hardly visible to gross; 0 where the surface is sound       |
| `true_defect_type` | what `defect_type` was before wrong labels were mixed in               |
| `twin_of`          | path of the image that this one nearly repeats; "" for an original     |
"""

import hashlib
import json
import math
import shutil
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from defectcls.data.datamodule import DefectDataModule
from defectcls.data.surfaces import SURFACES, Scene, Spot, photograph
from defectcls.errors import UserError
from defectcls.tables import SOUND

FORMAT_VERSION = 1  # raise it when the same knobs come to give other files: the folders of old ones are then left alone
MARGIN = 6  # pixels around a crop that are no other crop's: a twin's shift and the blur of the lens stay within
FURTHEST_SHIFT = 3  # pixels
JPEG_QUALITY, TWIN_QUALITY = 95, 60  # of an industrial camera, and of a picture that was sent through a messenger
LIMITS = {
    "image_count": (1, 1_000_000),
    "image_side": (64, 2048),  # below 64 px a slight crack is a third of a pixel wide
    "crops_per_photo": (1, 64),
    "defect_share": (0, 1),
    "difficulty": (0, 1),
    "near_duplicates": (0, 0.5),  # each twin has an original of its own
    "wrong_labels": (0, 1),
    "data_seed": (0, 2**32 - 1),
}


@dataclass(frozen=True)
class Knobs:
    """What decides the files; conf/dataset/synthetic.yaml gives units and defaults."""

    image_count: int
    image_side: int
    crops_per_photo: int
    defect_share: float
    difficulty: float
    near_duplicates: float
    wrong_labels: float
    data_seed: int

    def __post_init__(self) -> None:
        for name, (low, high) in LIMITS.items():
            if not low <= getattr(self, name) <= high:
                raise UserError(f"dataset.{name}={getattr(self, name)} is not from {low} to {high}")

    @property
    def folder(self) -> str:
        """Ten hexadecimal digits that change with every knob."""
        plain = {name: float(value) for name, value in asdict(self).items()}
        return hashlib.sha256(json.dumps([FORMAT_VERSION, plain]).encode()).hexdigest()[:10]


@dataclass(frozen=True)
class Photo:
    """Image uint8 (height, width, 3), mask bool (height, width); for each crop its top left pixel and its defect."""

    image: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    corners: list[tuple[int, int]]
    defect_types: list[str]
    severities: list[float]


class Synthetic(DefectDataModule):
    """Drawn photos.

    Args:
        draw: the images where they are not there yet; False: an error.
    """

    image_count: int
    image_side: int
    crops_per_photo: int
    defect_share: float
    difficulty: float
    near_duplicates: float
    wrong_labels: float
    data_seed: int
    draw: bool

    def list_samples(self) -> pd.DataFrame:
        """See `DefectDataModule.list_samples`. Draws the images on first use, 200 of 128 px a second.

        Raises:
            UserError: a knob is out of its range, or the images are not there and are not to be drawn.
        """
        knobs = Knobs(**{name: getattr(self, name) for name in LIMITS})
        index = self.root / knobs.folder / "samples.csv"
        if not index.exists() and not self.draw:
            raise UserError(
                f"{index.parent} does not exist: dataset=synthetic dataset.root={self.root} draws the images"
            )
        if not index.exists():
            draw_images(index.parent, knobs)
        samples = pd.read_csv(index, keep_default_na=False)
        for column in ("path", "mask", "twin_of"):
            samples[column] = [f"{knobs.folder}/{file}" if file else "" for file in samples[column]]
        return samples


def draw_images(folder: Path, knobs: Knobs) -> None:
    """Fills `folder` in one step: a killed run leaves a hidden folder beside it, and of two at once the first wins."""
    unfinished = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")
    try:
        for part in ("images", "masks"):
            (unfinished / part).mkdir(parents=True)
        photos, rows = plan_images(knobs).groupby("photo"), []
        for number in range(photos.ngroups):
            crops = photos.get_group(number)
            photo = draw_photo(knobs, number, crops.loc[~crops["twin"], "defective"].tolist())
            for crop, twin, wrong in zip(crops["crop"], crops["twin"], crops["wrong"], strict=True):
                rows.append(save_crop(unfinished, knobs, photo, number, crop, twin, wrong))
        pd.DataFrame(rows).to_csv(unfinished / "samples.csv", index=False)
        try:
            unfinished.rename(folder)
        except OSError:
            if not (folder / "samples.csv").exists():
                raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def plan_images(knobs: Knobs) -> pd.DataFrame:
    """One row an image: its `photo` and `crop`, if that is `defective`, if this is a `twin` of it, labelled `wrong`."""
    rng = np.random.default_rng([knobs.data_seed])
    twins = round(knobs.near_duplicates * knobs.image_count)
    originals = knobs.image_count - twins
    photo, crop = np.divmod(np.arange(originals), knobs.crops_per_photo)
    proneness = rng.random(originals)[photo] + rng.random(originals)  # some photos have many defects and some have none
    defective = proneness.argsort().argsort() >= originals - round(knobs.defect_share * originals)
    plan = pd.DataFrame({"photo": photo, "crop": crop, "defective": defective, "twin": False})
    repeated = plan.iloc[rng.choice(originals, twins, replace=False)]
    plan = pd.concat([plan, repeated.assign(twin=True)], ignore_index=True)
    wrong = rng.choice(knobs.image_count, round(knobs.wrong_labels * knobs.image_count), replace=False)
    return plan.assign(wrong=plan.index.isin(wrong))


def draw_photo(knobs: Knobs, number: int, defective: list[bool]) -> Photo:
    """Photo `number`, with a defect in each crop marked `defective` and all else in it independent of these marks."""
    rng = np.random.default_rng([knobs.data_seed, number + 1])
    surface = SURFACES[category_of(number)]
    columns = math.ceil(math.sqrt(knobs.crops_per_photo))
    rows = math.ceil(knobs.crops_per_photo / columns)
    side = knobs.image_side + 2 * MARGIN
    px = knobs.image_side / 128 * rng.uniform(0.85, 1.25)  # the camera is not always equally near
    scene = Scene((rows * side, columns * side), px, rng.uniform(0, np.pi), 0.25 + 0.75 * knobs.difficulty)
    skin, mask = surface.draw(rng, scene), np.zeros(scene.shape, dtype=bool)
    corners, defect_types, severities = [], [], []
    for crop, has_defect in enumerate(defective):
        top, left = crop // columns * side, crop % columns * side
        defect_type, severity = SOUND, 0.0
        if has_defect:
            own = np.random.default_rng([knobs.data_seed, number + 1, crop + 1])
            defect_type = str(own.choice(list(surface.defects)))
            severity = round(1 - 0.85 * own.random() ** 2, 3)  # most are plain, one in eight is below 0.35
            defect = surface.defects[defect_type](own, Spot(side, px, scene.grain, severity, knobs.difficulty))
            area = slice(top, top + side), slice(left, left + side)
            skin.albedo[area] *= defect.albedo
            skin.relief[area] += defect.relief
            mask[area] = defect.mask
        corners.append((top + MARGIN, left + MARGIN))
        defect_types.append(defect_type)
        severities.append(severity)
    return Photo(photograph(rng, scene, skin, surface.brightness), mask, corners, defect_types, severities)


def category_of(photo: int) -> str:
    """The surface that photo number `photo` shows: each in turn."""
    return list(SURFACES)[photo % len(SURFACES)]


def save_crop(folder: Path, knobs: Knobs, photo: Photo, number: int, crop: int, twin: bool, wrong: bool) -> dict:
    """Writes one image, and its mask if it shows a defect, below `folder`; returns its row of the index."""
    rng = np.random.default_rng([knobs.data_seed, number + 1, crop + 1, 1])
    original, category, (top, left) = f"photo_{number:04d}_{crop}", category_of(number), photo.corners[crop]
    name, quality, gain = f"{original}_twin" if twin else original, JPEG_QUALITY, 1.0
    if twin:
        match rng.integers(3):
            case 0:
                quality = TWIN_QUALITY
            case 1:
                gain = rng.uniform(1.05, 1.15)
            case _:
                down, right = rng.choice([-1, 1], 2) * rng.integers(1, FURTHEST_SHIFT + 1, 2)
                top, left = top + down, left + right
    area = slice(top, top + knobs.image_side), slice(left, left + knobs.image_side)
    pixels, mask = np.minimum(gain * photo.image[area], 255).astype(np.uint8), photo.mask[area]
    Image.fromarray(pixels).save(folder / "images" / f"{name}.jpg", quality=quality)
    if mask.any():
        Image.fromarray(mask.astype(np.uint8) * 255).save(folder / "masks" / f"{name}.png")
    truth = label = photo.defect_types[crop] if mask.any() else SOUND
    if wrong:
        label = SOUND if truth != SOUND else str(rng.choice(list(SURFACES[category].defects)))
    return {
        "path": f"images/{name}.jpg",
        "defective": label != SOUND,
        "defect_type": label,
        "category": category,
        "group": name if twin else f"photo_{number:04d}",  # a copy's origin is unknown: that is what makes it a leak
        "mask": f"masks/{name}.png" if mask.any() else "",
        "severity": photo.severities[crop] if mask.any() else 0.0,
        "true_defect_type": truth,
        "twin_of": f"images/{original}.jpg" if twin else "",
    }
