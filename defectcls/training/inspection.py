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


def inspect(
    run: Run, predictions: pd.DataFrame, settings: InspectSettings
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What metrics.json says of masks and robustness; and the heat maps of the worst errors, by path.

    Args:
        predictions: decided, of the part to look into; its index is that of the run's sample table.
    """
    found: dict[str, Any] = {}
    heat: dict[str, np.ndarray] = {}
    dataset = run.data.settings
    if settings.heat_maps:
        errors = worst_errors(predictions, run.data.classes)
        masked = predictions[predictions["defective"] & (predictions.get("mask", "") != "")]
        masked = _evenly(masked, settings.images)
        try:
            heat = dict(zip(errors["path"], _maps(run, errors), strict=True))
            found["heat_maps"] = METHODS[run.settings.model.head]
            if len(masked):
                files, side = (dataset.root / path for path in masked["mask"]), run.data.image_size
                masks = np.stack([load_mask(file, side, dataset.resize) for file in files])
                scores = mask_scores(_maps(run, masked), masks).items()
                found["localisation"] = {"n": len(masked)} | {name: float(np.nanmean(each)) for name, each in scores}
        except UserError as error:  # a backbone without a map: the report goes without
            log.warning("no heat maps: %s", error)
        if dataset.resize == "pad":
            heat = {path: without_borders(one, dataset.root / path) for path, one in heat.items()}
    if settings.robustness:
        rows = _evenly(predictions, settings.images // 2)
        found["robustness"] = records(measure_robustness(_predictor(run, rows), run.data.classes))
        found["robustness_images"] = len(rows)
    return found, heat


def without_borders(heat: np.ndarray, path: Path) -> np.ndarray:
    """The part of a square map that the photo fills, where black borders pad it."""
    photo, side = np.array(thumbnail(path, heat.shape[0], "auto").size[::-1]), heat.shape[0]
    height, width = np.round(side * photo / photo.max()).astype(int)
    top, left = (round((side - own) / 2) for own in (height, width))  # as `square` puts it
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


def _maps(run: Run, rows: pd.DataFrame) -> np.ndarray:
    """Heat maps of some rows, float32 (rows, side, side)."""
    return heat_maps(run.classifier, run.data.images[rows.index.to_numpy()]) if len(rows) else np.empty(0)


def _evenly(predictions: pd.DataFrame, limit: int) -> pd.DataFrame:
    """At most `limit` defective and as many sound rows, evenly spaced."""
    kinds = [predictions[predictions["defective"]], predictions[~predictions["defective"]]]
    return pd.concat(kind.iloc[np.linspace(0, len(kind) - 1, min(len(kind), limit)).astype(int)] for kind in kinds)
