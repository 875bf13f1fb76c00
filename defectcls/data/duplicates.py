"""What must stand on one side of a split: copies of one photo, near twins and groups.

Near-identical are one picture re-encoded, brightened, shifted by a few pixels or flipped, and two taken at once.

Three sieves, by products of matrices, each on what the one before lets through:

1. Magnitudes of the coarse spectra, which a shift leaves alone: of each image those most like it, mirrored or not.
2. The coarse spectra with their phases, at the best shift; then so the spectra of the detail that is left without the
   low frequencies, at equal contrast everywhere, so that neither a common shape nor common light makes a pair.
3. The detail itself, at the best shift to half a pixel. What counts is also the place where it agrees least: two photos
   of the same kind of part under one fixed camera agree in most places.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import fft
from scipy.ndimage import gaussian_filter, uniform_filter
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from tqdm import tqdm

from defectcls.data.images import framed
from defectcls.data.store import Rows
from defectcls.data.threads import map_in_threads
from defectcls.files import digest_of

if TYPE_CHECKING:
    from defectcls.data.reading import Images  # imports torch

NO_PAIRS = np.zeros((0, 2), dtype=np.int64)

THUMBNAIL = 128  # pixels of the square that twins are found by, whatever image_size a model sees
FINEST = 256  # pixels of the side that twins are compared at, by a thumbnail of half of it
LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # of red, green and blue, ITU-R BT.601
COARSE = 6  # highest frequency of a spectrum, in cycles a frame: what a re-encoding leaves alone

_DOWN, _ACROSS = np.r_[: COARSE + 1, -COARSE:0], np.arange(COARSE + 1)  # cycles a frame, in the order of `rfft2`
_RADIUS = np.hypot(_DOWN[:, None], _ACROSS)
_KEPT = (_RADIUS <= COARSE) & (_RADIUS >= 1)
HALF = _KEPT & ((_ACROSS > 0) | (_DOWN[:, None] > 0))  # the frequencies that say all of a real image, each once
_WINDOW = np.outer(np.hanning(THUMBNAIL + 2)[1:-1], np.hanning(THUMBNAIL + 2)[1:-1]).astype(np.float32)

FURTHEST_SHIFT = 0.08  # of the frame's side
NEAR, NEAR_AT_WORST = 0.94, 0.89  # `agreements` from which a pair is near-identical, overall and where it is least

NEIGHBOURS = 64  # of an image and of its mirror image are compared with it, at most
FEW = NEIGHBOURS // 2  # so few images are compared each with each: their spectra say little of what is usual
LIKE_MAGNITUDES, LIKE_SPECTRA = 0.55, 0.9  # cosines; planted twins of 64 px, the hardest, reach 0.61 and 0.92
PLAIN = 1.0  # a spread in grey values below which there is nothing to compare

CYCLES, LIKE_DETAIL = 24, 0.92  # a frame, of the spectra of detail; planted twins reach 0.94 there
BLUR, SCALE = 1.5, 6.0  # pixels of the image: standard deviations of the finest and the coarsest detail
CONTRAST, REGION = 31, 35  # pixels likewise: sides of the squares it is evened out and compared in
NOISE = 2.0  # grey values: detail fainter than this is as much the encoder's as the picture's
WORST_SHARE = 5  # percent of all places that may agree less
COARSE_GRID = np.linspace(-FURTHEST_SHIFT, FURTHEST_SHIFT, 7)
GRID = np.linspace(-FURTHEST_SHIFT, FURTHEST_SHIFT, 33)  # shifts that tell CYCLES apart
AT_ONCE, BLOCK = 64, 1024  # images or pairs that a thread has in memory; images compared with all others at once
AT_MOST = 2**26  # products of images that are in memory, which with their order take 24 bytes each
VERSION = b"3"  # of what is found: pairs of another version are not found in the store

FLIPS = (np.s_[:, :], np.s_[:, ::-1], np.s_[::-1, ::-1], np.s_[::-1, :])  # as it is, mirrored, turned by 180°, both


def contradiction(samples: pd.DataFrame, digests: list[bytes]) -> str:
    """A sentence on labelled images of the same bytes and different labels, also one file reached by a link; or ""."""
    first, labels = first_of(digests), samples["label"].to_numpy()
    rows = np.flatnonzero(labels != labels[first])
    if not len(rows):
        return ""
    pair = " and ".join(f"{samples['path'][row]} ({labels[row]})" for row in (first[rows[0]], rows[0]))
    return f"{pair} hold the same bytes under different labels"


def first_of(units: ArrayLike) -> np.ndarray:
    """For every image the position of the first one of the same unit, group or digest, int64 (images,)."""
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


def fingerprint(upright: np.ndarray, shorter: int) -> tuple[int, np.ndarray, np.ndarray]:
    """By which twins are found: pixels of the side that a photo is compared at, its grey values float32 (THUMBNAIL,
    THUMBNAIL), and their coarse spectrum, complex64 of the shape of HALF.

    Args:
        upright: as `Opened.pixels` gives it, of a photo whose `shorter` side has so many pixels.
    """
    side = 2 ** round(np.log2(np.clip(shorter, 8, FINEST)))
    grid = min(side, THUMBNAIL)
    frame = framed(upright, (grid, grid), "squash", "bilinear")
    frame = frame.repeat(THUMBNAIL // grid, 1).repeat(THUMBNAIL // grid, 2)
    grey = np.tensordot(LUMINANCE, frame.astype(np.float32), 1)
    windowed = (grey - (grey * _WINDOW).sum() / _WINDOW.sum()) * _WINDOW
    return side, grey, np.where(_KEPT, fft.rfft2(windowed)[_DOWN[:, None], _ACROSS], 0) / _WINDOW.sum()


def near_identical_pairs(images: "Images") -> np.ndarray:
    """(image, first of its twins) for every image but the first of near-identical ones, positions (pairs, 2).

    Of copies only the first is looked at. What is found of a set is remembered in the store of its images.
    """
    digests, records = images.digests, images.records
    of_set = [digest_of(VERSION, images.known_thumbnails.name.encode(), *digests)]
    remembered = Rows(images.store, "twins", (len(digests),), np.int64)
    if remembered.find(of_set)[0] < 0:
        files = np.unique(first_of(digests))
        files = files[records["spread"][files] >= PLAIN]
        candidates = candidate_pairs(images.spectra(files))
        candidates[:, :2] = files[candidates[:, :2]]
        sides = records["side"][candidates[:, :2]].min(axis=1)
        near = [near_of(candidates[sides == side], side, images.thumbnails) for side in np.unique(sides)]
        twin = first_of(split_units(np.arange(len(digests)), None, np.concatenate([NO_PAIRS, *near])))
        remembered.add(of_set, [twin])
    twin = remembered[remembered.find(of_set)][0]
    twins = np.flatnonzero(twin != np.arange(len(twin)))
    return np.stack([twins, twin[twins]], axis=1)


def candidate_pairs(spectra: np.ndarray) -> np.ndarray:
    """Positions of two images that may be near-identical, and how one is flipped, (candidates, 3).

    Args:
        spectra: complex64 (images, rows, columns), coarse, as records have them.
    """
    if len(spectra) < 2:
        return np.zeros((0, 3), dtype=np.int64)
    count = len(spectra)
    views = np.concatenate([spectra, _flipped(spectra, np.ones(count))])
    magnitudes = np.log(np.abs(views[:, HALF]) + 1e-3)
    magnitudes -= magnitudes.mean(axis=1, keepdims=True)  # a gain changes nothing
    whitened = (magnitudes - magnitudes.mean(axis=0)) / (magnitudes.std(axis=0) + 1e-3)
    whitened /= np.maximum(np.linalg.norm(whitened, axis=1, keepdims=True), 1e-9)
    usual = np.sqrt((np.abs(views) ** 2).mean(axis=0)) if count > FEW else np.float32(1)
    phased = _of_norm_1(views / (usual + 1e-3))
    found: list[np.ndarray] = []
    block = min(BLOCK, AT_MOST // count + 1)
    for start in tqdm(range(0, count, block), "near twins", disable=None, leave=False):  # in time as the square of all
        alike = whitened[start : min(start + block, count)] @ whitened.T  # (images of the block, views)
        rows = np.arange(len(alike))
        alike[np.concatenate([rows, rows]), np.concatenate([start + rows, start + rows + count])] = -2  # itself
        nearest = np.argpartition(-alike, min(NEIGHBOURS, 2 * count) - 1, axis=1)[:, :NEIGHBOURS]
        near = np.take_along_axis(alike, nearest, 1) >= (LIKE_MAGNITUDES if count > FEW else -1)
        one, other = start + near.nonzero()[0], nearest[near]
        for turned in (False, True):  # by 180 degrees, which magnitudes do not tell
            cross = phased[one] * (phased[other] if turned else phased[other].conj())
            worth = _correlations(cross, COARSE_GRID).max(axis=(1, 2)) >= LIKE_SPECTRA
            flip = (other >= count) + 2 * turned
            found.append(np.column_stack([np.sort(np.stack([one, other % count], 1), 1), flip])[worth])
    return np.unique(np.concatenate(found), axis=0)


def agreements(one: np.ndarray, other: np.ndarray, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Correlation of the detail of grey images at the best shift, -1..1: overall, and where it is least, (pairs,) each.

    Measured at 256 px: one picture saved twice 0.95 and 0.9, two parts of one kind under a fixed camera not both
    of 0.94 and 0.88, two patches of concrete up to 0.3.

    Args:
        one, other: float32 (pairs, side, side), 0..255.
        scale: of the side, to that of the images as they count: `BLUR` and all other lengths are to be so much smaller.
    """
    a, b = (detail_of(images, scale) for images in (one, other))
    side = a.shape[1]
    window = np.hanning(side + 2)[1:-1].astype(np.float32)
    spectra = [fft.rfft2(detail * window * window[:, None]) for detail in (a, b)]
    reach = 2 * round(FURTHEST_SHIFT * side)
    shifts = np.arange(-reach, reach + 1) / 2  # to half a pixel: a shift of the file is one where the side is smaller
    best = _correlations(spectra[0] * spectra[1].conj(), shifts / side).reshape(len(a), -1).argmax(axis=1)
    down, across = (shifts[k][:, None, None] for k in np.unravel_index(best, (len(shifts), len(shifts))))
    turns = np.exp(-2j * np.pi * (fft.fftfreq(side)[:, None] * down + fft.rfftfreq(side) * across))
    b = fft.irfft2(fft.rfft2(b) * turns.astype(np.complex64), s=(side, side))
    rows, columns = np.arange(side)[:, None] - np.rint(down), np.arange(side) - np.rint(across)
    shared = (rows == rows.clip(0, side - 1)) & (columns == columns.clip(0, side - 1))
    products = np.stack([a * b, a * a, b * b]) * shared
    overall = _cosines(*products.sum(axis=(2, 3)))
    product, of_a, of_b = _mean_around(products, REGION * scale)
    telling = shared & (np.maximum(of_a, of_b) > 0.25)  # more contrast than half the noise
    local = np.where(telling, _cosines(product, of_a, of_b), np.inf).reshape(len(a), -1)
    counted = telling.reshape(len(a), -1).sum(axis=1)
    at_worst = np.sort(local, axis=1)[np.arange(len(a)), counted * WORST_SHARE // 100]
    return overall, np.where(counted >= 0.01 * side**2, at_worst, overall)


def detail_of(grey: np.ndarray, scale: float) -> np.ndarray:
    """Fine structure at even contrast, float32 (images, side, side)."""
    blurred = [gaussian_filter(grey, (0, size * scale, size * scale), truncate=3) for size in (BLUR, SCALE)]
    detail = blurred[0] - blurred[1]
    contrast = np.sqrt(np.maximum(_mean_around(detail * detail, CONTRAST * scale), 0))
    return detail / np.hypot(contrast, NOISE)


def near_of(pairs: np.ndarray, side: int, thumbnails: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Those pairs (pairs, 2) of candidates (candidates, 3) that are near-identical.

    The smaller image of each counts as `side` pixels; thumbnails are uint8 (images, THUMBNAIL, THUMBNAIL).
    """
    grid = min(side, THUMBNAIL)
    scale, step = grid / side, THUMBNAIL // grid

    def grey(images: np.ndarray) -> np.ndarray:
        squares = thumbnails(images).reshape(len(images), grid, step, grid, step)
        return squares.mean(axis=(2, 4), dtype=np.float32)

    images, numbers = np.unique(pairs[:, :2], return_inverse=True)
    spectra = _in_batches(lambda some: _detail_spectra(detail_of(grey(some), scale)), images)

    def likeness(rows: np.ndarray) -> np.ndarray:
        one, other = (spectra[of_side] for of_side in numbers.reshape(-1, 2)[rows].T)
        return _correlations(one * _flipped(other, pairs[rows, 2]).conj(), GRID).max(axis=(1, 2))

    def agreement(some: np.ndarray) -> np.ndarray:
        others = zip(grey(some[:, 1]), some[:, 2], strict=True)
        flipped = np.stack([other[FLIPS[flip]] for other, flip in others])
        return np.stack(agreements(grey(some[:, 0]), flipped, scale), axis=1)

    pairs = pairs[_in_batches(likeness, np.arange(len(pairs))) >= LIKE_DETAIL]
    return pairs[(_in_batches(agreement, pairs) >= (NEAR, NEAR_AT_WORST)).all(axis=1), :2] if len(pairs) else NO_PAIRS


def _in_batches(function: Callable[[np.ndarray], np.ndarray], items: np.ndarray) -> np.ndarray:
    """Of all items, on all cores."""
    batches = [items[start : start + AT_ONCE] for start in range(0, len(items), AT_ONCE)]
    return np.concatenate(list(map_in_threads(function, batches)))


def _detail_spectra(detail: np.ndarray) -> np.ndarray:
    """Up to CYCLES, complex64 of norm 1, (images, rows, columns), as `_correlations` takes them."""
    side = detail.shape[1]
    window = np.minimum(4 * np.hanning(side + 2)[1:-1], 1).astype(np.float32)
    highest = min(CYCLES, side // 2 - 1)
    spectra = fft.rfft2(detail * window * window[:, None])[:, np.r_[: highest + 1, -highest:0], : highest + 1]
    return _of_norm_1(spectra)


def _of_norm_1(spectra: np.ndarray) -> np.ndarray:
    """Spectra (images, rows, columns), each over its norm in the whole plane, of which `rfft2` leaves out a half."""
    squares = (np.abs(spectra) ** 2).sum(axis=1)
    norm = np.sqrt(2 * squares.sum(axis=1) - squares[:, 0])
    return spectra / (norm[:, None, None] + np.float32(1e-6))


def _flipped(spectra: np.ndarray, flips: np.ndarray) -> np.ndarray:
    """Spectra (images, rows, columns) of the flipped images, but for a shift by a pixel."""
    upside_down = spectra[:, -np.arange(spectra.shape[1])]
    spectra = np.where(np.isin(flips, (1, 3))[:, None, None], upside_down, spectra)
    return np.where(np.isin(flips, (1, 2))[:, None, None], spectra.conj(), spectra)


def _correlations(cross: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """Of images with these cross spectra (pairs, rows, columns), as `rfft2` orders them, at every two of the shifts.

    Shifts are of the frame; it gives (pairs, shifts down, shifts across).
    """
    rows, columns = cross.shape[1:]
    down = np.exp(2j * np.pi * shifts[:, None] * fft.fftfreq(rows, 1 / rows)).astype(np.complex64)
    across = np.exp(2j * np.pi * np.arange(columns)[:, None] * shifts).astype(np.complex64)
    across[1:] *= 2  # the other half of the plane
    return (down @ (cross @ across)).real


def _cosines(product: np.ndarray, of_one: np.ndarray, of_other: np.ndarray) -> np.ndarray:
    return product / np.sqrt(of_one * of_other + 1e-9)


def _mean_around(values: np.ndarray, side: float) -> np.ndarray:
    """Of a square around each place of the last two axes, of the odd side that is nearest."""
    odd = 2 * int(side / 2) + 1
    return uniform_filter(values, (*[0] * (values.ndim - 2), odd, odd))
