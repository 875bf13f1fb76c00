"""Near-identical images: what was planted is found, nothing else is, and no file is read twice."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter

from defectcls.data import duplicates
from defectcls.data.duplicates import (
    FLIPS,
    _correlations,
    _detail_spectra,
    _flipped,
    agreements,
    candidate_pairs,
    near_identical_pairs,
)
from defectcls.data.reading import Images
from defectcls.data.synthetic import Synthetic
from tests.data.test_datamodule import module

Pair = tuple[int, int]


def texture(seed: int, side: int = 160, grain: float = 2.0) -> np.ndarray:
    """Grey values of a rough surface, float32 (side, side)."""
    noise = gaussian_filter(np.random.default_rng(seed).normal(size=(side, side)), grain)
    return (128 + 25 * noise / noise.std()).astype(np.float32)


def save(path: Path, grey: np.ndarray, quality: int = 95) -> Path:
    Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8)).save(path, quality=quality)
    return path


def read(paths: list[Path], cache: Path) -> Images:
    settings = module(cache.parent, {"cache_dir": cache}).settings
    return Images([str(path) for path in paths], settings, (32, 32), torch.device("cpu"))


def found(paths: list[Path], cache: Path) -> set[Pair]:
    """Positions of near-identical images, the lower first."""
    return {(min(pair), max(pair)) for pair in near_identical_pairs(read(paths, cache)).tolist()}


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
    (overall,), (at_worst,) = agreements(scene[None], changed[None], 1)
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
    assert found(paths, tmp_path / "cache") == {(2, 3)}  # of those that can be read


def test_an_image_and_its_smaller_version_are_twins(tmp_path: Path) -> None:
    large = texture(0, 320, grain=4)
    small = np.asarray(Image.fromarray(large).resize((200, 200), Image.Resampling.BICUBIC))
    paths = [save(tmp_path / "large.png", large), save(tmp_path / "small.png", small)]
    assert found(paths, tmp_path / "cache") == {(0, 1)}


# --- the sieves -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_candidates_are_those_of_an_exhaustive_search(tmp_path: Path) -> None:
    """Hashing may add what is no twin; it must not lose one, whatever their number."""
    paths, twins = drawn(tmp_path, image_count=400, image_side=64, difficulty=0.5, near_duplicates=0.25)
    images = read(paths, tmp_path / "cache")
    pairs = {tuple(pair) for pair in candidate_pairs(images.spectra(np.arange(len(images.paths))))[:, :2].tolist()}
    assert twins <= pairs
    assert len(pairs) < 2 * len(twins)


@pytest.mark.parametrize("shift", [(0, 0), (5, -3), (-4, 6)])
def test_agreement_is_that_of_the_part_both_show(shift: Pair) -> None:
    scene, (down, across) = texture(0, 200), shift
    one = scene[20:180, 20:180]
    other = scene[20 + down : 180 + down, 20 + across : 180 + across]
    (overall, _), (at_worst, _) = agreements(np.stack([one, one]), np.stack([other, texture(1)]), 1)
    assert overall > 0.99
    assert at_worst > 0.95
    assert abs(agreements(one[None], texture(1)[None], 1)[0]) < 0.2


def test_spectra_of_flipped_detail_are_those_of_the_flipped_image() -> None:
    """But for a shift by at most a pixel down and across."""
    image = texture(0, 64)[None] - 128
    spectra = _detail_spectra(image)
    for number, flip in enumerate(FLIPS):
        expected, found = _detail_spectra(image[0][flip][None]), _flipped(spectra, np.array([number]))
        assert np.allclose(np.abs(found), np.abs(expected), atol=1e-4)
        at_shifts = _correlations(found * expected.conj(), np.arange(-1, 2) / 64)
        assert at_shifts.max() == pytest.approx(1, abs=1e-4)


# --- what is remembered -----------------------------------------------------------------------------------------------


def test_what_was_found_is_remembered_of_this_very_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [save(tmp_path / f"{seed}.png", texture(seed)) for seed in range(3)]
    paths.append(save(tmp_path / "twin.jpg", texture(0), 60))
    assert found(paths, tmp_path / "cache") == {(0, 3)}
    compared: list[int] = []
    plain = duplicates.candidate_pairs
    monkeypatch.setattr(duplicates, "candidate_pairs", lambda given: compared.append(len(given)) or plain(given))
    assert found(paths, tmp_path / "cache") == {(0, 3)}
    assert compared == []
    assert found([*paths[1:], paths[0]], tmp_path / "cache") == {(2, 3)}
    assert compared == [4]
    save(paths[0], texture(7))
    assert found(paths, tmp_path / "cache") == set()


def test_nothing_to_compare(tmp_path: Path) -> None:
    assert found([save(tmp_path / "alone.png", texture(0))], tmp_path / "cache") == set()


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


def test_pairs_do_not_depend_on_how_many_are_compared_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)
    spectra = generator.normal(size=(90, *duplicates.HALF.shape)) + 1j * generator.normal(
        size=(90, *duplicates.HALF.shape)
    )
    spectra = np.where(duplicates.HALF, spectra, 0).astype(np.complex64)
    spectra[60:] = spectra[:30] * 1.1
    whole = candidate_pairs(spectra)
    assert {(row, row + 60) for row in range(30)} <= {tuple(pair) for pair in whole[:, :2].tolist()}
    monkeypatch.setattr(duplicates, "AT_MOST", 200)
    assert np.array_equal(candidate_pairs(spectra), whole)
