"""What frozen layers make of an image, computed once: features for a head, activations for the layers above."""

import hashlib
from collections.abc import Iterable
from contextlib import AbstractContextManager

import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from defectcls.data.batches import Batch
from defectcls.data.cache import free_memory
from defectcls.data.store import Store
from defectcls.model.augment import Augment, mirrored
from defectcls.model.backbone import Backbone
from defectcls.model.graph import Layers

VERSION = b"2"  # of what is kept and how it is computed: an entry of another version is not found


class FrozenLayers:
    """Outputs of frozen layers for images and their augmented copies, each computed when it is first asked for.

    A copy is a pure function of seed, image and its number: the epochs of a stage, the runs of a sweep and the folds of
    a cross-validation meet the same ones.

    Args:
        backbone: whose layers they are; what is computed belongs to the weights that it has now.
        layers: the frozen ones, pixels 0..255 (batch, 3, side, side) -> outputs (batch, …).
        above: the other ones, outputs -> features (batch, features).
        augment: makes the copies; None where none are asked for.
        digests: of the content of every image that the `index` of a batch may point to.
        seed: of the copies.
        store: where outputs, vectors of float32, are kept for the next run; None: nowhere.
        computed: whatever else decides the outputs, such as precision and image size …
        copied: … and those of copies: the settings of `augment`.
    """

    def __init__(
        self,
        backbone: Backbone,
        layers: Layers,
        above: Layers,
        augment: Augment | None,
        digests: list[bytes],
        seed: int,
        store: Store | None = None,
        *,
        computed: str = "",
        copied: str = "",
    ) -> None:
        self.backbone, self.layers, self.above, self.augment = backbone, layers, above, augment
        self.digests, self.seed, self.store = digests, seed, store
        self.weights = _digest_of(backbone)
        self._prefix = _hash(VERSION, self.weights, computed.encode(), torch.__version__.encode())
        self._copied = copied.encode()
        self._draws: dict[int, torch.Tensor] = {}
        self._known: dict[int, np.ndarray] = {}
        self._outputs: dict[int, torch.Tensor] = {}

    def __deepcopy__(self, memo: dict) -> "FrozenLayers":  # a moving average copies the classifier
        return self

    def below(self, backbone: Backbone) -> "FrozenLayers | None":
        """The same of the layers that are frozen now, kept in memory only; None where it cannot be cut."""
        cut = backbone.split()
        return cut and FrozenLayers(backbone, *cut, self.augment, self.digests, self.seed)

    @torch.no_grad()
    def fit_memory(self, views: int, image_size: int) -> bool:
        """Whether the outputs for all images and so many copies of each take less than half of what is free."""
        device = next(self.backbone.parameters()).device
        image = torch.zeros(2, 3, image_size, image_size, device=device)
        return self.layers(image)[0].nbytes * len(self.digests) * (1 + views) < free_memory(device) / 2

    def hold(self, backbone: Backbone) -> bool:
        """Whether the outputs are those of a backbone's present weights."""
        return _digest_of(backbone) == self.weights

    def features(self, batch: Batch, view: int = 0) -> torch.Tensor:
        """Features (batch, features) of a batch's images.

        Args:
            view: 0: as they are; 1, 2, …: that augmented copy of each; -1, -2, …: turned, see `mirrored`.
        """
        return self.above(self.outputs(batch, view))

    @torch.inference_mode(False)  # what an evaluation computes, training may use
    @torch.no_grad()
    def outputs(self, batch: Batch, view: int) -> torch.Tensor:
        """What the frozen layers make of them, (batch, …)."""
        index = batch["index"].cpu().numpy()
        known = self._known.setdefault(view, np.zeros(len(self.digests), dtype=bool))
        missing = np.flatnonzero(~known[index])
        if len(missing):
            outputs = self._read_or_compute(_some(batch, missing), view)
            if view not in self._outputs:
                self._outputs[view] = outputs.new_empty(len(self.digests), *outputs.shape[1:])
            self._outputs[view][batch["index"][missing]] = outputs
            known[index] = True
        return self._outputs[view][batch["index"]]

    def images(self, batch: Batch, view: int) -> torch.Tensor:
        """Pixels (batch, 3, side, side) of a view of the images."""
        if view < 0:
            return mirrored(batch["image"], 1 - view)[-1]
        if view == 0 or self.augment is None:
            return batch["image"]
        return self.augment(batch["image"], self._draws_of(batch, view).to(batch["image"].device))

    def _read_or_compute(self, batch: Batch, view: int) -> torch.Tensor:
        noisy = view > 0 and self.augment is not None and self.augment.noise  # by another noise in the next run
        if self.store is None or noisy:
            return self.layers(self.images(batch, view))
        keys = self._keys(batch, view)
        known = self.store.get(keys, 4 * self.backbone.features)
        known = {key: entry for key, entry in known.items() if np.isfinite(np.frombuffer(entry, np.float32)).all()}
        missing = np.flatnonzero([key not in known for key in keys])
        if len(missing):
            outputs = self.layers(self.images(_some(batch, missing), view))
            rows = outputs.float().cpu().numpy()
            new = {keys[position]: row.tobytes() for position, row in zip(missing, rows, strict=True)}
            self.store.put(new.items())
            known |= new
        rows = np.stack([np.frombuffer(known[key], np.float32) for key in keys])
        return torch.from_numpy(rows).to(batch["image"].device)

    def _keys(self, batch: Batch, view: int) -> list[bytes]:
        rows = batch["index"].tolist()
        if view == 0:
            return [_hash(self._prefix, self.digests[row]) for row in rows]
        if view < 0:
            return [_hash(self._prefix, self.digests[row], b"turned", str(view).encode()) for row in rows]
        draws = self._draws_of(batch, view).numpy()
        return [
            _hash(self._prefix, self.digests[row], self._copied, drawn.tobytes())
            for row, drawn in zip(rows, draws, strict=True)
        ]

    def _draws_of(self, batch: Batch, view: int) -> torch.Tensor:
        """The numbers that make copy `view` of each image, (batch, Augment.DRAWS)."""
        if view not in self._draws:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + view)
            self._draws[view] = torch.rand(len(self.digests), Augment.DRAWS, generator=generator)
        return self._draws[view][batch["index"].cpu()]


def extract_features(
    frozen: FrozenLayers,
    loader: DataLoader,
    device: torch.device,
    autocast: AbstractContextManager,
    views: Iterable[int] = (0,),
) -> tuple[np.ndarray, np.ndarray]:
    """Features float32 (views x images, features), view by view (see `FrozenLayers.features`), and int64 targets."""
    features, targets = [], []
    with autocast:
        for view in views:
            for batch in tqdm(loader, "features", disable=None, leave=False, unit="batch"):
                on_device = {name: values.to(device) for name, values in batch.items()}
                features.append(frozen.features(on_device, view).float().cpu().numpy())
                targets.append(batch["target"].cpu().numpy())
    return np.concatenate(features), np.concatenate(targets)


def identity(features: torch.Tensor) -> torch.Tensor:
    """Nothing stands above a whole backbone."""
    return features


def _some(batch: Batch, positions: np.ndarray) -> Batch:
    return {name: values[torch.from_numpy(positions)] for name, values in batch.items()}


def _digest_of(backbone: Backbone) -> bytes:
    """Of the weights and what surrounds them; a hundred megabytes take a tenth of a second."""
    state = backbone.body.state_dict()
    named = [
        part for name, value in state.items() for part in (name.encode(), value.cpu().contiguous().numpy().tobytes())
    ]
    return _hash(*named, repr(backbone.options).encode())


def _hash(*parts: bytes) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.digest()
