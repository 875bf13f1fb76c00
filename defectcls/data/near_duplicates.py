"""Near-identical images: one picture re-encoded, brightened, shifted by a few pixels or flipped, or taken twice.

Three sieves, each on what the one before lets through, so that the work grows with the number of files and not with
its square:

1. Magnitudes of the coarse spectra, which a shift leaves alone: near ones fall into one bucket of a random rotation's
   largest coordinate (cross-polytope hashing, Andoni et al. 2015) in at least one of several tables. Each file lies
   in them twice, as it is and mirrored, which its spectrum tells without another look.
2. The coarse spectra with their phases, at the best shift.
3. The pixels. What counts is the detail that is left without the low frequencies, at equal contrast everywhere, so that
   neither a common shape nor common light makes a pair, and the place where it agrees least: two photos of the same
   kind of part under one fixed camera agree in most places.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy import fft
from scipy.ndimage import gaussian_filter, uniform_filter
from tqdm import tqdm

from defectcls.data.fingerprints import FREQUENCIES, Fingerprints, grey_pixels
from defectcls.data.store import Store
from defectcls.data.threads import map_in_threads

FURTHEST_SHIFT = 0.08  # of the frame's side
NEAR, NEAR_AT_WORST = 0.94, 0.89  # `agreement` from which a pair is near-identical, overall and where it is least

FLIPS = (np.s_[:, :], np.s_[:, ::-1], np.s_[::-1, ::-1], np.s_[::-1, :])  # as it is, mirrored, upside down, both
FEW = 32  # so few files are compared each with each: their spectra say little of what is usual
TABLES, NEIGHBOURS = 48, 50  # of hashing: at most so many files of a bucket are compared with each other
LIKE_MAGNITUDES, LIKE_SPECTRA = 0.55, 0.9  # cosines; planted twins of 64 px, the hardest, reach 0.61 and 0.92
# A cosine that a photo of another part hardly reaches: 0 of 240 screws, 145 bottles, 157 transistors, 595 patches of
# concrete and 429 rails, 1 of 571 castings, each beside as many others of its kind (6 of 528 magnetic tiles, which are
# photographed several times). Copies do: 77 to 100 % of those that are re-encoded, darker or at half the size; of
# brighter, shifted and flipped ones fewer or none.
LIKE_COPY = 0.998
PLAIN = 1.0  # a spread in grey values below which there is nothing to compare

LARGEST_SIDE = 256  # pixels that a pair is compared at, or the shorter side of the smaller image
COARSE_SIDE, LIKE_COARSE_DETAIL = 128, 0.9  # first at this side, a third of the work; planted twins reach 0.95 there
BLUR, SCALE = 1.5, 6.0  # pixels: standard deviations of the finest and the coarsest detail
CONTRAST, REGION, GLARE = 31, 35, 25  # pixels: sides of the squares it is evened out, compared and left out in
NOISE = 2.0  # grey values: detail fainter than this is as much the encoder's as the picture's
CLIPPED = 250  # grey values from which a brightened twin has lost its detail
WORST_SHARE = 5  # percent of all places that may agree less
KEPT_DETAILS = 2048  # images, of 0.05 to 0.2 MB each
VERSION = b"near4"  # of `agreement`: a cached one of another version is not found


class Detail(NamedTuple):
    """Fine structure of one image at even contrast, float16 (side, side), and where it is not overexposed, bool."""

    pixels: np.ndarray
    exposed: np.ndarray


def near_identical_pairs(paths: list[str], prints: Fingerprints, store: Store) -> np.ndarray:
    """Pairs of positions (pairs, 2) whose images are near-identical, but no copies; of copies only the first is paired.

    An image is paired with some of its twins, not with all: enough to tie each set of them together.
    """
    _, first = np.unique(np.array(prints.digests, dtype="S16"), return_index=True)
    unreadable = np.array(list(prints.errors), dtype=np.int64)
    files = np.setdiff1d(np.sort(first), unreadable)
    files = files[prints.records["spread"][files] >= PLAIN]
    candidates = candidate_pairs(prints.spectra[files])
    pairs, flips = files[candidates[:, :2]], candidates[:, 2]
    overall, at_worst = _agreements(pairs, flips, paths, prints, store).T
    return np.unique(pairs[(overall >= NEAR) & (at_worst >= NEAR_AT_WORST)], axis=0)


def near_copies(known: np.ndarray, spectra: np.ndarray) -> np.ndarray:
    """Which files are copies of known ones whose pixels are not at hand, by `LIKE_COPY`: bool (files,).

    Where there are too few to tell what is usual, all parts of one kind would be alike: then none is.

    Args:
        known, spectra: complex64 (files, frequencies).
    """
    copies = np.zeros(len(spectra), bool)
    if len(known) + len(spectra) > FEW:
        pairs = candidate_pairs(np.concatenate([known, spectra]), LIKE_COPY)[:, :2] - len(known)
        copies[pairs[(pairs[:, 0] < 0) & (pairs[:, 1] >= 0), 1]] = True
    return copies


def candidate_pairs(spectra: np.ndarray, like: float = LIKE_SPECTRA) -> np.ndarray:
    """Positions of two files that may be near-identical, and how one is flipped, (candidates, 3): sieves 1 and 2.

    Args:
        spectra: complex64 (files, frequencies).
        like: cosine from which they may.
    """
    if len(spectra) < 2:
        return np.zeros((0, 3), dtype=np.int64)
    count, views = len(spectra), np.concatenate([spectra, _mirrored(spectra)])
    magnitudes = np.log(np.abs(views) + 1e-3)
    magnitudes -= magnitudes.mean(axis=1, keepdims=True)  # a gain changes nothing
    whitened = _unit_rows((magnitudes - magnitudes.mean(axis=0)) / (magnitudes.std(axis=0) + 1e-3))
    usual = np.sqrt((np.abs(views) ** 2).mean(axis=0)) if count > FEW else np.float32(1)
    phased = _unit_rows(views / (usual + 1e-3))
    found = [np.zeros((0, 3), dtype=np.int64)]
    for one, other in _in_one_bucket(whitened) if count > FEW else [np.triu_indices(2 * count, 1)]:
        worth = (one % count != other % count) & (np.minimum(one, other) < count)  # not mirrored both
        if count > FEW:
            worth &= np.einsum("pf,pf->p", whitened[one], whitened[other]) >= LIKE_MAGNITUDES
        one, other = one[worth], other[worth]
        pair = np.sort(np.stack([one % count, other % count], axis=1), axis=1)
        mirrored = (one < count) != (other < count)
        for turned in (0, 1):  # by 180 degrees, which magnitudes do not tell
            alike = _aligned(phased[one], phased[other].conj() if turned else phased[other]) >= like
            found.append(np.column_stack([pair, mirrored + 2 * turned])[alike])
    return np.unique(np.concatenate(found), axis=0)


def agreement(one: Detail, other: Detail) -> tuple[float, float]:
    """Correlation of two images' detail at the best shift, -1..1: overall, and where it is least.

    Measured at 256 px: one picture saved twice 0.95 and 0.9, two parts of one kind under a fixed camera not both
    of 0.94 and 0.88, two patches of concrete up to 0.3.
    """
    a, b, exposed = _at_best_shift(one, other)
    a, b = a * exposed, b * exposed
    overall = float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum() + 1e-9))
    if overall < NEAR:
        return overall, overall  # a costly question whose answer does not matter
    product, of_a, of_b = (uniform_filter(values, REGION) for values in (a * b, a * a, b * b))
    telling = np.maximum(of_a, of_b) > 0.25  # more contrast than half the noise
    if telling.mean() < 0.01:
        return overall, overall
    local = product[telling] / np.sqrt(of_a[telling] * of_b[telling] + 1e-9)
    return overall, float(np.percentile(local, WORST_SHARE))


def detail_of(grey: np.ndarray) -> Detail:
    """The detail of grey values, float32 (side, side), 0..255."""
    detail = gaussian_filter(grey, BLUR) - gaussian_filter(grey, SCALE, truncate=3)
    contrast = np.sqrt(np.maximum(uniform_filter(detail * detail, CONTRAST), 0))
    exposed = uniform_filter((grey >= CLIPPED).astype(np.float32), GLARE) < 0.02
    return Detail((detail / np.hypot(contrast, NOISE)).astype(np.float16), exposed)


def _agreements(
    pairs: np.ndarray, flips: np.ndarray, paths: list[str], prints: Fingerprints, store: Store
) -> np.ndarray:
    """`agreement` of each pair, of which one is flipped, float32 (pairs, 2), as remembered or computed on all cores."""
    digests = [sorted((prints.digests[one], prints.digests[other])) for one, other in pairs]
    prefix = VERSION + prints.depth.encode()
    keys = [prefix + bytes([flip]) + b"".join(two) for flip, two in zip(flips.tolist(), digests, strict=True)]
    known = {key: entry for key, entry in store.get(keys, 8).items() if np.isfinite(np.frombuffer(entry, "f4")).all()}
    missing = [row for row, key in enumerate(keys) if key not in known]
    shorter = np.minimum(prints.records["width"], prints.records["height"])

    @lru_cache(KEPT_DETAILS)
    def detail(position: int, side: int) -> Detail:
        return detail_of(grey_pixels(paths[position], side, prints.depth))

    def compare(row: int) -> bytes:
        one, other = pairs[row].tolist()
        finest = int(min(shorter[one], shorter[other], LARGEST_SIDE))
        for side in sorted({min(finest, COARSE_SIDE), finest}):
            flipped = Detail(*(pixels[FLIPS[flips[row]]] for pixels in detail(other, side)))
            found = agreement(detail(one, side), flipped)
            if found[0] < LIKE_COARSE_DETAIL:
                break
        return np.array(found, dtype=np.float32).tobytes()

    for start in tqdm(range(0, len(missing), 1000), "near-identical", unit_scale=1000, disable=None, leave=False):
        rows = missing[start : start + 1000]
        new = {keys[row]: value for row, value in zip(rows, map_in_threads(compare, rows), strict=True)}
        store.put(new.items())
        known |= new
    return np.frombuffer(b"".join(known[key] for key in keys), dtype=np.float32).reshape(-1, 2)


def _in_one_bucket(directions: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Positions of neighbours in the buckets of each table, at most one pair a file at a time.

    Args:
        directions: unit vectors (files, dimensions).
    """
    count, dimensions = directions.shape
    # As many rotations a key as make about one bucket a file, and two at least.
    rotations = max(2, int(np.ceil(np.log(count) / np.log(2 * dimensions))))
    generator = np.random.default_rng(0)
    for _ in range(TABLES):
        keys = np.zeros(count, dtype=np.int64)
        for _ in range(rotations):
            rotation = np.linalg.qr(generator.normal(size=(dimensions, dimensions)))[0].astype(np.float32)
            turned = directions @ rotation
            largest = np.abs(turned).argmax(axis=1)
            keys = keys * 2 * dimensions + 2 * largest + (turned[np.arange(count), largest] > 0)
        order = np.argsort(keys, kind="stable")
        for step in range(1, min(NEIGHBOURS, count - 1) + 1):
            together = keys[order[step:]] == keys[order[:-step]]
            if not together.any():
                break
            yield order[:-step][together], order[step:][together]


