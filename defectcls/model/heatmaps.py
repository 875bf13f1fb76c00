"""Where in an image a classifier sees its evidence for "defective", by HiResCAM on any timm backbone.

Of a head with a memory it is how far each patch is from the sound ones, see `defectcls.model.joined`.

Draelos and Carin 2020, "Use HiResCAM instead of Grad-CAM for Faithful Explanations of Convolutional Neural Networks".
Of networks with BatchNorm the last stage but one is explained: finer than the last, and on the defects of MVTec bottle
its hottest pixel lay on the defect more often than that of Grad-CAM, LayerCAM or occlusion, on this stage or the last.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from captum.attr import LayerGradientXActivation
from torch import nn

from defectcls.errors import UserError
from defectcls.model.backbone import NO_MAP
from defectcls.model.classifier import Classifier
from defectcls.model.graph import Layers

DISTANCE = "distance to the nearest patch of a sound part"
METHODS = {"linear": "HiResCAM", "joined": DISTANCE, "memory": DISTANCE}  # by `model.head`
BATCH_SIZE = 16  # images at a time: a predicting batch's memory, and that of the last stage's gradients


def heat_maps(classifier: Classifier, images: torch.Tensor) -> np.ndarray:
    """Evidence for "defective" at every pixel, float32 (n, side, side) of uint8 images (n, 3, side, side).

    0 where nothing speaks for a defect, 1 at the strongest point of each image; all 0 where no point does. A map says
    where the evidence lies, not how strong it is; its cells are those of the backbone, 16 or 32 pixels wide. Where the
    classes are all sound or all defective, the evidence is for the predicted class. The image is explained as it
    lies, without its `test_views`, on the classifier's device; the classifier is left as it was.

    Raises:
        UserError: the backbone has no map to look at.
    """
    side = images.shape[-1]
    heat = np.zeros((len(images), side, side), np.float32)
    explaining = _unusual if classifier.joined is not None else _contributing
    with _evaluating(classifier), explaining(classifier) as coarse_of:
        for start in range(0, len(images), BATCH_SIZE):
            rows = slice(start, start + BATCH_SIZE)
            coarse = coarse_of(images[rows].to(classifier.device))
            fine = F.interpolate(coarse[:, None], (side, side), mode="bilinear")[:, 0]
            strongest = fine.amax((1, 2), keepdim=True)
            heat[rows] = (fine / torch.where(strongest > 0, strongest, 1)).cpu().numpy()
    return heat


@contextmanager
def _contributing(classifier: Classifier) -> Iterator[Layers]:
    """What each cell contributes to the evidence, images -> (n, height, width)."""
    layer = nn.Identity()
    explanation = LayerGradientXActivation(lambda batch: _evidence(classifier, batch), layer)
    with _passing_through(layer, classifier.backbone.body):
        yield lambda images: explanation.attribute(images).detach().sum(1).relu()


@contextmanager
def _unusual(classifier: Classifier) -> Iterator[Layers]:
    """How unlike all that the memory holds each cell is, images -> (n, height, width)."""
    assert classifier.joined is not None
    joined, backbone = classifier.joined, classifier.backbone
    with torch.no_grad():
        yield lambda images: joined.unusual(backbone.with_map(images)[1])


def _evidence(classifier: Classifier, images: torch.Tensor) -> torch.Tensor:
    """Log-odds of "defective" (n,), or the highest logit where there is no other side."""
    with torch.no_grad():  # the layer turns gradients on: nothing before it needs them, and they would fill the memory
        logits = classifier.head(classifier.backbone(images))
        defective = torch.tensor(list(classifier.classes.values()), device=logits.device)
        if defective.all() or not defective.any():
            return logits.amax(1)
        return logits[:, defective].logsumexp(1) - logits[:, ~defective].logsumexp(1)


@contextmanager
def _passing_through(layer: nn.Module, body: Any) -> Iterator[None]:
    """Let the map to explain pass through `layer` as (batch, channels, height, width), on its way through the body."""
    owner, name = _map_of(body)
    original = getattr(owner, name)

    def detour(*inputs: Any, **options: Any) -> torch.Tensor:
        features = original(*inputs, **options)
        torch.set_grad_enabled(True)
        if not isinstance(features, torch.Tensor):
            raise UserError(NO_MAP)
        if features.ndim == 3:
            prefix, tokens = features.tensor_split([getattr(body, "num_prefix_tokens", 0)], 1)
            side = math.isqrt(tokens.shape[1])
            if side * side != tokens.shape[1]:
                raise UserError(NO_MAP)
            tokens = layer(tokens.transpose(1, 2).unflatten(2, (side, side))).flatten(2).transpose(1, 2)
            return torch.cat([prefix, tokens], 1)
        if getattr(body, "output_fmt", "NCHW") == "NHWC":
            return layer(features.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return layer(features)

    setattr(owner, name, detour)
    try:
        yield
    finally:
        delattr(owner, name)


def _map_of(body: Any) -> tuple[Any, str]:
    """The part of a timm model, and its method, that returns the map to explain.

    Not one that a LayerNorm reads: scaling a place up or down changes nothing behind it, so that gradient times
    activation adds up to zero at every place. And not the last tokens of a transformer: a class token alone may be
    read behind them.
    """
    if hasattr(body, "num_prefix_tokens"):
        try:
            return body.blocks[-1].norm1, "forward"
        except AttributeError:
            raise UserError(NO_MAP) from None
    if any(isinstance(module, nn.LayerNorm) for module in body.modules()):
        return body, "forward_features"
    return body.get_submodule(body.feature_info[-2]["module"]), "forward"


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while; each part goes back to its own."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training
