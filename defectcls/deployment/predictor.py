"""A trained model at work: from photos, on the disk or in memory, to decided predictions."""

import hashlib
import itertools
import logging
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image

from defectcls.data.images import Decoded, Photo, attempt
from defectcls.data.threads import AHEAD, map_in_threads
from defectcls.evaluation.decision import MOST_PROBABLE, decide
from defectcls.evaluation.predictions import PROBABILITY, predictions_table, probabilities_of
from defectcls.model.checkpoint import Device, Trained, load_trained
from defectcls.model.hardware import Precision, allow_tf32, autocast
from defectcls.model.heatmaps import heat_maps

log = logging.getLogger(__name__)

NO_SCORE = "the model gives no finite score"
AHEAD_BYTES = 2**27  # of decoded photos that wait for the network: 42 photos of 1024 px


def load(checkpoint: str | Path, device: Device = "auto", precision: Precision | None = None) -> "Predictor":
    """A predictor that judges photos as the run's own evaluation does; on the CPU with the same bits.

    Args:
        checkpoint: run folder, or a .ckpt file.
        device: auto takes a GPU where there is one.
        precision: None computes as in training.

    Raises:
        UserError: no such checkpoint, one of another tool, a damaged one, or no GPU.
    """
    trained = load_trained(Path(checkpoint), device, precision)
    return Predictor(trained, trained.device)


