"""Batches of the sample table's rows."""

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from defectcls.data.reading import Images
from defectcls.errors import UserError

Batch = dict[str, torch.Tensor]


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
