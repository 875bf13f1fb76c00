"""A detector that joins what it knows of sound parts with the defects it was shown.

A memory of sound patches knows a defect that nobody has seen; a classifier knows what the shown ones have in common.
Both are weighed by how far known defects stand out in each, held to a prior where few are known. The memory alone is
the same without the classifier's term, and needs no defect at all.
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from scipy.special import expit
from torch import nn

from defectcls.errors import UserError
from defectcls.model.memory import Memory, image_scores

FOLDS = 5  # the classifier is solved once more for each
# Log-odds for a deviation of sound images in memory and in classifier, and minus their sum where neither says a thing:
PRIOR = np.array([2.0, 0.5, -2.5])
# Penalty on leaving them: one known defect moves them little, a hundred decide. Equal weights, and such as nothing
# holds, were worse on few defects of screws, bottles, castings and railway components.
HOLD = np.array([5.0, 5.0, 0.1])


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
        scores = image_scores(self.memory(maps)), logits[:, 1] - logits[:, 0]
        terms = [(one - self.mean[i]) / self.deviation[i] * self.weight[i] for i, one in enumerate(scores)]
        odds = terms[0] + terms[1] + self.bias  # not by a matrix product: the same bits in any batch
        return torch.stack([torch.zeros_like(odds), odds], 1)

    def unusual(self, maps: torch.Tensor) -> torch.Tensor:
        """How much farther from the memory than is usual each cell is, (batch, height, width).

        With the usual distance left in, half as much of the heat lay on the defects of bottles.
        """
        return (self.memory(maps) - self.usual).relu()

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
        scores: of memory and classifier, (images, 2), by neither of which the image was learned from, or of the memory
            alone, (images, 1). NaN says nothing.
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
