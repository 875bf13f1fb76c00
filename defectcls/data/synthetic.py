"""Photos of surfaces with and without defects, drawn from a seed on first use: a dataset that is always at hand."""

import hashlib
import inspect
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
from PIL import Image
from pydantic import Field

from defectcls.data.datamodule import DefectDataModule
from defectcls.data.surfaces import SURFACES, Scene, photograph
from defectcls.errors import UserError
from defectcls.files import locked, written_whole
from defectcls.tables import SOUND

FORMAT_VERSION = 2  # raise it when the same knobs come to give other files: the folders of old ones are then left alone
MARGIN = 6  # pixels around a crop that are no other crop's: a twin's shift and the blur of the lens stay within
JPEG_QUALITY, TWIN_QUALITY = 95, 60  # of an industrial camera, and of a picture that was sent through a messenger

Crop = tuple[np.ndarray, np.ndarray, str, float]  # pixels, mask, defect type and severity
Share = Annotated[float, Field(ge=0, le=1)]


class Synthetic(DefectDataModule):
    """Photos of concrete and brushed metal, sound or with one of four defects, and their masks.

        root/
            3f0c9a1b52/                     one folder for each combination of knobs, so that no two sets mix
                samples.csv                 the sample table, and the truth that an audit is scored against
                images/photo_0007_2.jpg     crop 2 of photo 7
                masks/photo_0007_2.png      0 or 255: the defect's pixels; only of images that show one

    Each photo is one canvas with its own light, texture and camera; its crops, which do not overlap, are the images,
    and it is their `group`. Columns beyond those of every sample table: `severity`, 0..1, from hardly visible to gross,
    0 where the surface is sound; `true_defect_type`, what `defect_type` was before wrong labels were mixed in;
    `twin_of`, the path of the image that this one nearly repeats, "" for an original.
    Units and defaults of the options are in conf/dataset/synthetic.yaml.
    """

    image_count: Annotated[int, Field(ge=1, le=1_000_000)]
    image_side: Annotated[int, Field(ge=64, le=2048)]  # below 64 px a slight crack is a third of a pixel wide
    crops_per_photo: Annotated[int, Field(ge=1, le=64)]
    defect_share: Share
    difficulty: Share
    near_duplicates: Annotated[float, Field(ge=0, le=0.5)]  # each twin has an original of its own
    wrong_labels: Share
    data_seed: Annotated[int, Field(ge=0, lt=2**32)]
    draw: bool

    def list_samples(self) -> pd.DataFrame:
        """See `DefectDataModule.list_samples`. Draws the images on first use, 200 of 128 px a second.

        Raises:
            UserError: the images are not there and are not to be drawn.
        """
        folder = self.root / self.folder
        index = folder / "samples.csv"  # written last: without it, what a killed run left is drawn over
        if not index.exists():
            if not self.draw:
                raise UserError(f"{folder} does not exist: dataset=synthetic dataset.root={self.root} draws the images")
            for part in ("images", "masks"):
                (folder / part).mkdir(parents=True, exist_ok=True)
            with locked(folder / "lock", f"another job draws images into {folder}"):
                photos: Any = () if index.exists() else self.plan().groupby("photo")
                rows: list[dict] = []
                for number, images in photos:
                    crops = self.photo(number, images.loc[~images["twin"], "defective"].tolist())
                    rows += [self._save(folder, crops[row.crop], row) for row in images.itertuples()]
                if rows:
                    with written_whole(index) as unfinished:
                        pd.DataFrame(rows).to_csv(unfinished, index=False)
        samples = pd.read_csv(index, keep_default_na=False)
        for column in ("path", "mask", "twin_of"):
            samples[column] = [f"{self.folder}/{file}" if file else "" for file in samples[column]]
        return samples

    @property
    def folder(self) -> str:
        """Ten hexadecimal digits that change with every knob."""
        knobs = {name: float(getattr(self, name)) for name in inspect.get_annotations(Synthetic) if name != "draw"}
        return hashlib.sha256(json.dumps([FORMAT_VERSION, knobs]).encode()).hexdigest()[:10]

    def plan(self) -> pd.DataFrame:
        """One row an image: its `photo`, its `crop`, if that is `defective`, if this is a `twin` of it, if `wrong`."""
        rng = np.random.default_rng([self.data_seed])
        twins = round(self.near_duplicates * self.image_count)
        originals = self.image_count - twins
        photo, crop = np.divmod(np.arange(originals), self.crops_per_photo)
        proneness = rng.random(originals)[photo] + rng.random(originals)  # some photos have many defects, some none
        defective = proneness.argsort().argsort() >= originals - round(self.defect_share * originals)
        plan = pd.DataFrame({"photo": photo, "crop": crop, "defective": defective, "twin": False})
        repeated = plan.iloc[rng.choice(originals, twins, replace=False)]
        plan = pd.concat([plan, repeated.assign(twin=True)], ignore_index=True)
        wrong = rng.choice(self.image_count, round(self.wrong_labels * self.image_count), replace=False)
        return plan.assign(wrong=plan.index.isin(wrong))

    def photo(self, number: int, defective: list[bool]) -> list[Crop]:
        """Of each crop of a photo: uint8 (side, side, 3) with MARGIN on every side, and what it shows where.

        Those marked `defective` have a defect, and all else is independent of these marks.
        """
        rng = np.random.default_rng([self.data_seed, number + 1])
        draw, defects = list(SURFACES.values())[number % len(SURFACES)]
        columns, side = math.ceil(math.sqrt(self.crops_per_photo)), self.image_side + 2 * MARGIN
        px = self.image_side / 128 * rng.uniform(0.85, 1.25)  # the camera is not always equally near
        shape = math.ceil(self.crops_per_photo / columns) * side, columns * side
        scene = Scene(shape, px, rng.uniform(0, np.pi), self.difficulty)
        albedo, relief = draw(rng, scene)
        places, shown = [], []
        for crop, has_defect in enumerate(defective):
            top, left = crop // columns * side, crop % columns * side
            places.append(np.s_[top : top + side, left : left + side])
            shown.append((np.zeros((side, side), dtype=bool), SOUND, 0.0))
            if has_defect:
                own = np.random.default_rng([self.data_seed, number + 1, crop + 1])
                defect_type = str(own.choice(list(defects)))
                severity = round(1 - 0.85 * own.random() ** 2, 3)  # most are plain, one in eight is below 0.35
                contrast = (0.25 + 0.75 * severity) * (1.15 - 0.75 * self.difficulty)
                size = px * (0.75 + 0.75 * severity) * (1.1 - 0.4 * self.difficulty)  # slight defects are small too
                spot = replace(scene, shape=(side, side), contrast=contrast, size=size)
                factor, depth, mask = defects[defect_type](own, spot)
                albedo[places[crop]] *= factor
                relief[places[crop]] += depth
                shown[crop] = mask, defect_type, severity
        pixels = photograph(rng, scene, albedo, relief)
        return [(pixels[place], *what) for place, what in zip(places, shown, strict=True)]

    def _save(self, folder: Path, crop: Crop, row: Any) -> dict:
        """Write the image of a row of the plan, and its mask if it shows a defect; returns its row of the index."""
        pixels, mask, truth, severity = crop
        rng = np.random.default_rng([self.data_seed, row.photo + 1, row.crop + 1, 1])
        photo, surface = f"photo_{row.photo:04d}", list(SURFACES)[row.photo % len(SURFACES)]
        name, quality, gain, (down, right) = f"{photo}_{row.crop}", JPEG_QUALITY, 1.0, (0, 0)
        twin_of = f"images/{name}.jpg" if row.twin else ""
        if row.twin:
            name, way = f"{name}_twin", rng.integers(3)
            quality = TWIN_QUALITY if way == 0 else quality
            gain = rng.uniform(1.05, 1.15) if way == 1 else gain
            down, right = rng.choice([-1, 1], 2) * rng.integers(1, 4, 2) if way == 2 else (0, 0)
        rows, columns = (slice(MARGIN + shift, MARGIN + shift + self.image_side) for shift in (down, right))
        pixels, mask = np.minimum(gain * pixels[rows, columns], 255).astype(np.uint8), mask[rows, columns]
        Image.fromarray(pixels).save(folder / f"images/{name}.jpg", quality=quality)
        if mask.any():
            Image.fromarray(mask.astype(np.uint8) * 255).save(folder / f"masks/{name}.png")
        else:
            truth, severity = SOUND, 0.0
        label = truth
        if row.wrong:
            label = SOUND if mask.any() else str(rng.choice(list(SURFACES[surface][1])))
        return {
            "path": f"images/{name}.jpg",
            "defective": label != SOUND,
            "defect_type": label,
            "category": surface,
            "group": name if row.twin else photo,  # a copy's origin is unknown: that is what makes it a leak
            "mask": f"masks/{name}.png" if mask.any() else "",
            **{"severity": severity, "true_defect_type": truth, "twin_of": twin_of},
        }
