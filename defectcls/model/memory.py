"""A memory of sound parts, and a detector that joins it with a classifier of the defects it was shown.

Farthest-first choice after Gonzalez 1985 and Sener and Savarese 2018; patch distances as anomaly score after PatchCore
(Roth et al. 2022). A patch is one cell of the backbone's map of stride 16 as it is: averaged over its neighbours,
normalised, or of turned images too, patches told defects no better. Memory and classifier are weighed by how far known
defects stand out in each, held to a prior where few are known; the memory alone needs no defect at all.

The bank is in parts, one of each fold's sound images. A member remembers all parts but that of its fold, so that it
can judge the images of its fold as new ones; one pass over the bank serves all members.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from scipy.special import expit
from torch import nn

from defectcls.errors import UserError
from defectcls.model.backbone import one_by_one

BANK = 10_000  # patches, 4.5 MB of 112 channels: of 5,000 the AUROC of screws was 0.002 lower
CANDIDATES = 250_000  # patches to choose from, 112 MB likewise
PROJECTION = 32  # random dimensions to choose in: a third of the time of all 96
HOTTEST = 0.01  # share of an image's patches whose mean distance is its score; the maximum is one noisy patch
# Log-odds for a deviation of sound images in memory and in classifier, and minus their sum where neither says a thing:
PRIOR = np.array([2.0, 1.0, -3.0])
# Penalty on leaving them: one known defect moves them little, a hundred decide. Equal and free weights were worse.
HOLD = np.array([5.0, 5.0, 0.1])


class Memory(nn.Module):
    """Patches of sound images, in a part of the bank for each fold."""

    def __init__(self, channels: int, folds: int) -> None:
        super().__init__()
        self.bank = nn.Buffer(torch.zeros(folds, BANK // folds, channels))  # of one shape, so that checkpoints fit
        self.sizes = nn.Buffer(torch.ones(folds, dtype=torch.int64))  # until it learns each part holds a patch of zeros

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """How far each member finds each cell of maps (images, channels, height, width) from what it remembers.

        That is the distance to the nearest patch of all parts but its own, (images, folds, height, width); infinite
        where no other part has patches.
        """
        folds, length, _ = self.bank.shape
        with in_float32(maps.device):
            bank, nearest = self.bank.transpose(1, 2).contiguous(), []
            empty = torch.arange(length, device=bank.device) >= self.sizes[:, None]
            squares = self.bank.square().sum(2).masked_fill(empty, torch.inf)
            own = torch.eye(folds, dtype=torch.bool, device=bank.device)
            for some in one_by_one(as_patches(maps)):
                patches = some.flatten(0, 1)
                # Part by part: 3 MB an image.
                parts = zip(squares, bank, strict=True)
                squared = torch.stack([torch.addmm(of, patches, part, alpha=-2).amin(1) for of, part in parts], 1)
                others = squared[:, None].masked_fill(own, torch.inf).amin(2)
                distances = (others + patches.square().sum(1, keepdim=True)).clamp_min(0).sqrt()
                nearest.append(distances.unflatten(0, some.shape[:2]).transpose(1, 2))
        return torch.cat(nearest).unflatten(2, maps.shape[2:])

    @torch.no_grad()
    def learn(self, maps: Iterable[torch.Tensor], folds: np.ndarray, sound: np.ndarray, seed: int) -> None:
        """Fill the bank.

        Args:
            maps: of all images, in batches.
            folds: number of each image's fold, int (images,).
            sound: whose patches it remembers, bool (images,).
        """
        generator = np.random.default_rng([seed, 3])
        parts, length, channels = self.bank.shape
        of_image = max(1, CANDIDATES // max(1, int(sound.sum())))  # candidates
        drawn: list[list[torch.Tensor]] = [[] for _ in range(parts)]
        for row, patches in enumerate(patches for batch in maps for patches in as_patches(batch)):
            if sound[row]:
                some = generator.permutation(len(patches))[:of_image]
                drawn[folds[row]].append(patches[torch.from_numpy(some)])
        for part, candidates in enumerate(drawn):
            patches = torch.cat([*candidates, self.bank.new_empty(0, channels)])
            if len(patches) > length:
                projection = torch.from_numpy(generator.normal(size=(channels, PROJECTION))).to(patches)
                first = int(generator.integers(len(patches)))
                patches = patches[farthest_first(patches @ projection, length, first)]
            self.bank[part, : len(patches)] = patches
            self.sizes[part] = len(patches)


def of_members(said: torch.Tensor, folds: torch.Tensor | None) -> torch.Tensor:
    """(images, members, …) -> (images, …): what the member of each image's fold says; of fold -1 and None the mean."""
    if folds is None:
        return said.mean(1)
    own = folds.to(said.device)
    alone = said[torch.arange(len(own), device=said.device), own]  # of -1 the last, unused
    return torch.where((own < 0).view(-1, *[1] * (said.ndim - 2)), said.mean(1), alone)


