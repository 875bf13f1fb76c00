"""Near-identical images: what was planted is found, nothing else is, and no file is read twice."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter

from defectcls.data import fingerprints
from defectcls.data.digests import digest_files
from defectcls.data.fingerprints import FREQUENCIES, RECORD, SIDE, Fingerprints, fingerprint_files, grey_pixels
from defectcls.data.near_duplicates import (
    NEIGHBOURS,
    TABLES,
    _in_one_bucket,
    agreement,
    candidate_pairs,
    detail_of,
    near_identical_pairs,
)
from defectcls.data.store import Store
from defectcls.data.synthetic import Synthetic

Pair = tuple[int, int]


def texture(seed: int, side: int = 160, grain: float = 2.0) -> np.ndarray:
    """Grey values of a rough surface, float32 (side, side)."""
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=(side, side)), grain)
    return (128 + 25 * noise / noise.std()).astype(np.float32)


def save(path: Path, grey: np.ndarray, quality: int = 95) -> Path:
    Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8)).save(path, quality=quality)
    return path


def store_in(folder: Path) -> Store:
    return Store(folder, "images.sqlite", None)


def prints_of(paths: list[Path], cache: Path) -> Fingerprints:
    files = [str(path) for path in paths]
    return fingerprint_files(files, digest_files(files).digests, "8", store_in(cache))


def found(paths: list[Path], cache: Path) -> set[Pair]:
    """Positions of near-identical images, the lower first."""
    store, files = store_in(cache), [str(path) for path in paths]
    pairs = near_identical_pairs(files, prints_of(paths, cache), store)
    return {(min(pair), max(pair)) for pair in pairs.tolist()}


def drawn(root: Path, **knobs: float) -> tuple[list[Path], set[Pair]]:
    """Files of the built-in dataset, and the twins planted among them."""
    samples = Synthetic(root=root, **knobs).sample_table()
    row_of = {path: row for row, path in enumerate(samples["path"])}
    twins = samples[samples["twin_of"] != ""]
    pairs = zip(twins["path"].map(row_of), twins["twin_of"].map(row_of), strict=True)
    return [root / path for path in samples["path"]], {(min(pair), max(pair)) for pair in pairs}


# --- what is found ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("difficulty", [0, 1])
def test_planted_twins_are_found_and_no_others(tmp_path: Path, difficulty: int) -> None:
    paths, twins = drawn(tmp_path, image_count=150, image_side=64, difficulty=difficulty, near_duplicates=0.3)
    assert len(twins) == 45
    assert found(paths, tmp_path / "cache") == twins


@pytest.mark.parametrize("entry", [b"", b"\xff" * 8, b"\xff" * 3])
def test_damaged_entries_are_computed_anew(tmp_path: Path, entry: bytes) -> None:
    """NaN in a fingerprint or an agreement would find no twin; another length ended in a traceback."""
    paths, twins = drawn(tmp_path / "photos", image_count=20, image_side=64, difficulty=0, near_duplicates=0.3)
    cache = tmp_path / "cache"
    assert found(paths, cache) == twins != set()
    records = prints_of(paths, cache).records
    keys = [key for (key,) in store_in(cache).connection.execute("SELECT key FROM entries")]
    store_in(cache).put((key, entry if len(entry) != 8 else entry * (RECORD.itemsize // 8)) for key in keys)
    assert np.array_equal(prints_of(paths, cache).records, records)
    store_in(cache).put((key, entry) for key in keys)
    assert found(paths, cache) == twins


@pytest.mark.slow
@pytest.mark.parametrize("side", [64, 128, 256])
@pytest.mark.parametrize("difficulty", [0, 1])
def test_twins_among_a_thousand(tmp_path: Path, side: int, difficulty: int) -> None:
    paths, twins = drawn(tmp_path, image_count=1200, image_side=side, difficulty=difficulty, near_duplicates=1 / 6)
    pairs = found(paths, tmp_path / "cache")
    assert not pairs - twins
    assert len(pairs) >= 0.99 * len(twins) == 0.99 * 200


def test_all_at_once(tmp_path: Path) -> None:
    """Shifted by three pixels each way, a fifth brighter and re-encoded at quality 60; few files and many."""
    scene = texture(0, 166)
    paths = [save(tmp_path / "a.jpg", scene[3:163, 3:163]), save(tmp_path / "b.jpg", 1.2 * scene[:160, 6:], 60)]
    assert found(paths, tmp_path / "cache") == {(0, 1)}
    paths += [save(tmp_path / f"{seed}.jpg", texture(seed)) for seed in range(1, 60)]
    assert found(paths, tmp_path / "cache") == {(0, 1)}


@pytest.mark.parametrize("count", [0, 60])
@pytest.mark.parametrize("flip", ["FLIP_LEFT_RIGHT", "FLIP_TOP_BOTTOM", "ROTATE_180"])
def test_flipped_and_re_encoded(tmp_path: Path, flip: str, count: int) -> None:
    """Among few, which are compared each with each, and among many."""
    paths = [save(tmp_path / "a.png", texture(0)), tmp_path / "b.jpg"]
    Image.open(paths[0]).transpose(Image.Transpose[flip]).save(paths[1], quality=60)
    paths += [save(tmp_path / f"{seed}.jpg", texture(seed)) for seed in range(1, 1 + count)]
    assert found(paths, tmp_path / "cache") == {(0, 1)}


def test_a_shape_in_common_is_not_enough(tmp_path: Path) -> None:
    """Parts of one shape under one lamp, each with a skin of its own."""
    rows, columns = np.mgrid[:160, :160] - 80.0
    shape = 60 * (np.hypot(rows, columns) < 55) + columns / 4
    paths = [save(tmp_path / f"{seed}.png", shape + 0.4 * texture(seed)) for seed in range(40)]
    assert found(paths, tmp_path / "cache") == set()


def test_one_place_that_differs_is_seen(tmp_path: Path) -> None:
    """The same scene with another patch in it, a thirtieth of the area: as one part beside another of its kind."""
    scene, changed = texture(0, 256), texture(0, 256)
    changed[60:108, 4:52] = texture(1, 256)[60:108, 4:52]
    overall, at_worst = agreement(detail_of(scene), detail_of(changed))
    assert overall > 0.94
    assert at_worst < 0.85
    assert found([save(tmp_path / "a.png", scene), save(tmp_path / "b.png", changed)], tmp_path / "cache") == set()


def test_blank_and_unreadable_files_are_no_twins_and_copies_count_once(tmp_path: Path) -> None:
    paths = [save(tmp_path / f"grey_{value}.png", np.full((64, 64), value)) for value in (100, 101)]
    for name in ("cut.jpg", "also.jpg"):
        (tmp_path / name).write_bytes(save(tmp_path / "whole.jpg", texture(0)).read_bytes()[:900])
        paths.append(tmp_path / name)
    paths += [save(tmp_path / "a.png", texture(0)), save(tmp_path / "b.jpg", texture(0))]
    paths += [tmp_path / "copy.png", tmp_path / "missing.png"]
    (tmp_path / "copy.png").write_bytes((tmp_path / "a.png").read_bytes())
    assert found(paths, tmp_path / "cache") == {(4, 5)}


def test_an_image_and_its_smaller_version_are_twins(tmp_path: Path) -> None:
    large = texture(0, 320, grain=4)
    small = np.asarray(Image.fromarray(large).resize((200, 200), Image.Resampling.BICUBIC))
    paths = [save(tmp_path / "large.png", large), save(tmp_path / "small.png", small)]
    assert found(paths, tmp_path / "cache") == {(0, 1)}


# --- the sieves -------------------------------------------------------------------------------------------------------


def test_spectrum_is_the_plain_sum_of_waves(tmp_path: Path) -> None:
    """Against the definition of the Fourier transform, frequency by frequency."""
    path = save(tmp_path / "a.png", texture(3, SIDE))
    grey = grey_pixels(str(path), SIDE, "8").astype(np.float64)
    window = np.outer(np.hanning(SIDE + 2)[1:-1], np.hanning(SIDE + 2)[1:-1])
    level = (grey * window).sum() / window.sum()
    rows, columns = np.mgrid[:SIDE, :SIDE] / SIDE
    waves = [np.exp(-2j * np.pi * (down * rows + across * columns)) for down, across in FREQUENCIES]
    expected = np.array([((grey - level) * window * wave).sum() for wave in waves]) / window.sum()
    prints = prints_of([path], tmp_path / "cache")
    assert np.allclose(prints.spectra[0], expected, atol=2e-3 * np.abs(expected).max())
    assert (prints.records["width"][0], prints.records["height"][0], prints.records["mode"][0]) == (SIDE, SIDE, "L")
    assert prints.records["spread"][0] == pytest.approx(grey.std(), abs=0.01)


def test_near_directions_share_a_bucket_and_far_ones_seldom() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(1000, len(FREQUENCIES)))
    vectors[500:] = vectors[:500] + 0.5 * rng.normal(size=(500, len(FREQUENCIES)))  # cosines about 0.89
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    pairs = {(min(pair), max(pair)) for one, other in _in_one_bucket(vectors) for pair in zip(one, other, strict=True)}
    planted = {(row, row + 500) for row in range(500)}
    assert len(planted & pairs) >= 498
    assert len(pairs) < 0.04 * 1000 * 999 / 2


def test_work_is_bounded_where_all_files_are_alike() -> None:
    count = 400
    vectors = np.ones((count, len(FREQUENCIES))) / np.sqrt(len(FREQUENCIES))
    assert sum(len(one) for one, _ in _in_one_bucket(vectors)) <= TABLES * NEIGHBOURS * count


def test_candidates_are_those_of_an_exhaustive_search(tmp_path: Path) -> None:
    """Hashing may add what is no twin; it must not lose one, whatever their number."""
    paths, twins = drawn(tmp_path, image_count=400, image_side=64, difficulty=0.5, near_duplicates=0.25)
    prints = prints_of(paths, tmp_path / "cache")
    pairs = {tuple(pair) for pair in candidate_pairs(prints.spectra)[:, :2].tolist()}
    assert twins <= pairs
    assert len(pairs) < 2 * len(twins)


@pytest.mark.parametrize("shift", [(0, 0), (5, -3), (-4, 6)])
def test_agreement_is_that_of_the_part_both_show(shift: Pair) -> None:
    scene, (down, across) = texture(0, 200), shift
    one = scene[20:180, 20:180]
    other = scene[20 + down : 180 + down, 20 + across : 180 + across]
    overall, at_worst = agreement(detail_of(one), detail_of(other))
    assert overall > 0.99
    assert at_worst > 0.95
    assert abs(agreement(detail_of(one), detail_of(texture(1)))[0]) < 0.2


# --- what is remembered -----------------------------------------------------------------------------------------------


def test_what_is_known_is_not_decoded_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [save(tmp_path / f"{seed}.png", texture(seed)) for seed in range(3)]
    paths.append(save(tmp_path / "twin.jpg", texture(0), 60))
    first = found(paths, tmp_path / "cache")
    assert first == {(0, 3)}
    prints = prints_of(paths, tmp_path / "cache")
    decoded: list[str] = []
    plain = fingerprints.decode

    def counted(path: str, *arguments: object) -> np.ndarray:
        decoded.append(Path(path).name)
        return plain(path, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(fingerprints, "decode", counted)
    paths[1] = paths[1].rename(tmp_path / "moved.png")
    again = prints_of(paths, tmp_path / "cache")
    assert found(paths, tmp_path / "cache") == first
    assert again.digests == prints.digests
    assert (again.records == prints.records).all()
    assert decoded == []
    save(paths[2], texture(7))
    prints_of(paths, tmp_path / "cache")
    assert decoded == ["2.png"]


def test_nothing_to_compare(tmp_path: Path) -> None:
    nothing = Fingerprints([], np.zeros(0, dtype=RECORD), {}, "8")
    assert near_identical_pairs([], nothing, store_in(tmp_path)).shape == (0, 2)


@pytest.mark.realdata
def test_copies_in_the_concrete_patches_are_re_encoded_too(tmp_path: Path) -> None:
    """Four pairs that eyes have judged, found among 400 others."""
    root = Path(os.environ["DEFECTCLS_DATA"]) / "concrete_crack"
    twins = [("11359_1", "13261_1"), ("04047", "09373"), ("12673_1", "14707_1")]
    twins += [("09326", "16081_1")]  # flipped
    planted = [root / "Positive" / f"{name}.jpg" for pair in twins for name in pair]
    others = sorted((root / "Positive").glob("*.jpg"))[:400]
    paths = [*planted, *(path for path in others if path not in planted)]
    pairs = found(paths, tmp_path)
    assert {(0, 1), (2, 3), (4, 5), (6, 7)} <= pairs
