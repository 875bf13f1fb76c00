"""A trained model as one graph from plain photos of any size to decisions, for runtimes that know no defectcls.

It computes what `framed`, `Network` and `decide` compute, by their own code where that is of torch.
"""

import copy
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

import numpy as np
import torch
from torch import nn

from defectcls.deployment.runtime import HEAT_MAP, outputs_of
from defectcls.errors import UserError, one_line
from defectcls.evaluation.decision import Decision
from defectcls.model.backbone import folded
from defectcls.model.heatmaps import spread
from defectcls.model.network import Network

BITS = 22  # of Pillow's weights of pixels; it rounds to 8 bits after each of two passes
MOST = {"batch": 4096, "height": 65536, "width": 65536}


class Framed(nn.Module):
    """What `defectcls.data.images.framed` makes of photos by Pillow, bicubic, to the bit, as a graph: uint8 RGB
    (batch, height, width, 3) of any size -> whole numbers, float32 (batch, 3, *size).

    A photo of the size passes as it is, where the runtime knows branches; of another it takes two products in float64.
    """

    def __init__(self, size: tuple[int, int], resize: str, branches: bool = True) -> None:
        super().__init__()
        self.size, self.pads, self.branches = size, resize == "pad", branches

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        pixels = image.permute(0, 3, 1, 2)
        if not self.branches:
            return self._resized(pixels)
        height, width = (torch.scalar_tensor(side, dtype=torch.int64) for side in pixels.shape[2:])
        fits = (height == self.size[0]) & (width == self.size[1])
        return torch.cond(fits, self._as_they_are, self._resized, (pixels,))

    def _as_they_are(self, pixels: torch.Tensor) -> torch.Tensor:
        rows, columns = map(torch.arange, self.size)  # which makes the size known to the graph
        return pixels.index_select(2, rows).index_select(3, columns).float()

    def _resized(self, pixels: torch.Tensor) -> torch.Tensor:
        sides = [torch.arange(side, dtype=torch.float64) for side in pixels.shape[2:]]
        lengths = torch.stack([side[-1] + 1 for side in sides])
        filled = torch.stack([torch.full((), float(side), dtype=torch.float64) for side in self.size])
        if self.pads:
            filled = ((filled / lengths).min() * lengths).round().clamp(min=1)
        across, along = map(_weights, sides, lengths, filled, self.size)
        in_width = _rounded(pixels.double() @ along.T)
        return _rounded(across @ in_width).float()


def _weights(source: torch.Tensor, length: torch.Tensor, filled: torch.Tensor, side: int) -> torch.Tensor:
    """Pillow's (Resample.c), whole numbers of BITS, (side, source); 0 beyond what is `filled` in the middle of it."""
    target = (torch.arange(side, dtype=torch.float64) - ((side - filled) / 2).round())[:, None]
    scale = length / filled
    stretch = scale.clamp(min=1)  # a bicubic reaches two pixels, of the photo or of the frame, whichever are larger
    centre = (target + 0.5) * scale
    low = (centre - 2 * stretch + 0.5).trunc().clamp(min=0)
    high = torch.minimum((centre + 2 * stretch + 0.5).trunc(), length)
    x = ((source - centre + 0.5) * (1 / stretch)).abs()
    near, far = (1.5 * x - 2.5) * x * x + 1, (((x - 5) * x + 8) * x - 4) * -0.5
    weights = torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
    weights = torch.where((source >= low) & (source < high), weights, 0.0)
    weights = weights / weights.sum(1, keepdim=True)
    whole = (weights * 2**BITS + torch.where(weights < 0, -0.5, 0.5)).trunc()
    return torch.where((target >= 0) & (target < filled), whole, 0.0)


def _rounded(sums: torch.Tensor) -> torch.Tensor:
    return ((sums + 2 ** (BITS - 1)) / 2**BITS).floor().clamp(0, 255)


