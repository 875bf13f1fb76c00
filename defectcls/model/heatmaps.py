"""Where in an image a classifier sees its evidence for "defective", by HiResCAM on any timm backbone.

Of a head with a memory it is how far each patch is from the sound ones, see `defectcls.model.memory`.

Draelos and Carin 2020, "Use HiResCAM instead of Grad-CAM for Faithful Explanations of Convolutional Neural Networks".
Of networks with BatchNorm the last stage but one is explained: finer than the last, and on the defects of MVTec bottle
its hottest pixel lay on the defect more often than that of Grad-CAM, LayerCAM or occlusion, on this stage or the last.
"""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from defectcls.errors import UserError
from defectcls.model.backbone import NO_MAP
from defectcls.model.network import Network

DISTANCE = "distance to the nearest patch of a sound part"
METHODS = {"linear": "HiResCAM", "joined": DISTANCE, "memory": DISTANCE}  # by `model.head`
BATCH_SIZE = 16  # images at a time: a predicting batch's memory, and that of the last stage's gradients


def heat_maps(network: Network, images: torch.Tensor) -> np.ndarray:
    """Evidence for "defective" at every pixel, float32 (n, side, side) of uint8 images (n, 3, side, side).

    0 where nothing speaks for a defect, 1 at the strongest point of each image; all 0 where no point does. A map says
    where the evidence lies, not how strong it is; its cells are those of the backbone, 16 or 32 pixels wide. Where the
    classes are all sound or all defective, the evidence is for the predicted class. The image is explained as it
    lies, without its `test_views`, on the network's device, in float32; the network goes into evaluation mode.

    Raises:
        UserError: the backbone has no map to look at.
    """
    side = images.shape[-1]
    heat, joined = np.zeros((len(images), side, side), np.float32), network.joined
    network.eval()
    look = network.backbone.inference(with_map=True) if joined is not None else None
    for start in range(0, len(images), BATCH_SIZE):
        rows = slice(start, start + BATCH_SIZE)
        batch = images[rows].to(network.backbone.mean.device)
        coarse = _contributions(network, batch) if joined is None or look is None else joined.unusual(look(batch)[1])
        fine = F.interpolate(coarse[:, None], (side, side), mode="bilinear")[:, 0]
        heat[rows] = (fine / fine.amax((1, 2), keepdim=True).clamp_min(1e-30)).cpu().numpy()
    return heat


def _contributions(network: Network, images: torch.Tensor) -> torch.Tensor:
    """What each cell contributes to the evidence, (n, height, width): gradient times activation, where positive.

    The map that is explained is not one that a LayerNorm reads: scaling a place up or down changes nothing behind it,
    so that gradient times activation adds up to zero at every place. And not the last tokens of a transformer: a class
    token alone may be read behind them.
    """
    backbone, seen = network.backbone, []
    body = backbone.body

    def begin(output: Any) -> torch.Tensor:
        """Gradients reach from the evidence to here: nothing before it needs them, and they would fill the memory."""
        if not isinstance(output, torch.Tensor):
            raise UserError(NO_MAP)
        torch.set_grad_enabled(True)
        seen.append(output.detach().requires_grad_())
        return seen[0]

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
            features = body.forward_head(begin(body.forward_features(pixels)))
        else:
            with part.register_forward_hook(lambda *called: begin(called[-1])):
                features = body(pixels)
        logits, defective = network.head(features), list(network.classes.values())
        if all(defective) or not any(defective):
            evidence = logits.amax(1)
        else:
            of_side = torch.tensor(defective, device=logits.device)
            evidence = logits[:, of_side].logsumexp(1) - logits[:, ~of_side].logsumexp(1)
        (gradient,) = torch.autograd.grad(evidence.sum(), seen)
    return backbone.as_map(gradient * seen[0].detach()).sum(1).relu()
