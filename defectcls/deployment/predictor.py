"""A trained model at work: from photos, on the disk or in memory, to decided predictions. Needs no torch."""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from defectcls.data.images import Depth, Photo, Resize, UnreadableImageError, framed, open_photo
from defectcls.data.threads import map_in_threads
from defectcls.errors import UserError
from defectcls.evaluation.decision import Decision
from defectcls.evaluation.drift import SEEN, Drift, Measured, beyond_from
from defectcls.evaluation.predictions import PROBABILITY

if TYPE_CHECKING:
    from defectcls.settings import Device, Precision

AHEAD = 128  # photos at most that are read before they are asked for
AHEAD_BYTES = 2**27  # of them decoded: 42 photos of 1024 px
WORDS = ("decision", "prediction", "cause")
# What a `defectcls.model.likeness.Likeness` says, and the types of it in an exported file.
COMPARED = {"unlike": "tensor(double)", "nearest_sound": "tensor(int64)", "nearest_defective": "tensor(int64)"}
COMPARED |= dict.fromkeys(SEEN, "tensor(double)")
HEAT_BATCH = 16  # photos at a time whose heat maps are computed: their gradients take memory


def load(checkpoint: str | Path, device: "Device" = "auto", precision: "Precision | None" = None) -> "Predictor":
    """A predictor that judges photos as the run's own evaluation does; of a checkpoint on the CPU with the same bits.

    Args:
        checkpoint: run folder, a .ckpt file, or an .onnx file that `export` wrote, for which torch is not imported.
        device: auto takes a GPU where there is one.
        precision: None computes as in training; a file computes in that of its export.

    Raises:
        UserError: no such file, one of another tool, a damaged one, or no GPU.
    """
    if Path(checkpoint).suffix.lower() == ".onnx":
        from defectcls.deployment.runtime import load_file

        return load_file(Path(checkpoint), device, precision)
    if Path(checkpoint).suffix.lower() == ".refused":
        raise UserError(f"{checkpoint} was refused by the gate of export, and decides otherwise than its checkpoint")
    from defectcls.deployment.checkpoints import load_checkpoint  # imports torch, which takes seconds

    return load_checkpoint(Path(checkpoint), device, precision)


class Read(NamedTuple):
    """A photo as the model sees it, or why not."""

    path: str  # as given; "" of a photo in memory
    error: str  # "" where there are pixels
    pixels: np.ndarray | None  # uint8 (3, height, width), RGB, of the model's size
    paged: bool  # there are further pages, which are not looked at
    file: tuple[float, int] = (0, 0)  # see `Opened`


