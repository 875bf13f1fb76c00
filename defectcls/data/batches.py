"""Batches of the sample table's rows."""

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from defectcls.data.reading import Images
from defectcls.data.threads import map_in_threads
from defectcls.errors import UserError

AHEAD = 2  # batches that wait for a GPU

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
        target = torch.from_numpy(self.targets[rows]).to(images.device, non_blocking=True)
        return {"image": images, "target": target, "index": torch.from_numpy(rows)}


class PartLoader(DataLoader):
    """Batches of a `Part`, for a GPU gathered and pinned by a thread ahead of it; raises what a worker has met."""

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        batches = super().__iter__()
        ahead = map_in_threads(lambda _: next(batches), range(len(self)), AHEAD, threads=1)
        for batch in ahead if self.pin_memory else batches:
            if isinstance(batch, UserError):
                raise batch
            yield batch