def image_scores(distances: torch.Tensor) -> torch.Tensor:
    """The mean of the hottest cells: (images, members, height, width) -> (images, members)."""
    count = max(1, round(HOTTEST * distances[0, 0].numel()))
    return torch.cat([one.flatten(2).topk(count).values.mean(2) for one in one_by_one(distances)])


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
    with in_float32(points.device):
        for number in range(1, count):
            newest = points[chosen[number - 1 : number]][0]  # not by a number, which a GPU would have to hand over
            found = torch.addmv(squares, points, newest, alpha=-2).add_(newest @ newest)
            chosen[number] = torch.minimum(distance, found, out=distance).argmax()
    return chosen


@contextmanager
def in_float32(device: torch.device) -> Iterator[None]:
    """Differences of squares lose what half precision or TF32 would leave of them."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


class Joined(nn.Module):
    """log-odds of "defective" = weight · ((memory, classifier) - mean) / deviation + bias, of each member.

    Until it has learned they are the classifier's own. Which type of defect it is the classifier says.

    Args:
        channels: of the maps.
        defective: which classes are, in logit order.
        folds: and members.
    """

    def __init__(self, channels: int, defective: Sequence[bool], folds: int) -> None:
        super().__init__()
        self.memory = Memory(channels, folds)
        self.defective = nn.Buffer(torch.tensor([*defective]), persistent=False)
        self.mean, self.deviation = nn.Buffer(torch.zeros(folds, 2)), nn.Buffer(torch.ones(folds, 2))
        self.weight = nn.Buffer(torch.tensor([[0.0, 1.0]]).repeat(folds, 1))
        self.bias = nn.Buffer(torch.zeros(folds))
        self.usual = nn.Buffer(torch.tensor(0.0))  # distance of patches of sound images

    def forward(self, logits: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
        """The members' logits (batch, folds, classes) and maps (batch, channels, height, width) -> logits float32."""
        return self.join(logits, image_scores(self.memory(maps)))

    def join(self, logits: torch.Tensor, remembered: torch.Tensor) -> torch.Tensor:
        """Logits (batch, folds or 1, classes) and scores of the memory (batch, folds or 1) -> logits of all folds."""
        sound, defective = self._sides(logits)
        scores = torch.stack([remembered, defective - sound], 2)
        half = (((scores - self.mean) / self.deviation * self.weight).sum(2) + self.bias) / 2
        return logits + torch.where(self.defective, (half - defective)[..., None], (-half - sound)[..., None])

    def _sides(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-odds of "sound" and of "defective", against nothing, of logits (..., classes)."""
        sides = self.defective, ~self.defective
        sound, defective = (logits.masked_fill(other, -torch.inf).logsumexp(-1) for other in sides)
        return sound, defective

    def unusual(self, distances: torch.Tensor, folds: torch.Tensor | None = None) -> torch.Tensor:
        """How much farther than is usual each cell is, (batch, height, width), by what the memory says of maps.

        `folds` as of `Network.judge`.
        """
        return (of_members(distances, folds) - self.usual).relu()  # left in, half as much lay on defects

    @torch.no_grad()
    def learn(
        self,
        passes: Callable[[], Iterable[torch.Tensor]],
        classified: np.ndarray | None,
        defective: np.ndarray,
        folds: np.ndarray,
        seed: int,
    ) -> torch.Tensor:
        """Fill the memory and `weigh` it against the classifier, by what members say of images that they have not seen.

        Args:
            passes: the maps of all images, in batches, from the first on at each of two calls.
            classified: the classifier's logits of each image by its member, (images, classes); NaN where there are
                none. None leaves the classifier out.
            defective: bool (images,).
            folds: number of each image's fold, int (images,).

        Returns:
            Logits of each image by its member, float32 (images, classes).
        """
        self.memory.learn(passes(), folds, ~defective, seed)
        own = torch.from_numpy(folds)
        found, first = [], 0
        for maps in passes():
            found.append(of_members(self.memory(maps), own[first : first + len(maps)]))
            first += len(maps)
        distances = torch.cat(found)
        remembered = image_scores(distances[:, None])[:, 0]
        scores, said = [remembered.cpu().numpy()], remembered.new_zeros(len(folds), len(self.defective))
        if classified is not None:
            said = torch.from_numpy(classified).to(said)
            sound, defect = self._sides(said)
            scores.append((defect - sound).cpu().numpy())
        self.weight.zero_()
        for fold in range(len(self.weight)):
            others = folds != fold
            mean, deviation, weight, bias = weigh(np.stack(scores, 1)[others], defective[others])
            for own_values, values in ((self.mean, mean), (self.deviation, deviation), (self.weight, weight)):
                own_values[fold, : len(values)] = torch.from_numpy(values).float()  # an Apple GPU has no float64
            self.bias[fold] = bias
        cells = distances[torch.from_numpy(~defective)].flatten(1).sort(1).values  # median(1) may differ on a GPU
        self.usual.fill_(cells[:, (cells.shape[1] - 1) // 2].median())
        return of_members(self.join(said[:, None], remembered[:, None]), own)

    def describe(self) -> dict[str, Any]:
        """What metrics.json says: weights in log-odds for a deviation of sound images, and patches in the bank."""
        memory, classifier = self.weight.mean(0).tolist()
        return {"memory": memory, "classifier": classifier, "bank": int(self.memory.sizes.sum())}


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
