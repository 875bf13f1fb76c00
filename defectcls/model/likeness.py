"""How unlike a photo is what a model has learned from: its distance, in features and appearance, from the nearest."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.linalg import block_diag
from torch import nn

from defectcls.data.samples import writable
from defectcls.errors import UserError
from defectcls.evaluation.drift import SEEN, Measured
from defectcls.model.backbone import Backbone, in_pieces, one_by_one
from defectcls.model.features import FrozenFeatures
from defectcls.model.head import LEAST_DEVIATION
from defectcls.model.memory import in_float32

if TYPE_CHECKING:
    from defectcls.data.datamodule import DefectDataModule

MOST, MEASURED = 10_000, 2_000  # training photos, and measured ones: 80 MB of distances
DIMENSIONS = 64  # random ones: in principal ones new photos seem nearer than those of which these are made
LEAST = 0.01  # deviation of an appearance
TINY = 1e-30


class Likeness(nn.Module):
    """Pixels and features -> `defectcls.deployment.predictor.COMPARED`, in its order.

    Args:
        kept: of f features and appearances `centre` (f,) and `projection` (f, dimensions); `bank` (photos, dimensions),
            `defective` bool (photos,); ascending `distances` of measured photos (n,); `measured`, as of `Measured`.

    Raises:
        UserError: they do not fit together.
    """

    def __init__(self, kept: dict[str, Any], feature_count: int) -> None:
        super().__init__()
        self.measured = Measured(**kept["measured"])
        f, photos, dimensions = feature_count + len(SEEN), len(self.measured.paths), DIMENSIONS + len(SEEN)
        shapes = {"centre": (f,), "projection": (f, dimensions), "bank": (photos, dimensions), "defective": (photos,)}
        shapes |= {"distances": (self.measured.photos,)}
        for name, shape in shapes.items():
            kind = torch.bool if name == "defective" else torch.float32
            if (kept[name].shape, kept[name].dtype) != (shape, kind) or not 0 < shape[0] <= f + MOST:
                raise UserError(f"what it remembers of photos does not fit together ({name})")
        buffers = (nn.Buffer(kept[name], persistent=False) for name in shapes)
        self.centre, self.projection, self.bank, self.defective, self.distances = buffers

    def forward(self, image: torch.Tensor, features: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(batch, 3, height, width), float32 (batch, feature_count) -> (batch,) each; on a CPU alike in any batch."""
        seen = appearance(image.to(features.device))
        exact = torch.float32 if features.device.type == "mps" else torch.float64  # an Apple GPU has no other

        def compare(piece: torch.Tensor) -> tuple[torch.Tensor, ...]:
            squares = squared_distances((piece - self.centre) @ self.projection, self.bank)
            sides = [squares.masked_fill(others, torch.inf) for others in (self.defective, ~self.defective)]
            least, nearest = torch.stack(sides, 1).min(2)
            distance = least.amin(1, keepdim=True).clamp_min(0).sqrt().to(exact)
            steps = torch.cat([self.distances.new_zeros(1), self.distances]).to(exact)
            between = ((distance - steps[:-1]) / (steps[1:] - steps[:-1]).clamp_min(TINY)).clamp(0, 1).sum(1)
            beyond = (1 - steps[-1] / distance.clamp_min(TINY)).clamp_min(0)[:, 0]
            return (between + beyond) / len(steps), *torch.where(least.isfinite(), nearest, -1).unbind(1)

        with in_float32(features.device):
            return *in_pieces(compare, torch.cat([features.float(), seen], 1)), *seen.to(exact).unbind(1)


