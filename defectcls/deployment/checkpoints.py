"""A checkpoint at work: its network as the run's own evaluation infers, to the bit on the CPU."""

import hashlib
import logging
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from defectcls import __version__
from defectcls.deployment.predictor import COMPARED, Predictor
from defectcls.evaluation.decision import MOST_PROBABLE, Decision, decide
from defectcls.evaluation.predictions import PROBABILITY, probabilities_of
from defectcls.model.checkpoint import load_trained
from defectcls.model.hardware import tune
from defectcls.model.heatmaps import heat_maps
from defectcls.settings import Device, Precision

log = logging.getLogger(__name__)


def load_checkpoint(checkpoint: Path, device: Device, precision: Precision | None) -> Predictor:
    """See `defectcls.deployment.predictor.load`."""
    trained = load_trained(checkpoint, device, precision)
    settings, decision = trained.settings, trained.decision or MOST_PROBABLE
    if trained.decision is None:
        log.warning("%s is of a run that did not finish: nothing is calibrated", trained.checkpoint)
    tune(trained.device, settings.trainer.precision)
    network = trained.network.to(trained.device)
    infer = network.inference()  # for good: its weights will not change
    look = network.backbone.inference(network.joined is not None)
    alone = threading.Lock()  # what looks into the backbone would see the photos of other threads, too

    def judge(pixels: np.ndarray) -> pd.DataFrame:
        image = torch.from_numpy(pixels)
        if trained.device.type == "cuda":  # once, for all who look at it
            image = image.pin_memory().to(trained.device, non_blocking=True)
        with alone, torch.inference_mode():
            answers = network.answer(image, look) if network.likeness else [infer(image)]
        logits, *compared = (one.cpu().numpy() for one in answers)
        return decided(logits, network.classes, decision).assign(**dict(zip(COMPARED, compared, strict=False)))

    def heat(pixels: np.ndarray) -> np.ndarray:
        with alone:
            return heat_maps(network, torch.from_numpy(pixels))

    about = {
        "model": settings.model.name,
        "dataset": settings.dataset.name,
        "digest": hashlib.sha256(trained.checkpoint.read_bytes()).hexdigest(),
        "version": __version__,
        "precision": settings.trainer.precision,
        "seed": settings.seed,
        "device": str(trained.device),
    }
    size, dataset = network.backbone.image_size, settings.dataset
    how, likeness = (size, dataset.resize, dataset.depth, decision), network.likeness
    measured = None if likeness is None else likeness.measured
    return Predictor(network.classes, *how, about, judge, heat, measured=measured)


def decided(logits: np.ndarray, classes: dict[str, bool], decision: Decision) -> pd.DataFrame:
    """What `Predictor.judge` gives, of logits (n, classes)."""
    # numpy adds up the classes of one row alone in another order than those of many: a spare row, lest one be alone
    probabilities = probabilities_of(np.concatenate([logits, np.zeros((1, len(classes)))]))
    columns = [PROBABILITY + name for name in classes]
    rows = decide(pd.DataFrame(probabilities, columns=columns), decision, classes)
    return rows[:-1][["decision", "prediction", "score", *columns]]
