"""Photos of concrete with and without defects, drawn from a seed on first use: a dataset that is always at hand.

What is drawn is an albedo (relative, about 1) and a relief (height in pixels), which slanting light turns into shading;
a defect multiplies the one and adds to the other. Lengths are in units of `px`, the size of 1/128 of an image's side.
"""

import hashlib
import inspect
import json
from typing import Annotated, Any

import numpy as np
import pandas as pd
from PIL import Image
from pydantic import Field
from scipy import fft
from scipy.ndimage import gaussian_filter

from defectcls.data.datamodule import DefectDataModule
from defectcls.errors import UserError
from defectcls.files import locked, written_whole
from defectcls.tables import SOUND

FORMAT_VERSION = 3  # raise it when the same knobs come to give other files: the folders of old ones are then left alone
MARGIN = 6  # pixels around an image: a twin's shift and the blur of the lens stay within

Random = np.random.Generator
Defect = tuple[np.ndarray, np.ndarray, np.ndarray]  # factor on the albedo, addition to the relief, where it is; square
Share = Annotated[float, Field(ge=0, le=1)]


class Synthetic(DefectDataModule):
    """Photos of concrete, sound, cracked or spalled, and the defects' masks.

        root/
            3f0c9a1b52/                     one folder for each combination of knobs, so that no two sets mix
                samples.csv                 the sample table, and the truth that an audit is scored against
                images/photo_0007_2.jpg     crop 2 of photo 7
                masks/photo_0007_2.png      0 or 255: the defect's pixels; only of images that show one

    The images are crops of photos; those of one photo share its light, camera and mix, and it is their `group`.
    Columns beyond those of every sample table: `severity`, 0..1, from hardly visible to gross, 0 where the surface is
    sound; `true_defect_type`, `defect_type` before wrong labels were mixed in; `twin_of`, the path of the image that
    this one nearly repeats, "" for an original.
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
        """See `DefectDataModule.list_samples`. On first use it may `draw` the images, 150 of 128 px a second."""
        folder = self.root / self.folder
        index = folder / "samples.csv"  # written last: without it, what a killed run left is drawn over
        if not index.exists():
            if not self.draw:
                raise UserError(f"{folder} does not exist: dataset=synthetic dataset.root={self.root} draws the images")
            for part in ("images", "masks"):
                (folder / part).mkdir(parents=True, exist_ok=True)
            with locked(folder / "lock", f"another job draws images into {folder}"):
                if not index.exists():
                    rows = [self._save(row) for row in self.plan().itertuples()]
                    with written_whole(index) as unfinished:
                        pd.DataFrame(rows).to_csv(unfinished, index=False)
        return pd.read_csv(index, keep_default_na=False)

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

    def image(self, photo: int, crop: int, defective: bool) -> tuple[np.ndarray, np.ndarray, str, float]:
        """One crop of a photo, with MARGIN on every side: pixels, mask, defect type and severity."""
        camera = np.random.default_rng([self.data_seed, photo + 1])
        own, flaw = np.random.default_rng([self.data_seed, photo + 1, crop + 1]).spawn(2)  # no defect changes its scene
        side, px = self.image_side + 2 * MARGIN, self.image_side / 128 * camera.uniform(0.85, 1.25)
        holes = np.clip(3 * (noise(own, side, 3 * px) - 3 + 0.5 * self.difficulty), 0, 1)  # 0.1 % of the area .. 0.6 %
        albedo = 1 + camera.uniform(0.03, 0.07) * noise(own, side, px, camera.uniform(1.2, 1.7)) - 0.4 * holes
        relief = 0.08 * px * noise(own, side, 1.6 * px) + 0.35 * px * noise(own, side, px, 1.5) - 1.2 * px * holes
        relief += own.uniform(0, 0.6 + 0.6 * self.difficulty) * px * line(own, side, 3 * px, reach=99)  # of a formwork
        mask, defect_type, severity = np.zeros((side, side), dtype=bool), SOUND, 0.0
        if defective:
            defect_type = str(flaw.choice(list(DEFECTS)))
            severity = round(1 - 0.85 * flaw.random() ** 2, 3)  # most are plain, one in eight is below 0.35
            contrast = (0.25 + 0.75 * severity) * (1.15 - 0.75 * self.difficulty)
            size = px * (0.75 + 0.75 * severity) * (1.1 - 0.4 * self.difficulty)  # slight defects are small too
            factor, height, mask = DEFECTS[defect_type](flaw, side, size, contrast)
            albedo, relief = albedo * factor, relief + height
        return photograph(camera, own, albedo, relief, px), mask, defect_type, severity

    def _save(self, row: Any) -> dict[str, Any]:
        """Draw and write the image of a row of the plan, and its mask if it shows a defect; its row of the index."""
        pixels, mask, truth, severity = self.image(row.photo, row.crop, row.defective)
        rng = np.random.default_rng([self.data_seed, row.photo + 1, row.crop + 1, 1])
        way = rng.integers(3) if row.twin else None
        quality = 60 if way == 0 else 95  # of a picture that was sent through a messenger; of an industrial camera
        gain = rng.uniform(1.05, 1.15) if way == 1 else 1.0
        shift = rng.choice([-1, 1], 2) * rng.integers(1, 4, 2) if way == 2 else (0, 0)
        inner = tuple(slice(MARGIN + by, MARGIN + by + self.image_side) for by in shift)
        photo = f"photo_{row.photo:04d}"
        original = f"{photo}_{row.crop}"
        name = f"{original}_twin" if row.twin else original
        image, mask_file = f"{self.folder}/images/{name}.jpg", f"{self.folder}/masks/{name}.png"
        shown = np.minimum(gain * pixels[inner], 255).astype(np.uint8)
        Image.fromarray(shown).save(self.root / image, quality=quality)
        if row.defective:
            Image.fromarray(mask[inner].astype(np.uint8) * 255).save(self.root / mask_file)
        other = SOUND if row.defective else str(rng.choice(list(DEFECTS)))
        label = other if row.wrong else truth
        return {
            "path": image,
            "defective": label != SOUND,
            "defect_type": label,
            "group": name if row.twin else photo,  # a copy's origin is unknown: that is what makes it a leak
            "mask": mask_file if row.defective else "",
            "severity": severity,
            "true_defect_type": truth,
            "twin_of": f"{self.folder}/images/{original}.jpg" if row.twin else "",
        }


def crack(rng: Random, side: int, size: float, contrast: float) -> Defect:
    """A dark jagged line that narrows to its ends."""
    width, reach = rng.uniform(1.5, 2.1) * size, rng.uniform(0.3, 0.7)
    inside = contrast * line(rng, side, width, reach, jagged=5 * size)
    return 1 - 0.85 * inside, -0.6 * size * inside, inside > 0.4 * inside.max()


def spalling(rng: Random, side: int, size: float, contrast: float) -> Defect:
    """A flake broken away, a hollow with a ragged rim and the aggregate laid bare in it."""
    radius = rng.uniform(14, 24) * size
    ragged = noise(rng, side, 0.7 * radius) + 0.5 * noise(rng, side, 0.25 * radius)
    hollow = 1 - np.hypot(*from_the_middle(rng, side)) / radius + 0.2 * ragged  # 1 in the middle, 0 on the rim
    inside = contrast * np.clip(5 * hollow, 0, 1)
    stones = noise(rng, side, 2 * size)
    return 1 + inside * (0.15 * stones - 0.2), size * inside * (0.5 * stones - rng.uniform(1.6, 2.8)), hollow > 0


DEFECTS = {"crack": crack, "spalling": spalling}


def photograph(camera: Random, own: Random, albedo: np.ndarray, relief: np.ndarray, px: float) -> np.ndarray:
    """Slanting light, the lens, the sensor."""
    lamp, slant = camera.uniform(0, 2 * np.pi), camera.uniform(0.45, 0.75)
    down, right = np.gradient(relief)
    light = 1 + slant * np.tanh(right * np.cos(lamp) + down * np.sin(lamp))
    grey = camera.uniform(120, 185) * gaussian_filter(albedo * light, camera.uniform(0.35, 0.7) * px)
    grey += camera.uniform(0.06, 0.16) * np.sqrt(np.maximum(grey, 0)) * own.standard_normal(grey.shape)
    tint = 1 + camera.uniform(-0.03, 0.03) * np.array([1, 0.1, -1])
    return np.clip(grey[..., None] * tint + 0.5, 0, 255).astype(np.uint8)


def line(rng: Random, side: int, width: float, reach: float, jagged: float = 0) -> np.ndarray:
    """Coverage 0..1 of a line, `width` pixels wide, that thins out `reach` sides to its ends and strays by `jagged`."""
    (y, x), angle = from_the_middle(rng, side), rng.uniform(0, np.pi)
    along, away = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    away += jagged * noise(rng, side, 1, 2)
    widths = width * np.sqrt(np.clip(1 - (along / reach / side) ** 2, 0, 1))
    return np.clip(widths / 2 + 0.5 - np.abs(away), 0, np.minimum(widths, 1))


def from_the_middle(rng: Random, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels down and to the right of a point that is not near the rim, (side, 1) and (side,)."""
    return np.arange(side)[:, None] - rng.uniform(0.32, 0.68) * side, np.arange(side) - rng.uniform(0.32, 0.68) * side


def noise(rng: Random, side: int, size: float, roughness: float = 0) -> np.ndarray:
    """Noise of unit variance in grains of `size` pixels, and larger ones as frequency ** -roughness has them."""
    frequency = np.hypot(fft.fftfreq(side)[:, None], fft.rfftfreq(side))
    weight = (frequency + 0.5 / side) ** -roughness * np.exp(-((np.pi * size * frequency) ** 2) / 2)
    values = fft.irfft2(fft.rfft2(rng.standard_normal((side, side))) * weight, s=(side, side))
    return (values - values.mean()) / values.std()
