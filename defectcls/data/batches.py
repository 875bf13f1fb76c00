"""Batches of the sample table's rows, and the order in which an epoch takes them."""

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from defectcls.data.reading import Images
from defectcls.errors import UserError

Batch = dict[str, torch.Tensor]


class EpochSampler(DistributedSampler):
    """The order of one epoch as a pure function of seed and epoch, dealt in turn to the processes.

    Every process gets equally many, so the first images are repeated at the end where the count does not divide; their
    `index` tells, and evaluation counts them once.

    Args:
        weights: chance of each image to be drawn, with replacement; None draws each once.
        rank, world: number of this process and of all.
    """

    def __init__(
        self, count: int, seed: int, shuffle: bool, weights: torch.Tensor | None = None, rank: int = 0, world: int = 1
    ) -> None:
        super().__init__(range(count), world, rank, shuffle, seed * 1_000_003)  # type: ignore[arg-type]
        self.weights = weights

    def __iter__(self) -> Iterator[int]:
        if self.weights is None:
            return super().__iter__()
        generator = torch.Generator().manual_seed(self.seed + self.epoch)  # one for all processes
        order = torch.multinomial(self.weights, self.total_size, replacement=True, generator=generator)
        return iter(order[self.rank :: self.num_replicas].tolist())


class Part(Dataset):
    """Rows of the sample table, fetched a whole batch at a time."""

    def __init__(self, images: Images, targets: np.ndarray, rows: np.ndarray) -> None:
        self.images, self.targets, self.rows = images, targets, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, positions: list[int]) -> Batch | UserError:
        rows = self.rows[positions]
        try:
            images = self.images[rows]
        except UserError as error:
            return error  # a worker process would pass on a traceback in its place
        batch = {"image": images, "target": torch.from_numpy(self.targets[rows]), "index": torch.from_numpy(rows)}
        return {name: values.to(images.device, non_blocking=True) for name, values in batch.items()}


class PartLoader(DataLoader):
    """Batches of a `Part`; raises what a worker process has met."""

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        for batch in super().__iter__():
            if isinstance(batch, UserError):
                raise batch
            yield batch