class Predictor:
    """Made by `load`. Classes, size, calibration and decision are the checkpoint's.

    `classes` are class name -> defective, in the order of the probabilities; `image_size` is the side in pixels that
    every photo is brought to, by `resize` (squash or pad).
    """

    def __init__(self, trained: Trained, device: torch.device) -> None:
        self.trained, self.device = trained, device
        self.classes, self.image_size = trained.classifier.classes, trained.settings.image_size
        self.resize, self.depth = trained.settings.dataset.resize, trained.settings.dataset.depth
        self.decision = trained.decision or MOST_PROBABLE
        if trained.decision is None:
            log.warning(
                "%s is of a run that did not finish: its most probable class decides, not calibrated; "
                "resume=<run folder> finishes the run",
                trained.checkpoint,
            )
        self.precision: Precision = trained.settings.trainer.precision  # type: ignore[assignment]  # no longer auto
        if self.precision != "32":
            allow_tf32(device)
        self.classifier = trained.classifier.to(device)
        self._evaluation = self.classifier.evaluating()  # for good: its weights will not change
        self._evaluation.__enter__()

    @cached_property
    def digest(self) -> str:
        """Of the checkpoint: 12 hexadecimal digits of its SHA-256."""
        return hashlib.sha256(self.trained.checkpoint.read_bytes()).hexdigest()[:12]

    @property
    def columns(self) -> list[str]:
        """Of the tables that `predict` makes."""
        probabilities = [PROBABILITY + name for name in self.classes]
        return ["path", "decision", "prediction", "score", *probabilities, "error"]

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
            images: one or many (a list, a generator, an array of four dimensions) of: a path; an image of Pillow's, of
                any mode and size; an array uint8 (height, width, 3) of RGB from 0 to 255, or (height, width) of grey,
                or of uint16 or float32 on the scale that the model learnt from (`dataset.depth`). What is in memory is
                judged as the same pixels from a PNG file would be.
            batch_size: photos a step of the network; more make a GPU faster, and need more of its memory.

        Raises:
            UserError: an array of another shape or type, or what is no photo at all.
        """
        one = isinstance(images, str | Path | Image.Image) or (isinstance(images, np.ndarray) and images.ndim < 4)
        tables = list(self.stream([images] if one else images, batch_size))  # type: ignore[list-item, arg-type]
        return pd.concat(tables, ignore_index=True) if tables else self._table([], [], self._logits([]))

    def stream(self, photos: Iterable[Photo], batch_size: int) -> Iterator[pd.DataFrame]:
        """The rows of `predict`, a table of `batch_size` at a time, of any number of photos in bounded memory."""
        waiting = None
        for paths, decoded in self._batches(photos, batch_size):
            errors = ["" if isinstance(one, np.ndarray) else str(one) for one in decoded]
            computed = paths, errors, self._logits([one for one in decoded if isinstance(one, np.ndarray)])
            if waiting:  # read one batch later, so that a GPU never waits for this process
                yield self._table(*waiting)
            waiting = computed
        if waiting:
            yield self._table(*waiting)

    def heat_maps(self, photos: Iterable[Photo], batch_size: int) -> Iterator[np.ndarray | None]:
        """Evidence for "defective" of each photo, see `defectcls.model.heatmaps`: float32 (image_size, image_size).

        None of a photo that cannot be read.

        Raises:
            UserError: the backbone has no map to look at.
        """
        for _, decoded in self._batches(photos, batch_size):
            readable = [one for one in decoded if isinstance(one, np.ndarray)]
            maps = iter(heat_maps(self.classifier, torch.from_numpy(np.stack(readable))) if readable else ())
            yield from (next(maps) if isinstance(one, np.ndarray) else None for one in decoded)

    def refuse_without_map(self) -> None:
        """To be asked before anything is computed.

        Raises:
            UserError: the backbone has no map for `heat_maps` to look at.
        """
        heat_maps(self.classifier, torch.zeros(1, 3, self.image_size, self.image_size, dtype=torch.uint8))

    def _batches(self, photos: Iterable[Photo], batch_size: int) -> Iterator[tuple[list[str], list[Decoded]]]:
        """Paths and pixels of `batch_size` photos at a time, decoded while the network computes.

        On a CPU too, where both want all cores: to decode some hundred first, and then compute them, was no faster.
        """
        ahead = max(1, min(AHEAD, AHEAD_BYTES // (3 * self.image_size**2)))
        together = max(1, min(8, ahead // 32))  # few large photos are to reach all cores
        pairs = map_in_threads(self._finish, map(self._prepare, photos), together, ahead)
        while some := list(itertools.islice(pairs, batch_size)):
            yield [path for path, _ in some], [decoded for _, decoded in some]

    def _prepare(self, photo: Photo) -> tuple[str, Photo | Decoded]:
        """Path and photo; of one in memory already the pixels, since many large ones together may not fit there."""
        if isinstance(photo, str | Path):
            return str(photo), photo
        return "", attempt(photo, self.image_size, self.resize, self.depth)

    def _finish(self, prepared: tuple[str, Photo | Decoded]) -> tuple[str, Decoded]:
        path, photo = prepared
        if isinstance(photo, str | Path):
            return path, attempt(photo, self.image_size, self.resize, self.depth)
        return path, photo  # type: ignore[return-value]

    @torch.inference_mode()
    def _logits(self, decoded: list[np.ndarray]) -> torch.Tensor:
        """float32 (images, classes), on the device."""
        if not decoded:
            return torch.empty(0, len(self.classes))
        pixels = torch.from_numpy(np.stack(decoded)).to(self.device)
        with autocast(self.precision, self.device):
            return self.classifier(pixels)

    def _table(self, paths: list[str], errors: list[str], logits: torch.Tensor) -> pd.DataFrame:
        """Rows of the photos; `logits` are of those without an error."""
        names, defective = list(self.classes), list(self.classes.values())
        rows = pd.DataFrame({"path": paths, "error": errors}, dtype=object)
        read = rows.index[rows["error"] == ""]
        # numpy adds up the classes of one row alone in another order than those of many: a spare row, lest one be alone
        spare = np.concatenate([logits.cpu().numpy(), np.zeros((1, len(names)))])
        answers = predictions_table(pd.DataFrame(index=range(len(spare))), probabilities_of(spare), names, defective)
        answers = decide(answers, self.decision, names, defective)[:-1].set_index(read)
        unknown = read[~np.isfinite(answers["score"].to_numpy())]
        rows.loc[unknown, "error"] = NO_SCORE
        answers = answers.drop(index=unknown)
        return rows.join(answers).fillna({"decision": "", "prediction": ""}).reindex(columns=self.columns)