def appearance(image: torch.Tensor) -> torch.Tensor:
    """SEEN of a quarter of the pixels: logarithms of light, contrast and sharpness, shares of the light; none follows
    another. 0..255 (batch, 3, height, width) -> float32 (batch, 5), in a millisecond an image.
    """
    found = []
    for some in one_by_one(image[:, :, ::2, ::2].float()):
        grey = some.mean(1)
        light = grey.mean((1, 2)) + 1
        deviation = (grey - grey.mean((1, 2), keepdim=True)).square().mean((1, 2)).sqrt() + 1
        edges = [grey[:, 1:] - grey[:, :-1], grey[..., 1:] - grey[..., :-1]]
        sharpness = (sum(edge.abs().mean((1, 2)) for edge in edges) + 1) / deviation
        shares = [(some.amax(1) - some.amin(1)).mean((1, 2)) / light, (some[:, 0] - some[:, 2]).mean((1, 2)) / light]
        found.append(torch.stack([light.log(), (deviation / light).log(), sharpness.log(), *shares], 1))
    return torch.cat(found)


def squared_distances(points: torch.Tensor, bank: torch.Tensor) -> torch.Tensor:
    """float32 (points, dimensions), (photos, dimensions) -> (points, photos)."""
    return torch.addmm(points.square().sum(1, keepdim=True) + bank.square().sum(1), points, bank.T, alpha=-2)


def learn_likeness(
    backbone: Backbone, stored: FrozenFeatures | None, data: "DefectDataModule", measured: np.ndarray
) -> dict[str, Any]:
    """`likeness`, what one is made of, of at most MOST training photos and MEASURED of the rows `measured`; or nothing.

    Args:
        stored: features that are used where they are of the backbone's weights of now.
    """
    generator, units = np.random.default_rng([data.seed, 5]), data.samples["unit"].to_numpy()
    same = stored is not None and stored.weights == backbone.digest()
    frozen = stored if stored and same else FrozenFeatures(backbone, data.digests)
    parts = (data.part("train"), MOST), (measured, MEASURED)
    taught, judged = (np.sort(generator.permutation(part)[:most]) for part, most in parts)

    def seen(rows: np.ndarray) -> np.ndarray:
        image = data.images[rows]
        both = frozen.look({"image": image, "index": torch.from_numpy(rows)})[0].cpu(), appearance(image).cpu()
        return torch.hstack(both).numpy()

    split = ([*map(seen, np.array_split(part, len(part) // data.batch_size + 1))] for part in (taught, judged))
    of_taught, of_judged = map(np.concatenate, split)
    kept: dict[str, Any] = fit_likeness(of_taught, of_judged, units[judged, None] == units[taught])
    if not len(kept["distances"]):
        return {}
    kept["defective"] = torch.from_numpy(data.samples["defective"].to_numpy(bool)[taught])
    looks = np.hstack([of_judged[:, -len(SEEN) :], data.images.records["file"][judged]])
    paths, photos = [*map(writable, data.samples["path"][taught])], len(kept["distances"])
    about = Measured(photos=photos, low=looks.min(0).tolist(), high=looks.max(0).tolist(), paths=paths)
    return {"likeness": kept | {"measured": about.model_dump()}}


def fit_likeness(taught: np.ndarray, judged: np.ndarray, tied: np.ndarray) -> dict[str, torch.Tensor]:
    """Parts of a `Likeness`, of features and appearance float32 (photos, f) of training photos and of measured ones.

    No `distances` of photos that are tied, bool (measured, training photos), to all others.
    """
    centre, std, count = taught.mean(0), taught.std(0), taught.shape[1] - len(SEEN)
    least = np.r_[np.full(count, LEAST_DEVIATION * std[:count].mean() or 1.0), np.full(len(SEEN), LEAST)]
    drawn = np.random.default_rng(0).normal(size=(count, DIMENSIONS)) / np.sqrt(count * DIMENSIONS)
    axes = block_diag(drawn, np.eye(len(SEEN)) / np.sqrt(len(SEEN)))  # features weigh as much as the appearance
    projection = (axes / np.maximum(std, least)[:, None]).astype(np.float32)
    bank, points = (torch.from_numpy((some - centre) @ projection) for some in (taught, judged))
    squares = squared_distances(points, bank).masked_fill_(torch.from_numpy(tied), torch.inf).amin(1)
    distances = squares[squares.isfinite()].clamp_min(0).sqrt().sort().values
    constants = {"centre": torch.from_numpy(centre), "projection": torch.from_numpy(projection)}
    return constants | {"bank": bank, "distances": distances}
