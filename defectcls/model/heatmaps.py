"""Where in an image a classifier sees its evidence for "defective", by HiResCAM on any timm backbone.

Of a head with a memory it is how far each patch is from the sound ones, see `defectcls.model.memory`.

Draelos and Carin 2020, "Use HiResCAM instead of Grad-CAM for Faithful Explanations of Convolutional Neural Networks".
Of networks with BatchNorm the last stage but one is explained: finer than the last, and on the defects of MVTec bottle
its hottest pixel lay on the defect more often than that of Grad-CAM, LayerCAM or occlusion, on this stage or the last.
"""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from defectcls.errors import UserError
from defectcls.model.backbone import NO_MAP
from defectcls.model.network import Network

METHODS = {False: "HiResCAM", True: "distance to the nearest patch of a sound part"}  # without and with a memory
BATCH_SIZE = 16  # images at a time: a predicting batch's memory, and that of the last stage's gradients


def heat_maps(network: Network, images: torch.Tensor, folds: torch.Tensor | None = None) -> np.ndarray:
    """Evidence for "defective" at every pixel, float32 (n, height, width) of uint8 images (n, 3, height, width).

    0 where nothing speaks for a defect, 1 at the strongest point of each image; all 0 where no point does. A map says
    where the evidence lies, not how strong it is; its cells are those of the backbone, 16 or 32 pixels wide. Where the
    classes are all sound or all defective, the evidence is for the predicted class. The image is explained as it
    lies, without its `test_views`, on the network's device, in float32; the network goes into evaluation mode. With
    `folds`, as of `Network.forward`, each is explained by the member that has not seen it.

    Raises:
        UserError: the backbone has no map to look at.
    """
    count, _, height, width = images.shape
    heat = np.zeros((count, height, width), np.float32)
    joined = network.eval().joined
    look = network.backbone.inference(with_map=True) if joined is not None else None
    for start in range(0, count, BATCH_SIZE):
        rows = slice(start, start + BATCH_SIZE)
        batch = images[rows].to(network.backbone.mean.device)
        own = None if folds is None else folds[rows]
        if look and joined is not None:
            coarse = joined.unusual(joined.memory(look(batch)[1]), own)
        else:
            coarse = _contributions(network, batch, own)
        heat[rows] = spread(coarse, (height, width)).cpu().numpy()
    return heat


def spread(coarse: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """What cells (n, rows, columns) say, at every pixel (n, *size): 1 at the strongest point of each image."""
    fine = F.interpolate(coarse.relu()[:, None], size, mode="bilinear")[:, 0]
    return fine / fine.amax((1, 2), keepdim=True).clamp_min(1e-30)


def _contributions(network: Network, images: torch.Tensor, folds: torch.Tensor | None = None) -> torch.Tensor:
    """What each cell contributes to the evidence, (n, height, width): gradient times activation.

    The map that is explained is not one that a LayerNorm reads: scaling a place up or down changes nothing behind it,
    so that gradient times activation adds up to zero at every place. And not the last tokens of a transformer: a class
    token alone may be read behind them. What is pooled of the levels is explained at each of them, and all is added up
    in the cells of the finest.
    """
    backbone, seen = network.backbone, []
    body = backbone.body

    def begin(output: Any) -> torch.Tensor:
        """Gradients reach from the evidence to here: nothing before it needs them, and they would fill the memory."""
        if not isinstance(output, torch.Tensor):
            raise UserError(NO_MAP)
        torch.set_grad_enabled(True)
        seen.append(output.detach().requires_grad_())
        return seen[-1]

    with torch.no_grad():
        pixels = backbone.normalise(images)
        try:
            if hasattr(body, "num_prefix_tokens"):
                part = body.blocks[-1].norm1
            elif any(isinstance(module, nn.LayerNorm) for module in body.modules()):
                part = None  # all but the head
            else:
                part = body.get_submodule(body.feature_info[-2]["module"])
        except (AttributeError, IndexError, KeyError, TypeError):
            raise UserError(NO_MAP) from None
        if part is None:
            last = lambda pixels: body.forward_head(begin(body.forward_features(pixels)))  # noqa: E731
            features = backbone.features(body, pixels, last, mark=begin)
        else:
            with part.register_forward_hook(lambda *called: begin(called[-1])):
                features = backbone.features(body, pixels, mark=begin)
        logits = network.judge([(features,)], folds)
        sides = [*network.classes.values()]
        if len({*sides}) == 1:
            evidence = logits.amax(1)
        else:
            defective = torch.tensor(sides, device=logits.device)
            evidence = logits[:, defective].logsumexp(1) - logits[:, ~defective].logsumexp(1)
        gradients = torch.autograd.grad(evidence.sum(), seen, materialize_grads=True)
    products = (slope * value.detach() for slope, value in zip(gradients, seen, strict=True))
    maps = [backbone.as_map(product).sum(1, keepdim=True) for product in products]
    finest = max((one.shape[2:] for one in maps), key=math.prod)
    # What a coarse cell has is shared among the fine.
    parts = [one[0].numel() / math.prod(finest) * F.interpolate(one, finest, mode="bilinear") for one in maps]
    return torch.cat(parts, 1).sum(1)