def _mirrored(spectra: np.ndarray) -> np.ndarray:
    """Spectra of the images seen in a mirror: that of (down, -across) is the conjugate of that of (-down, across)."""
    position = {(down, across): column for column, (down, across) in enumerate(FREQUENCIES.tolist())}
    upright = FREQUENCIES[:, 1] == 0  # their (-down, 0) is not kept, and they are their own mirror images
    source = [position[(down if across == 0 else -down, across)] for down, across in FREQUENCIES.tolist()]
    return np.where(upright, spectra, spectra[:, source].conj())


def _aligned(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Correlation of the coarse spectra (pairs, frequencies) at the best of 7 x 7 shifts, (pairs,)."""
    shifts = np.linspace(-FURTHEST_SHIFT, FURTHEST_SHIFT, 7)
    down, across = (grid.ravel() for grid in np.meshgrid(shifts, shifts))
    turns = np.exp(2j * np.pi * (FREQUENCIES[:, :1] * down + FREQUENCIES[:, 1:] * across)).astype(np.complex64)
    return ((one * other.conj()) @ turns).real.max(axis=1)


def _at_best_shift(one: Detail, other: Detail) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pixels of both images where they show the same, at the shift that they agree best at; and what is exposed."""
    side = len(one.pixels)
    window = np.hanning(side + 2)[1:-1].astype(np.float32)
    spectra = [fft.rfft2(image.pixels * window * window[:, None]) for image in (one, other)]
    agreement = fft.irfft2(spectra[0] * spectra[1].conj(), s=(side, side))
    reach = round(FURTHEST_SHIFT * side)
    shifts = np.arange(-reach, reach + 1)  # negative ones count from the end
    best = agreement[np.ix_(shifts, shifts)].argmax()
    down, across = (int(shifts[k]) for k in np.unravel_index(best, (len(shifts), len(shifts))))
    here = slice(max(down, 0), side + min(down, 0)), slice(max(across, 0), side + min(across, 0))
    there = slice(max(-down, 0), side + min(-down, 0)), slice(max(-across, 0), side + min(-across, 0))
    pixels = one.pixels[here].astype(np.float32), other.pixels[there].astype(np.float32)
    return *pixels, one.exposed[here] & other.exposed[there]


def _unit_rows(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
