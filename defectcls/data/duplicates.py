"""What is tied together: copies of one photo, twins and groups must stand on one side of a split."""

import hashlib
import logging
from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from defectcls.data.fingerprints import Cache, fingerprint_files
from defectcls.data.near_duplicates import near_identical_pairs
from defectcls.settings import DatasetSettings

log = logging.getLogger(__name__)

NO_PAIRS = np.zeros((0, 2), dtype=np.int64)


def related_images(samples: pd.DataFrame, settings: DatasetSettings) -> np.ndarray:
    """`split_units` of the ties that `dataset.split.together` names; the files must be readable."""
    together, paths = settings.split.together, [settings.root / path for path in samples["path"]]
    identical = identical_files(paths) if "identical" in together else np.arange(len(paths))
    near = NO_PAIRS
    if "near_identical" in together:
        cache = Cache(settings.cache_dir)
        near = near_identical_pairs(paths, fingerprint_files(paths, cache), cache)
        if len(near):
            log.info("near-identical to another: %d images; each is kept in one part with it", len(np.unique(near)))
    return split_units(identical, samples.get("group") if "group" in together else None, near)


def identical_files(paths: list[Path]) -> np.ndarray:
    """For every file the position of the first file with the same bytes, int64 (files,).

    Only files that share their size are read, so a set without copies costs one `stat` a file.
    """
    by_size = defaultdict(list)
    for position, path in enumerate(paths):
        by_size[path.stat().st_size].append(position)
    first = np.arange(len(paths))
    for positions in by_size.values():
        if len(positions) > 1:
            seen: dict[bytes, int] = {}
            for position in positions:
                with paths[position].open("rb") as file:
                    digest = hashlib.file_digest(file, "blake2b").digest()
                first[position] = seen.setdefault(digest, position)
    return first


def first_of(units: np.ndarray) -> np.ndarray:
    """For every image the position of the first one of its unit, int64 (images,)."""
    _, first, member = np.unique(units, return_index=True, return_inverse=True)
    return first[member]


def split_units(identical: np.ndarray, group: pd.Series | None, near: np.ndarray = NO_PAIRS) -> np.ndarray:
    """Number of the unit each image belongs to, int64 (images,): images tied by a copy, a twin or a group share one.

    Args:
        identical: position of the first byte-identical image, (images,).
        group: photo, part or video; an empty name ties nothing.
        near: positions of near-identical images, (pairs, 2).
    """
    count = len(identical)
    ties = [(np.arange(count), identical), (near[:, 0], near[:, 1])]
    if group is not None:
        named = np.flatnonzero(group.to_numpy() != "")
        _, first, member = np.unique(group.to_numpy()[named].astype(str), return_index=True, return_inverse=True)
        ties.append((named, named[first[member]]))
    rows, columns = (np.concatenate(side) for side in zip(*ties, strict=True))
    graph = coo_array((np.ones(len(rows), dtype=bool), (rows, columns)), shape=(count, count))
    return connected_components(graph, directed=False)[1].astype(np.int64)
