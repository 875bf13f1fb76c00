"""A trained model at work: from photos, on the disk or in memory, to decided predictions."""

import itertools
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from defectcls.data.images import Photo, UnreadableImageError, open_photo, square
from defectcls.data.threads import map_in_threads
from defectcls.evaluation.decision import MOST_PROBABLE, decide
from defectcls.evaluation.predictions import PROBABILITY, predictions_table, probabilities_of
from defectcls.model.checkpoint import Trained, load_trained
from defectcls.model.hardware import allow_tf32
from defectcls.model.heatmaps import BATCH_SIZE, heat_maps
from defectcls.settings import Device, Precision

log = logging.getLogger(__name__)

AHEAD = 128  # photos at most that are read before they are asked for
AHEAD_BYTES = 2**27  # of them decoded: 42 photos of 1024 px


def load(checkpoint: str | Path, device: Device = "auto", precision: Precision | None = None) -> "Predictor":
    """A predictor that judges photos as the run's own evaluation does; on the CPU with the same bits.

    Args:
        checkpoint: run folder, or a .ckpt file.
        device: auto takes a GPU where there is one.
        precision: None computes as in training.

    Raises:
        UserError: no such checkpoint, one of another tool, a damaged one, or no GPU.
    """
    return Predictor(load_trained(Path(checkpoint), device, precision))


class Predictor:
    """Made by `load`. Classes, size, calibration and decision are the checkpoint's.

    `classes` are class name -> defective, in the order of the probabilities; `columns` those of `predict`. `image_size`
    is the side in pixels that every photo is brought to, by `resize` (squash or pad). `paged` counts the photos of
    which only the first page was looked at.
    """

    def __init__(self, trained: Trained) -> None:
        self.trained, self.device, dataset = trained, trained.device, trained.settings.dataset
        self.classes, self.image_size = trained.network.classes, trained.settings.image_size
        probabilities = (PROBABILITY + name for name in self.classes)
        self.columns = ["path", "decision", "prediction", "score", *probabilities, "error"]
        self.resize, self.depth, self.paged = dataset.resize, dataset.depth, 0
        self.decision = trained.decision or MOST_PROBABLE
        if trained.decision is None:
            log.warning("%s is of a run that did not finish: nothing is calibrated", trained.checkpoint)
        if trained.settings.trainer.precision != "32":
            allow_tf32(self.device)
        self.network = trained.network.to(self.device)
        self._infer = self.network.inference()  # for good: its weights will not change

    def predict(self, images: Photo | Iterable[Photo], batch_size: int = 64) -> pd.DataFrame:
        """A row for each photo, in order. The photos are not all in memory at once, the rows are: see `stream`.

        | column           | meaning                                                                               |
        | ---------------- | ------------------------------------------------------------------------------------- |
        | `path`           | as given; "" for a photo in memory                                                    |
        | `decision`       | accept, review or reject, by the checkpoint's decision; "" where there is an `error`  |
        | `prediction`     | name of the class; "" likewise                                                        |
        | `score`          | float64 from 0 to 1: probability of being defective, calibrated; NaN likewise         |
        | `p_<class name>` | float64 from 0 to 1: probability of each class, calibrated; NaN likewise              |
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
        one = isinstance(images, str | Path | bytes | Image.Image) or getattr(images, "ndim", 4) < 4  # of an array
        tables = list(self.stream([images] if one else images, batch_size))  # type: ignore[list-item, arg-type]
        return pd.concat(tables or [self._table([], [], np.empty((0, len(self.classes))))], ignore_index=True)

    def stream(self, photos: Iterable[Photo], batch_size: int) -> Iterator[pd.DataFrame]:
        """The rows of `predict`, a table of `batch_size` at a time, of any number of photos in bounded memory."""
        ahead = max(1, min(AHEAD, AHEAD_BYTES // (3 * self.image_size**2)))
        decoded = map_in_threads(self._read, photos, ahead)  # while the network computes
        while some := list(itertools.islice(decoded, batch_size)):
            paths, errors, pixels, paged = map(list, zip(*some, strict=True))
            self.paged += sum(paged)
            logits = np.full((len(paths), len(self.classes)), np.nan, np.float32)
            if readable := [one for one in pixels if one is not None]:
                logits[[not error for error in errors]] = self._logits(np.stack(readable))
            yield self._table(paths, errors, logits)

    def heat_maps(self, photos: Iterable[Photo]) -> Iterator[np.ndarray | None]:
        """Evidence for "defective" of each photo, see `defectcls.model.heatmaps`: float32 (image_size, image_size).

        Of any number of photos in bounded memory.

        None of a photo that cannot be read.

        Raises:
            UserError: the backbone has no map to look at.
        """
        decoded = map_in_threads(self._read, photos, BATCH_SIZE)
        while some := list(itertools.islice(decoded, BATCH_SIZE)):
            readable = [pixels for _, _, pixels, _ in some if pixels is not None]
            maps = iter(heat_maps(self.network, torch.from_numpy(np.stack(readable))) if readable else ())
            yield from (None if pixels is None else next(maps) for _, _, pixels, _ in some)

    def _read(self, photo: Photo) -> tuple[str, str, np.ndarray | None, bool]:
        """Path, why there are no pixels, pixels, and whether there are further pages."""
        path = str(photo) if isinstance(photo, str | Path) else ""
        try:
            opened = open_photo(photo, self.image_size)
            return path, "", square(opened.pixels(self.depth), self.image_size, self.resize), opened.paged
        except UnreadableImageError as error:
            return path, str(error), None, False

    def _logits(self, pixels: np.ndarray) -> np.ndarray:
        return self._infer(torch.from_numpy(pixels)).cpu().numpy()

    def _table(self, paths: list[str], errors: list[str], logits: np.ndarray) -> pd.DataFrame:
        """Rows of the photos; `logits` (photos, classes) are NaN where there is an error."""
        # numpy adds up the classes of one row alone in another order than those of many: a spare row, lest one be alone
        probabilities = probabilities_of(np.concatenate([logits, np.zeros((1, len(self.classes)))]))
        rows = pd.DataFrame({"path": [*paths, ""], "error": [*errors, ""]}, dtype=object)
        rows = decide(predictions_table(rows, probabilities, self.classes), self.decision, self.classes)[:-1]
        unknown = ~np.isfinite(rows["score"])
        rows.loc[unknown, ["decision", "prediction"]] = ""
        rows.loc[unknown & (rows["error"] == ""), "error"] = "the model gives no finite score"
        return rows[self.columns]
