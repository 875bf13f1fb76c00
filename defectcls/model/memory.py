"""A memory of sound parts, and a detector that joins it with a classifier of the defects it was shown.

Farthest-first choice after Gonzalez 1985 and Sener and Savarese 2018; patch distances as anomaly score after PatchCore
(Roth et al. 2022). A patch is one cell of the backbone's map of stride 16 as it is: averaged over its neighbours,
normalised, or of turned images too, patches told defects no better. Memory and classifier are weighed by how far known
defects stand out in each, held to a prior where few are known; the memory alone needs no defect at all.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from scipy.special import expit
from torch import nn

from defectcls.errors import UserError

BANK = 10_000  # patches, 4 MB of 96 channels: parts lie at any angle, and 2,500 cost the AUROC of screws 0.01 to 0.02
CANDIDATES = 250_000  # patches to choose from, 96 MB likewise; a random 50,000 lack the rare ones and cost 0.02
PROJECTION = 32  # random dimensions to choose in: a third of the time of all 96
HOTTEST = 0.02  # share of an image's patches whose mean distance is its score; the maximum is one noisy patch
FOLDS = 5  # the classifier is solved once more for each
# Log-odds for a deviation of sound images in memory and in classifier, and minus their sum where neither says a thing:
PRIOR = np.array([2.0, 0.5, -2.5])
# Penalty on leaving them: one known defect moves them little, a hundred decide. Equal and free weights were worse.
HOLD = np.array([5.0, 5.0, 0.1])


class Memory(nn.Module):
    """Patches of sound images; an empty bank is 0 away from everything."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bank = nn.Buffer(torch.zeros(BANK, channels))  # of a fixed shape, so that a checkpoint fits
        self.size = nn.Buffer(torch.tensor(0))

    def forward(self, maps: torch.Tensor, apart: torch.Tensor | None = None) -> torch.Tensor:
        """Distance of each cell of maps (images, channels, height, width) to the nearest of the bank, without channels.

        Args:
            apart: patches that an image is not compared with, bool (images, size).
        """
        bank = self.bank[: int(self.size)]
        if not len(bank):
            return torch.zeros_like(maps[:, 0], dtype=torch.float32)
        with _in_float32(maps.device):
            squares, transposed, nearest = bank.square().sum(1), bank.T.contiguous(), []
            for position, patches in enumerate(as_patches(maps)):  # one by one: the same bits in any batch, 31 MB each
                squared = torch.addmm(squares, patches, transposed, alpha=-2)
                if apart is not None:
                    squared[:, apart[position]] = torch.inf
                nearest.append((squared.amin(1) + patches.square().sum(1)).clamp_min(0).sqrt())
        return torch.stack(nearest).view(maps[:, 0].shape)

    @torch.no_grad()
    def learn(
        self, passes: Callable[[], Iterable[torch.Tensor]], sound: np.ndarray, units: np.ndarray, seed: int
    ) -> tuple[np.ndarray, float]:
        """Fill the bank with patches of the sound images, and score all images by patches of other units alone.

        These scores are up to a deviation above those of new images, whose own kin the bank may hold: they serve to
        weigh, not to set a threshold.

        Args:
            passes: the maps of all images, in batches, from the first on at each call; called once where the maps
                together are no more than `CANDIDATES` patches, else twice.
            sound: bool (images,).
            units: images of one unit are related, int (images,).

        Returns:
            Scores float32 (images,), inf where the bank has patches of the image's own unit alone; and the median
            distance of patches of sound images.
        """
        generator = np.random.default_rng([seed, 3])
        of_image = max(1, CANDIDATES // max(1, int(sound.sum())))  # candidates
        drawn, owners, held, image = [], [], [], 0
        for maps in passes():
            for row, patches in enumerate(as_patches(maps), image):
                if sound[row]:
                    some = generator.permutation(len(patches))[:of_image]
                    drawn.append(patches[torch.from_numpy(some)])
                    owners += [units[row]] * len(some)
            held += [maps] if len(sound) * maps[0, 0].numel() <= CANDIDATES else []
            image += len(maps)
        patches, kin = torch.cat(drawn), np.array(owners)
        if len(patches) > BANK:
            projection = torch.from_numpy(generator.normal(size=(patches.shape[1], PROJECTION))).to(patches)
            chosen = farthest_first(patches @ projection, BANK, int(generator.integers(len(patches))))
            patches, kin = patches[chosen], kin[chosen.cpu().numpy()]
        self.bank[: len(patches)] = patches
        self.size.fill_(len(patches))
        scores, medians, image = [], [], 0
        for maps in held or passes():
            rows = slice(image, image + len(maps))
            distances = self(maps, torch.from_numpy(units[rows, None] == kin).to(maps.device))
            scores.append(image_scores(distances))
            medians.append(distances[torch.from_numpy(sound[rows])].flatten(1).median(1).values)
            image += len(maps)
        return torch.cat(scores).cpu().numpy(), float(torch.cat(medians).median())


def image_scores(distances: torch.Tensor) -> torch.Tensor:
    """The mean of the hottest cells: (images, height, width) -> (images,)."""
    count = max(1, round(HOTTEST * distances[0].numel()))
    return torch.stack([one.flatten().topk(count).values.mean() for one in distances])  # the same bits in any batch


def as_patches(maps: torch.Tensor) -> torch.Tensor:
    """(images, channels, height, width) -> float32 (images, height x width, channels)."""
    return maps.float().flatten(2).transpose(1, 2).contiguous()


def farthest_first(points: torch.Tensor, count: int, first: int) -> torch.Tensor:
    """Rows of points (n, dimensions) that cover them all, int64 (count,): each is the farthest from those before it.

    10,000 of 250,000 take 14 s on one CPU core, and several are no faster.
    """
    squares = points.square().sum(1)
    distance = torch.full_like(squares, torch.inf)
    chosen = torch.full((count,), first, device=points.device)
    with _in_float32(points.device):
        for number in range(1, count):
            newest = points[chosen[number - 1 : number]][0]  # not by a number, which a GPU would have to hand over
            found = torch.addmv(squares, points, newest, alpha=-2).add_(newest @ newest)
            chosen[number] = torch.minimum(distance, found, out=distance).argmax()
    return chosen


@contextmanager
def _in_float32(device: torch.device) -> Iterator[None]:
    """Differences of squares lose what half precision or TF32 would leave of them."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


class Joined(nn.Module):
    """logit of "defective" = weight · ((memory, classifier) - mean) / deviation + bias.

    Until it has learned, the logit is the classifier's own.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.memory = Memory(channels)
        self.mean, self.deviation = nn.Buffer(torch.zeros(2)), nn.Buffer(torch.ones(2))
        self.weight, self.bias = nn.Buffer(torch.tensor([0.0, 1.0])), nn.Buffer(torch.tensor(0.0))
        self.usual = nn.Buffer(torch.tensor(0.0))  # distance of patches of sound images

    def forward(self, logits: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
        """The classifier's logits (batch, 2) and maps (batch, channels, height, width) -> logits float32 (batch, 2)."""
        scores = torch.stack([image_scores(self.memory(maps)), logits[:, 1] - logits[:, 0]], 1)
        odds = ((scores - self.mean) / self.deviation * self.weight).sum(1) + self.bias
        return torch.stack([torch.zeros_like(odds), odds], 1)

    def unusual(self, maps: torch.Tensor) -> torch.Tensor:
        """How much farther from the memory than is usual each cell is, (batch, height, width)."""
        return (self.memory(maps) - self.usual).relu()  # left in, half as much of the heat lay on defects

    def learn(
        self,
        passes: Callable[[], Iterable[torch.Tensor]],
        classified: np.ndarray | None,
        defective: np.ndarray,
        units: np.ndarray,
        seed: int,
    ) -> None:
        """Fill the memory and weigh it against the classifier, by training images alone.

        Args:
            passes, units, seed: see `Memory.learn`.
            classified: the classifier's log-odds of each image, out of fold, (images,); NaN where there are none. None
                leaves the classifier out.
            defective: bool (images,).

        Raises:
            UserError: too few sound images.
        """
        remembered, usual = self.memory.learn(passes, ~defective, units, seed)
        scores = [remembered] if classified is None else [remembered, classified]
        mean, deviation, weight, bias = weigh(np.stack(scores, 1), defective)
        self.weight.zero_()
        for own, value in ((self.mean, mean), (self.deviation, deviation), (self.weight, weight)):
            own[: len(scores)] = torch.from_numpy(value)
        self.bias.fill_(bias)
        self.usual.fill_(usual)

    def describe(self) -> dict[str, Any]:
        """What metrics.json says: weights in log-odds for a deviation of sound images, and patches in the bank."""
        memory, classifier = self.weight.tolist()
        return {"memory": memory, "classifier": classifier, "bank": int(self.memory.size)}


def weigh(scores: np.ndarray, defective: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
    """Logistic regression on scores in deviations of sound images, both classes of equal weight, held to `PRIOR`.

    Args:
        scores: of memory and classifier, which have not learned from the image, (images, 2), or of the memory alone,
            (images, 1). NaN says nothing.
        defective: bool (images,).

    Returns:
        Mean and deviation of sound images, and the weights, none below 0, (scores,) each; and the bias.

    Raises:
        UserError: too few sound images.
    """
    from scipy.optimize import minimize  # a second that prediction does without

    sound = scores[~defective & ~np.isnan(scores).any(1)].astype(np.float64)
    if not len(sound) or not np.isfinite(sound).all() or not sound.std(0).all():
        raise UserError(
            f"a memory has to see how sound images differ, and {int((~defective).sum())} for training, of "
            "independent units, are too few: add some, or take model.head=linear"
        )
    mean, deviation = sound.mean(0), sound.std(0)
    inputs = np.column_stack([np.nan_to_num((scores - mean) / deviation), np.ones(len(scores))])
    share = np.where(defective, 1, defective.sum() / (~defective).sum())
    terms = [*range(scores.shape[1]), 2]
    prior, hold = PRIOR[terms], HOLD[terms]

    def loss(found: np.ndarray) -> tuple[float, np.ndarray]:
        odds = inputs @ found
        value = share @ (np.logaddexp(0, odds) - defective * odds) + hold @ (found - prior) ** 2 / 2
        return value, inputs.T @ (share * (expit(odds) - defective)) + hold * (found - prior)

    bounds = [(0, None)] * scores.shape[1] + [(None, None)]
    *weight, bias = minimize(loss, prior, jac=True, bounds=bounds, options={"ftol": 1e-14, "gtol": 1e-9}).x
    return mean, deviation, np.array(weight), bias
