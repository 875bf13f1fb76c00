"""Look inside a trained run: where it sees defects, and what it does when the camera is worse."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from defectcls.data.masks import load_mask
from defectcls.errors import UserError
from defectcls.evaluation.decision import decide
from defectcls.evaluation.evaluate import mask_scores
from defectcls.evaluation.metrics import records
from defectcls.evaluation.predictions import predictions_table, probabilities_of
from defectcls.model.features import View
from defectcls.model.heatmaps import METHODS, heat_maps
from defectcls.model.robustness import measure_robustness
from defectcls.pages.photos import thumbnail, worst_errors
from defectcls.settings import InspectSettings
from defectcls.training.run import Run

log = logging.getLogger(__name__)

Heat = dict[str, np.ndarray]


def inspect(run: Run, predictions: pd.DataFrame, settings: InspectSettings) -> tuple[dict[str, Any], Heat]:
    """What metrics.json says of masks and robustness; and the heat maps of the worst errors, by path.

    Args:
        predictions: decided, of the part to look into; its index is that of the run's sample table.
    """
    found: dict[str, Any] = {}
    heat: Heat = {}
    if settings.heat_maps:
        errors = worst_errors(predictions, run.data.classes)
        try:
            maps = zip(errors["path"], heat_maps(run.classifier, _pixels(run, errors)), strict=True)
            root, padded = run.data.settings.root, run.data.settings.resize == "pad"
            heat = {path: without_borders(one, root / path) if padded else one for path, one in maps}
            found["heat_maps"] = METHODS[run.classifier.hparams["model"]["head"]]
            found |= _localisation(run, predictions, settings.images)
        except UserError as error:  # a backbone without a map: the report goes without
            log.warning("no heat maps: %s", error)
    if settings.robustness:
        rows = _evenly(predictions, settings.images)
        found |= {
            "robustness": records(measure_robustness(_predictor(run, rows), run.data.classes)),
            "robustness_images": len(rows),
        }
    return found, heat


def _localisation(run: Run, predictions: pd.DataFrame, limit: int) -> dict[str, Any]:
    """Mean scores of the heat maps on defective images with masks; nothing where there are none."""
    if "mask" not in predictions:
        return {}
    rows = _evenly(predictions[predictions["defective"] & (predictions["mask"] != "")], limit)
    if rows.empty:
        return {}
    dataset = run.data.settings
    masks = np.stack([load_mask(dataset.root / path, run.data.image_size, dataset.resize) for path in rows["mask"]])
    found = mask_scores(heat_maps(run.classifier, _pixels(run, rows)), masks)
    return {"localisation": {"n": len(rows)} | {name: float(np.nanmean(values)) for name, values in found.items()}}


def without_borders(heat: np.ndarray, path: Path) -> np.ndarray:
    """The part of a square map that the photo fills, where black borders pad it."""
    photo, side = np.array(thumbnail(path, heat.shape[0], "auto").size[::-1]), heat.shape[0]
    height, width = np.round(side * photo / photo.max()).astype(int)
    top, left = (side - height) // 2, (side - width) // 2
    return heat[top : top + height, left : left + width]


def _predictor(run: Run, rows: pd.DataFrame) -> Callable[[View], pd.DataFrame]:
    """A function from a view to the decided predictions of `rows` in it."""
    evaluate, samples = run.classifier.evaluation(), run.samples.loc[rows.index]
    places = torch.tensor(rows.index.to_numpy()).split(run.data.batch_size)
    batches = [{"image": run.data.images[place.numpy()], "index": place} for place in places]

    def predict(view: View) -> pd.DataFrame:
        logits = torch.cat([evaluate(batch, view) for batch in batches]).cpu().numpy()
        uncalibrated = predictions_table(samples, probabilities_of(logits), run.data.classes)
        return decide(uncalibrated, run.decision, run.data.classes)

    return predict


def _pixels(run: Run, rows: pd.DataFrame) -> torch.Tensor:
    return run.data.images[rows.index.to_numpy()] if len(rows) else torch.empty(0, 3, 1, 1, dtype=torch.uint8)


def _evenly(predictions: pd.DataFrame, limit: int) -> pd.DataFrame:
    """At most `limit` rows, evenly spaced, and equally many defective and sound ones where there are enough."""
    kinds = [predictions[predictions["defective"]], predictions[~predictions["defective"]]]
    least = min(map(len, kinds))
    wanted = [min(len(kind), max(limit // 2, limit - least)) for kind in kinds]
    return pd.concat(
        kind.iloc[np.linspace(0, len(kind) - 1, count).astype(int)] for kind, count in zip(kinds, wanted, strict=True)
    )