@dataclass(eq=False)
class Predictor:
    """Made by `load`. Classes, size, calibration and decision are the model's.

    Args:
        classes: class name -> defective, in the order of the probabilities.
        image_size: height and width in pixels that every photo is brought to, by `resize`.
        resize: squash or pad.
        depth: what is white in photos of more than 8 bits.
        decision: how a score becomes accept, review or reject.
        about: model, dataset, digest (SHA-256 of the file, in hexadecimal), version (of defectcls), precision, seed,
            device (cpu or cuda …); of a file further what its metadata say.
        judge: pixels uint8 (n, 3, height, width), one or more -> a row each of `columns` without path, cause and error;
            what has no finite score is rejected. Of a model that is `measured` also COMPARED.
        heat: such pixels -> evidence for "defective", float32 (n, height, width), see `defectcls.model.heatmaps`.
        paged: how many photos there were of which only the first page was looked at.
        measured: what it was measured on; None where that is not known, as of an int8 file, or a model of one's own.
    """

    classes: dict[str, bool]
    image_size: tuple[int, int]
    resize: Resize
    depth: Depth
    decision: Decision
    about: dict[str, Any]
    judge: Callable[[np.ndarray], pd.DataFrame]
    heat: Callable[[np.ndarray], np.ndarray]
    paged: int = 0
    measured: Measured | None = None

    @property
    def columns(self) -> list[str]:
        """Those of `predict`."""
        likely = [PROBABILITY + name for name in self.classes]
        return ["path", "decision", "prediction", "score", *likely, "unlike", "cause", "error"]

    def predict(self, images: Photo | Iterable[Photo], batch_size: int = 64) -> pd.DataFrame:
        """A row for each photo, in order. The photos are not all in memory at once, the rows are: see `stream`.

        | column           | meaning                                                                               |
        | ---------------- | ------------------------------------------------------------------------------------- |
        | `path`           | as given; "" for a photo in memory                                                    |
        | `decision`       | accept, review or reject, by the model's decision; "" where there is an `error`       |
        | `prediction`     | name of the class; "" likewise                                                        |
        | `score`          | float64 from 0 to 1: probability of being defective, calibrated; NaN likewise         |
        | `p_<class name>` | float64 from 0 to 1: probability of each class, calibrated; NaN likewise              |
        | `unlike`         | float64 from 0 to 1: share of measured photos that are less unlike; NaN where unknown |
        | `cause`          | of it in words, as "darker than any measured"; "" of what is not beyond 99 % of them  |
        | `error`          | "", or why there is no decision: it could not be read, or the score is no number      |

        Args:
            images: one or many (a list, a generator, an array of four dimensions) of: a path; the content of a file; an
                image of Pillow's, of any mode and size; an array uint8 (height, width, 3) of RGB from 0 to 255, or
                (height, width) of grey, or of uint16 or float32 on the scale that the model learnt from
                (`dataset.depth`). What is in memory is judged as the same pixels from a PNG file would be.
            batch_size: photos a step of the network; more make a GPU faster, and need more of its memory.

        Raises:
            UserError: an array of another shape or type, or what is no photo at all.
        """
        one = isinstance(images, str | Path | bytes | Image.Image)
        one |= getattr(images, "ndim", 4) < 4 and not isinstance(images, pd.Series)  # an array
        tables = list(self.stream([images] if one else images, batch_size))  # type: ignore[list-item, arg-type]
        return pd.concat(tables or [self.rows([])], ignore_index=True)

    def stream(self, photos: Iterable[Photo], batch_size: int) -> Iterator[pd.DataFrame]:
        """The rows of `predict`, a table of `batch_size` at a time, of any number of photos in bounded memory."""
        ahead = max(1, min(AHEAD, AHEAD_BYTES // (3 * math.prod(self.image_size))))
        decoded = map_in_threads(self.read, photos, ahead)  # while the network computes
        while some := list(itertools.islice(decoded, batch_size)):
            self.paged += sum(one.paged for one in some)
            yield self.rows(some)

    def heat_maps(self, photos: Iterable[Photo]) -> Iterator[np.ndarray | None]:
        """Evidence for "defective" of each photo, see `defectcls.model.heatmaps`: float32 (height, width).

        Of any number of photos in bounded memory; None of one that cannot be read.
        """
        decoded = map_in_threads(self.read, photos, HEAT_BATCH)
        while some := [one.pixels for one in itertools.islice(decoded, HEAT_BATCH)]:
            readable = [pixels for pixels in some if pixels is not None]
            maps = iter(self.heat(np.stack(readable)) if readable else ())
            yield from (None if pixels is None else next(maps) for pixels in some)

    def read(self, photo: Photo) -> Read:
        """Decode a photo and bring it to the model's size, as every photo that this package judges.

        Raises:
            UserError: an array of another shape or type, or what is no photo at all.
        """
        path = str(photo) if isinstance(photo, str | Path) else ""
        try:
            opened = open_photo(photo, max(self.image_size))
            pixels = framed(opened.pixels(self.depth), self.image_size, self.resize)
            return Read(path, "", pixels, opened.paged, opened.file)
        except UnreadableImageError as error:
            return Read(path, str(error), None, False)

    def rows(self, photos: list[Read]) -> pd.DataFrame:
        """The rows of `predict`, judged together."""
        columns = self.columns[1:-1]
        rows = {column: np.full(len(photos), "" if column in WORDS else np.nan, object) for column in columns}
        errors = np.array([one.error for one in photos], object)
        readable = np.flatnonzero([one.pixels is not None for one in photos])
        if readable.size:
            found = self.judge(np.stack([one.pixels for one in photos if one.pixels is not None]))
            known = np.isfinite(found["score"].to_numpy())
            if self.measured is not None:
                looks = np.column_stack([found[SEEN], [one.file for one in photos if one.pixels is not None]])
                far = (found["unlike"] >= beyond_from(self.measured.photos)).tolist()
                found["cause"] = [self.measured.cause(one) * beyond for one, beyond in zip(looks, far, strict=True)]
                found["unlike"] = found["unlike"].clip(0, 1)  # a file may say anything
            for column in found.columns.intersection(columns):
                rows[column][readable[known]] = found[column].to_numpy()[known]
            errors[readable[~known]] = "the model gives no finite score"
        table = pd.DataFrame({"path": [one.path for one in photos], **rows, "error": errors}, dtype=object)
        return table.astype(dict.fromkeys(columns[2:-1], float))  # pandas' own texts hold no odd name of a file

    def nearest(self, pixels: np.ndarray) -> tuple[str, str]:
        """Paths of the sound and the defective training photo nearest to one, uint8 (3, height, width); "" for none."""
        found = self.judge(pixels[None]).iloc[0]
        paths = dict(enumerate(self.measured.paths if self.measured else ()))
        sound, defective = (paths.get(found.get(f"nearest_{kind}", -1), "") for kind in ("sound", "defective"))
        return sound, defective

    def drift(self, window: int) -> Drift:
        """Of photos that this one has judged."""
        return Drift(self.measured.photos if self.measured else 1, window)
