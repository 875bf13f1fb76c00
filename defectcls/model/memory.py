"""A memory of sound parts: a bounded bank of their patches, and how far those of another image are from it.

Farthest-first choice after Gonzalez 1985 and Sener and Savarese 2018; patch distances as anomaly score after PatchCore
(Roth et al. 2022). A patch is one cell of the backbone's map of stride 16 as it is: averaged over its neighbours,
normalised, or of turned images too, patches told defects no better.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

BANK = 10_000  # patches, 4 MB of 96 channels: parts lie at any angle, and 2,500 cost the AUROC of screws 0.01 to 0.02
CANDIDATES = 250_000  # patches to choose from, 96 MB likewise; a random 50,000 lack the rare ones and cost 0.02
PROJECTION = 32  # random dimensions to choose in: a third of the time of all 96
HOTTEST = 0.02  # share of an image's patches whose mean distance is its score; the maximum is one noisy patch


class Memory(nn.Module):
    """Patches of sound images; an empty bank is 0 away from everything.

    Args:
        channels: of the maps.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bank: torch.Tensor
        self.size: torch.Tensor
        self.register_buffer("bank", torch.zeros(BANK, channels))  # of a fixed shape, so that a checkpoint fits
        self.register_buffer("size", torch.tensor(0))

    def forward(self, maps: torch.Tensor, apart: torch.Tensor | None = None) -> torch.Tensor:
        """Distance of each cell of maps (images, channels, height, width) to the nearest of the bank, without channels.

        Args:
            apart: patches that an image is not compared with, bool (images, size).
        """
        bank = self.bank[: int(self.size)]
        if not len(bank):
            return torch.zeros_like(maps[:, 0], dtype=torch.float32)
        with _in_float32(maps.device):
            squares, transposed = bank.square().sum(1), bank.T.contiguous()
            nearest = []
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
        """Fill the bank with patches of the sound images, and score all images as if they were new.

        No image is compared with patches of its own unit. Scores so found are up to a deviation above those of new
        images, whose own kin the bank may hold: they serve to weigh, not to set a threshold.

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
        patches, owners, held = _draw(passes(), sound, units, generator)
        chosen = torch.arange(len(patches), device=patches.device)
        if len(patches) > BANK:
            projection = torch.from_numpy(generator.normal(size=(patches.shape[1], PROJECTION))).to(patches)
            chosen = farthest_first(patches @ projection, BANK, int(generator.integers(len(patches))))
        self.bank[: len(chosen)] = patches[chosen]
        self.size.fill_(len(chosen))
        kin = owners[chosen.cpu().numpy()]
        scores, medians, seen = [], [], 0
        for maps in held or passes():
            own = units[seen : seen + len(maps)]
            distances = self(maps, torch.from_numpy(own[:, None] == kin).to(maps.device))
            scores.append(image_scores(distances))
            medians.append(distances[torch.from_numpy(sound[seen : seen + len(maps)])].flatten(1).median(1).values)
            seen += len(maps)
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

    A pass over all points for each: 10,000 of 250,000 take 14 s on one CPU core.
    """
    squares = points.square().sum(1)
    distance = torch.full_like(squares, torch.inf)
    chosen = torch.full((count,), first, device=points.device)
    with _one_thread(), _in_float32(points.device):
        for number in range(1, count):
            newest = points[chosen[number - 1 : number]][0]  # not by a number, which a GPU would have to hand over
            torch.minimum(distance, torch.addmv(squares, points, newest, alpha=-2).add_(newest @ newest), out=distance)
            chosen[number] = distance.argmax()
    return chosen


def _draw(
    batches: Iterable[torch.Tensor], sound: np.ndarray, units: np.ndarray, generator: np.random.Generator
) -> tuple[torch.Tensor, np.ndarray, list[torch.Tensor]]:
    """At most `CANDIDATES` random patches of sound images, the unit of each, and the maps, if they are few enough."""
    drawn, owners, held = [], [], []
    image, patch, wanted = 0, 0, np.empty(0, np.int64)
    for maps in batches:
        cells = maps[0, 0].numel()
        if not image:
            total = int(sound.sum()) * cells
            wanted = np.sort(generator.choice(total, min(total, CANDIDATES), replace=False, shuffle=False))
        rows = image + np.flatnonzero(sound[image : image + len(maps)])
        own = wanted[np.searchsorted(wanted, patch) : np.searchsorted(wanted, patch + len(rows) * cells)] - patch
        drawn.append(as_patches(maps[rows - image]).flatten(0, 1)[torch.from_numpy(own)])
        owners.append(units[rows[own // cells]])
        if len(sound) * cells <= CANDIDATES:
            held.append(maps)
        image, patch = image + len(maps), patch + len(rows) * cells
    return torch.cat(drawn), np.concatenate(owners), held


@contextmanager
def _one_thread() -> Iterator[None]:
    """Many small steps: several threads are no faster, and wait for each other where others use the cores too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


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
