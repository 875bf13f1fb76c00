"""Features of a frozen backbone, computed once: kept in memory, and for the next run in a store."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from defectcls.data import reading
from defectcls.data.batches import Batch
from defectcls.data.store import Rows, Store
from defectcls.model.augment import Augment
from defectcls.model.backbone import Backbone, Look, hash_of

VERSION = b"5"  # of what is kept and how it is computed: an entry of another version is not found


class View(NamedTuple):
    """A way to look at images: by name and pixels alone the same in every run, whatever the batch.

    `change` takes pixels (batch, 3, height, width) and the digests of the images' content.
    """

    name: str
    change: Callable[[torch.Tensor, list[bytes]], torch.Tensor]

    def then(self, view: "View") -> "View":
        """This view of images, in another."""
        name = ", ".join(filter(None, (self.name, view.name)))
        return View(name, lambda image, digests: view.change(self.change(image, digests), digests))


AS_IT_IS = View("", lambda image, _: image)


def laid(way: int) -> View:
    """One of the eight ways to lay an image: 0 is as it is, 1 mirrored, 2 upside down, 3 both, the others on a side."""
    turns, mirrored = (0, 2, 1, 3)[way // 2], way % 2
    change = lambda image, _: image.rot90(turns, (2, 3)).flip([3] * mirrored)  # noqa: E731
    return View(f"laid {way}", change) if way else AS_IT_IS


def copy_of(number: int, augment: Augment, seed: int) -> View:
    """An augmented copy: 0 is the image as it is, 1, 2, … draw otherwise each, from seed, image and number alone.

    The runs of a sweep and the folds of a cross-validation meet the same ones.
    """
    if number == 0:
        return AS_IT_IS

    def change(image: torch.Tensor, digests: list[bytes]) -> torch.Tensor:
        sources = [[seed, number, *np.frombuffer(hash_of(digest), np.uint32)] for digest in digests]
        draws = np.stack([np.random.default_rng(source).random(Augment.DRAWS, np.float32) for source in sources])
        return augment(image, torch.from_numpy(draws).to(image.device))

    return View(f"copy {number} of seed {seed} by {augment.settings}", change)


class FrozenFeatures:
    """Features of images and of views of them, by the weights that a backbone has now; computed when first asked for.

    Args:
        digests: of the content of every image that the `index` of a batch may point to.
        store: where features are kept for the next run; None: nowhere.
        read: whatever else decides the pixels, such as how photos are resized.
        maps: that of each image is kept beside its features.
    """

    def __init__(
        self, backbone: Backbone, digests: list[bytes], store: Store | None = None, read: str = "", maps: bool = False
    ) -> None:
        self.backbone, self.digests, self.with_map = backbone, digests, maps
        self.weights = backbone.digest()
        computed = (read, reading.VERSION, backbone.precision, backbone.mean.device.type, torch.__version__)
        kind = hash_of(VERSION, self.weights, repr(computed).encode()).hex()
        store = store or Store(None)
        self._rows = [Rows(store, f"features-{kind}", (backbone.feature_count,), np.float32)]
        if maps and backbone.map_shape:
            self._rows.append(Rows(store, f"maps-{kind}", backbone.map_shape, np.float32))
        self._look: Look | None = None

    def __deepcopy__(self, memo: dict) -> "FrozenFeatures":  # a moving average copies the classifier
        return self

    def look(self, batch: Batch, view: View = AS_IT_IS) -> tuple[torch.Tensor, ...]:
        """What the backbone makes of a batch's images, see `Backbone.inference`, on its device."""
        digests = [self.digests[row] for row in batch["index"].tolist()]
        keys = [hash_of(digest, view.name.encode()) for digest in digests]
        missing = np.flatnonzero(np.any([rows.find(keys) < 0 for rows in self._rows], axis=0)).tolist()
        device = self.backbone.mean.device
        if missing:
            self._look = self._look or self.backbone.inference(self.with_map)
            pixels = batch["image"][missing].to(device)
            found = self._look(view.change(pixels, [digests[position] for position in missing]))
            for rows, values in zip(self._rows, found, strict=True):
                rows.add([keys[position] for position in missing], values.cpu().numpy())
        return tuple(torch.from_numpy(rows[rows.find(keys)]).to(device) for rows in self._rows)


def extract_features(
    frozen: FrozenFeatures, loader: DataLoader, views: Iterable[View] = (AS_IT_IS,)
) -> tuple[np.ndarray, np.ndarray]:
    """Features float32 (views x images, feature_count), view by view, and int64 targets."""
    features, targets = [], []
    for view in views:
        for batch in tqdm(loader, "features", disable=None, leave=False, unit="batch"):
            features.append(frozen.look(batch, view)[0].cpu().numpy())
            targets.append(batch["target"].cpu().numpy())
    return np.concatenate(features), np.concatenate(targets)
