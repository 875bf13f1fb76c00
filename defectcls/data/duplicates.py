"""What is tied together: copies of one photo, twins and groups must stand on one side of a split."""

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

NO_PAIRS = np.zeros((0, 2), dtype=np.int64)


def identical_files(digests: list[bytes]) -> np.ndarray:
    """For every file the position of the first file of the same content, int64 (files,); without a digest its own."""
    first: dict[bytes, int] = {}
    found = (first.setdefault(digest, row) if digest else row for row, digest in enumerate(digests))
    return np.fromiter(found, dtype=np.int64, count=len(digests))


def contradiction(samples: pd.DataFrame, digests: list[bytes]) -> str:
    """A sentence on labelled images of the same bytes and different labels, also one file reached by a link; or ""."""
    first, labels = identical_files(digests), samples["label"].to_numpy()
    rows = np.flatnonzero(labels != labels[first])
    if not len(rows):
        return ""
    pair = " and ".join(f"{samples['path'][row]} ({labels[row]})" for row in (first[rows[0]], rows[0]))
    more = len(np.unique(first[rows])) - 1
    return f"{pair} hold the same bytes under different labels" + (f" ({more} more such)" if more else "")


def first_of(units: np.ndarray) -> np.ndarray:
    """For every image the position of the first one of its unit or group, int64 (images,)."""
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
        ties.append((named, named[first_of(group.to_numpy()[named].astype(str))]))
    rows, columns = (np.concatenate(side) for side in zip(*ties, strict=True))
    graph = coo_array((np.ones(len(rows), dtype=bool), (rows, columns)), shape=(count, count))
    return connected_components(graph, directed=False)[1].astype(np.int64)