class Deployed(nn.Module):
    """Photos uint8 RGB (batch, height, width, 3) of any size -> `outputs`, in their order.

    `p_<class name>` float64 each, and `score` float64, calibrated; `prediction` int64, the number of the class;
    `decision` int64: 0 accepts, 1 is for a person, 2 rejects, as it does what is no number, see
    `defectcls.evaluation.decision.decide`; what a `Likeness` gives; `heat_map` float32 (batch, *size of the model).

    Args:
        resize: squash or pad.
        in_half: the backbone is computed in float16.
        branches: what runs the graph knows them; OpenVINO 2026.4 loses what the shorter one gives.
        compares: whether the network's likeness answers too.

    Raises:
        UserError: a heat map is asked for, and the head has no memory.
    """

    def __init__(
        self,
        network: Network,
        decision: Decision,
        resize: str,
        heat_map: bool = False,
        in_half: bool = False,
        branches: bool = True,
        compares: bool = True,
    ) -> None:
        super().__init__()
        if heat_map and network.joined is None:
            raise UserError(
                "heat_map=true needs a head with a memory, model.head=joined: a linear head's map is of gradients, "
                "which a file does not compute"
            )
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        self.decision, self.heat_map = decision, heat_map
        self.network.likeness = self.network.likeness if compares else None
        backbone, with_map = self.network.backbone, network.joined is not None
        dtype = torch.float16 if in_half else torch.float32
        body = backbone.body = folded(backbone.body).to(dtype)

        def look(image: torch.Tensor) -> tuple[torch.Tensor, ...]:
            """As `Backbone.inference` does."""
            seen = backbone.seen(body, backbone.normalise(image).to(dtype), with_map)
            return tuple(one.float() for one in seen)

        self.network.look = look
        compared = self.network.likeness and (lambda pixels: self.network.answer(pixels, look))
        self.answer: Callable[..., Any] = compared or (lambda pixels: (self.network(pixels),))
        self.framed = Framed(backbone.image_size, resize, branches)
        self.outputs = [*outputs_of(network.classes, self.network.likeness), *[HEAT_MAP] * heat_map]

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        network, pixels = self.network, self.framed(image)
        if network.joined is None or not self.heat_map:
            return self.decided(*self.answer(pixels))
        distances: list[torch.Tensor] = []
        with network.joined.memory.register_forward_hook(lambda *called: distances.append(called[-1])):
            answers = self.decided(*self.answer(pixels))
        return *answers, spread(network.joined.unusual(distances[0]), network.backbone.image_size)

    def decided(self, logits: torch.Tensor, *compared: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """float32 (batch, classes), and what a `Likeness` gives -> all outputs but the heat map."""
        one, defective = self.decision, torch.tensor([*self.network.classes.values()])
        known = logits.isfinite().all(1)
        likely = logits.double().masked_fill(~known[:, None], 0).softmax(1)
        if one.scale != 1 or any(one.shift):
            shift = torch.tensor(one.shift or 0.0, dtype=torch.float64)
            likely = (one.scale * likely.clamp_min(np.finfo(np.float64).tiny).log() + shift).softmax(1)
        score = (likely * defective).sum(1).clamp(max=1)
        weighed = likely / torch.tensor(one.prior or 1.0, dtype=torch.float64)
        if one.accept_below is None or one.reject_from is None:
            flagged = rejected = defective[weighed.argmax(1)] | ~known
        else:
            flagged, rejected = ((score >= start) | ~known for start in (one.accept_below, one.reject_from))
        prediction = torch.where(flagged[:, None] == defective, weighed, -1.0).argmax(1)
        likely, score = likely.masked_fill(~known[:, None], torch.nan), score.masked_fill(~known, torch.nan)
        return *likely.unbind(1), score, prediction, flagged.long() + rejected.long(), *compared


def traced(deployed: Deployed, name: str) -> torch.export.ExportedProgram:
    """The graph, of any number of photos of any size; a UserError where torch cannot follow what `name` does."""
    height, width = deployed.network.backbone.image_size
    photos = torch.zeros(2, height + 7, width + 5, 3, dtype=torch.uint8)
    free = {place: torch.export.Dim(axis, min=1, max=most) for place, (axis, most) in enumerate(MOST.items())}
    with exporting(name, "torch.export"), torch.no_grad():
        return torch.export.export(deployed.eval(), (photos,), dynamic_shapes={"image": free})


@contextmanager
def exporting(name: str, tool: str) -> Iterator[None]:
    """Without the advice of exporters, which is not for the user of this tool.

    Raises:
        UserError: a tool cannot export a model, which is called `name`.
    """
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(action="ignore"), redirect_stdout(io.StringIO()):
            yield
    except (OSError, UserError):
        raise
    except Exception as error:  # whatever a foreign network does when it is called with a stand-in
        raise UserError(f"{name} cannot be exported, as {tool} says: {one_line(error).split('. ')[0]}") from error
    finally:
        logging.disable(logging.NOTSET)
