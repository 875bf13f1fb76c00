"""Look inside a trained run: where it sees defects, and what it does when the camera is worse."""

import logging
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch
from torchvision.transforms.v2 import functional as F

from defectcls.data.datamodule import DefectDataModule
from defectcls.data.findings import Finding
from defectcls.data.images import without_borders
from defectcls.data.masks import load_mask
from defectcls.errors import UserError
from defectcls.evaluation.decision import decide
from defectcls.evaluation.evaluate import mask_scores
from defectcls.evaluation.metrics import compute_metrics, defect_numbers, records
from defectcls.evaluation.predictions import predictions_table, probabilities_of
from defectcls.model.features import AS_IT_IS, View, extract_features
from defectcls.model.head import doubt_labels
from defectcls.model.heatmaps import METHODS, heat_maps
from defectcls.pages.photos import worst_errors
from defectcls.settings import InspectSettings
from defectcls.training.build import build_classifier, build_features, with_compute
from defectcls.training.run import Run
from defectcls.training.settings import AuditSettings

log = logging.getLogger(__name__)

RATES = ("recall", "overkill_rate", "auroc")


def find_doubted_labels(settings: AuditSettings, data: DefectDataModule, units: np.ndarray) -> list[Finding]:
    """Labels that are likely wrong, by a model that learnt from the others, the least credible first.

    The images all become the test part of `data`.

    Args:
        units: number of the images that each is tied to, int64 (images,).

    Raises:
        UserError: too few images of a class.
    """
    data.samples["split"] = "test"
    resolved = with_compute(settings)
    backbone = build_classifier(resolved, data).backbone.to(data.device)
    features, targets = extract_features(build_features(resolved, data, backbone), data.test_dataloader())
    doubted, said = doubt_labels(features, targets, units, settings.audit.folds, settings.audit.c, settings.seed)
    found = []
    for row in doubted.tolist():
        named = ((data.class_names[one], said[row, one]) for one in (targets[row], said[row].argmax()))
        detail = ", ".join(f"{name} {share:.0%}" for name, share in named)
        suspected = data.class_names[said[row].argmax()]
        found.append(Finding("wrong_label", data.samples["path"][row], detail=detail, suspected=suspected))
    return found


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
            found["heat_maps"] = METHODS[run.classifier.joined is not None]
            if len(masked):
                files, size = (dataset.root / path for path in masked["mask"]), run.data.images.size
                masks = np.stack([load_mask(file, size, dataset.resize) for file in files])
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
    """Heat maps of some rows, float32 (rows, height, width)."""
    index, folds = rows.index.to_numpy(), run.classifier.folds
    own = None if folds is None else folds[torch.tensor(index)]
    return heat_maps(run.classifier, run.data.images[index], own) if len(rows) else np.empty(0)


def _evenly(predictions: pd.DataFrame, limit: int) -> pd.DataFrame:
    """At most `limit` defective and as many sound rows, evenly spaced."""
    kinds = [predictions[predictions["defective"]], predictions[~predictions["defective"]]]
    return pd.concat(kind.iloc[np.linspace(0, len(kind) - 1, min(len(kind), limit)).astype(int)] for kind in kinds)


def blur(images: torch.Tensor, deviation: float) -> torch.Tensor:
    """Gaussian; the deviation is a share of the shorter side."""
    sigma = deviation * min(images.shape[2:])
    size = 2 * math.ceil(3 * sigma) + 1
    return F.gaussian_blur(images, [size, size], [sigma, sigma])


def noise(images: torch.Tensor, deviation: float) -> torch.Tensor:
    """Gaussian, for every pixel and colour; drawn on the CPU, to be the same on every device and in every image."""
    drawn = torch.randn(images.shape[1:], generator=torch.Generator().manual_seed(0)).to(images.device)
    return (images + deviation * drawn).round().clamp(0, 255).to(torch.uint8)


def jpeg(images: torch.Tensor, quality: float) -> torch.Tensor:
    """Compressed and decoded; the codec runs on the CPU."""
    return F.jpeg(images.cpu(), int(quality)).to(images.device)


# What changes images, uint8 (batch, 3, height, width), each in the same way in any batch; by how much, and in words.
CORRUPTIONS: dict[str, tuple[Callable[[torch.Tensor, float], torch.Tensor], tuple[float, ...], str]] = {
    "blur": (blur, (0.005, 0.01, 0.02), "{:.1%} of the side"),
    "noise": (noise, (8, 16, 32), "{} grey values"),
    "dark": (F.adjust_brightness, (0.8, 0.6, 0.4), "x {}"),
    "bright": (F.adjust_brightness, (1.25, 1.6, 2.2), "x {}"),
    "jpeg": (jpeg, (50, 25, 10), "quality {}"),
}


def corrupted(name: str, value: float) -> View:
    """Images under a corruption of `CORRUPTIONS`."""
    change = CORRUPTIONS[name][0]
    return View(f"{name} {value}", lambda images, _: change(images, value))


def measure_robustness(predict: Callable[[View], pd.DataFrame], classes: dict[str, bool]) -> pd.DataFrame:
    """Rows {corruption, strength 1 to 3, setting in words, recall, overkill_rate, auroc}; first `none`, of strength 0.

    NaN where a rate is undefined.

    Args:
        predict: the predictions table of images in a view.
    """
    conditions = [("none", 0, "", AS_IT_IS)]
    for name, (_, values, words) in CORRUPTIONS.items():
        for strength, value in enumerate(values, 1):
            conditions.append((name, strength, words.format(value), corrupted(name, value)))
    rows = []
    for name, strength, setting, view in conditions:
        numbers = defect_numbers(compute_metrics(predict(view), classes))
        rows.append([name, strength, setting, *(numbers.get(rate) for rate in RATES)])
    return pd.DataFrame(rows, columns=["corruption", "strength", "setting", *RATES]).astype(dict.fromkeys(RATES, float))
