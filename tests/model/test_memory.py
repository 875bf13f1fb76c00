"""The memory of sound patches: against a plain k-center, torch.cdist and distances taken by hand."""

import numpy as np
import pytest
import torch

from defectcls.model import memory as module
from defectcls.model.memory import Memory, farthest_first, image_scores


def maps_of(images: int, channels: int = 6, height: int = 3, width: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.randn(images, channels, height, width, generator=torch.Generator().manual_seed(seed))


def patches_of(maps: torch.Tensor) -> torch.Tensor:
    """(images x cells, channels)."""
    return maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1])


def filled(*parts: torch.Tensor) -> Memory:
    memory = Memory(parts[0].shape[1], len(parts))
    for number, patches in enumerate(parts):
        memory.bank[number, : len(patches)] = patches
        memory.sizes[number] = len(patches)
    return memory


def by_hand(parts: list[torch.Tensor], maps: torch.Tensor) -> np.ndarray:
    """Distance of each cell to the nearest patch of all parts but each member's own, float64."""
    found = []
    for fold in range(len(parts)):
        others = torch.cat([patches for number, patches in enumerate(parts) if number != fold])
        nearest = torch.cdist(patches_of(maps).double(), others.double()).amin(1)
        found.append(nearest.view(len(maps), *maps.shape[2:]))
    return torch.stack(found, 1).numpy()


def naive_k_center(points: np.ndarray, count: int, first: int) -> list[int]:
    chosen = [first]
    while len(chosen) < count:
        gaps = [min(np.linalg.norm(point - points[row]) for row in chosen) for point in points]
        chosen.append(int(np.argmax(gaps)))
    return chosen


@pytest.mark.parametrize("first", [0, 37])
def test_each_chosen_point_is_the_farthest_from_those_before_it(first: int) -> None:
    points = np.random.default_rng(first).normal(size=(120, 5))
    threads = torch.get_num_threads()
    found = farthest_first(torch.from_numpy(points), 25, first)
    assert found.tolist() == naive_k_center(points, 25, first)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("sizes", [(20, 20, 20), (3, 40, 0), (1, 1), (9, 0, 0, 0, 2), (60, 1, 1)])
def test_distances_are_those_of_torch_to_all_parts_but_the_members_own(sizes: tuple[int, ...]) -> None:
    """Where one part has 60 patches of 62, the two nearest of most cells lie in it."""
    maps, parts = maps_of(5), [torch.randn(size, 6) for size in sizes]
    memory = filled(*parts)
    found = memory(maps)
    assert (found.shape, found.dtype) == ((5, len(sizes), 3, 4), torch.float32)
    assert found.numpy() == pytest.approx(by_hand(parts, maps), abs=1e-5)
    with torch.autocast("cpu", torch.bfloat16):  # would leave three digits
        assert torch.equal(memory(maps), found)
    assert torch.equal(torch.cat([memory(one[None]) for one in maps]), found)
    assert torch.equal(memory(maps.to(memory_format=torch.channels_last)), found)
    if sizes == (60, 1, 1):
        nearest = torch.cdist(patches_of(maps), torch.cat(parts)).topk(2, largest=False).indices
        assert (nearest < 60).all(1).float().mean() > 0.5  # else the data would not tell


def test_what_another_part_of_the_bank_holds_is_no_distance_away() -> None:
    maps = maps_of(3) + 30  # far from 0, where differences of squares lose most
    found = filled(*(patches_of(one[None]) for one in maps))(maps).numpy()
    own = np.eye(3, dtype=bool)
    assert found[~own] == pytest.approx(np.zeros((6, 3, 4)), abs=0.05)
    assert (found[own] > 0.2).all()


def test_to_whom_no_other_part_has_patches_all_is_new() -> None:
    found = filled(torch.randn(4, 6), torch.empty(0, 6))(maps_of(2))
    assert torch.isinf(found[:, 0]).all()
    assert torch.isfinite(found[:, 1]).all()


def test_the_score_is_the_mean_of_the_hottest_cells() -> None:
    distances = torch.arange(400.0).view(1, 2, 10, 20)
    assert image_scores(distances).tolist() == [[198.5, 398.5]]
    assert image_scores(distances[:, :, :2, :3]).tolist() == [[22.0, 222.0]]  # at least one
    many = torch.rand(9, 3, 10, 20)
    expected = np.sort(many.flatten(2).numpy())[:, :, -2:].mean(2)
    assert image_scores(many).numpy() == pytest.approx(expected)


@pytest.mark.parametrize("candidates", [12 * 20, 100])
def test_the_bank_is_bounded_and_of_the_sound_patches_of_its_fold_whatever_the_batches(
    candidates: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BANK", 30)
    monkeypatch.setattr(module, "CANDIDATES", candidates)
    maps, sound, folds = maps_of(20), np.arange(20) % 3 > 0, np.arange(20) // 2 % 3

    def learned(size: int, seed: int) -> Memory:
        memory = Memory(6, 3)
        memory.learn(iter(maps.split(size)), folds, sound, seed)
        return memory

    memory = learned(7, 0)
    assert (memory.bank.shape, memory.sizes.tolist()) == ((3, 10, 6), [10, 10, 10])
    place = torch.cdist(memory.bank.flatten(0, 1), patches_of(maps)).argmin(1)
    assert torch.equal(patches_of(maps)[place], memory.bank.flatten(0, 1))
    assert len(set(place.tolist())) == 30
    assert sound[place // 12].all()
    assert folds[place // 12].tolist() == [0] * 10 + [1] * 10 + [2] * 10
    for size in (1, 20):
        assert torch.equal(learned(size, 0).bank, memory.bank)
    assert not torch.equal(learned(7, 1).bank, memory.bank)


def test_a_part_of_few_patches_holds_them_all() -> None:
    maps, sound = maps_of(5), np.array([True, True, False, True, True])
    memory = Memory(6, 4)
    memory.learn([maps], np.array([0, 0, 1, 3, 0]), sound, 0)
    assert memory.sizes.tolist() == [36, 0, 0, 12]
    held = [memory.bank[part, :size] for part, size in enumerate(memory.sizes.tolist())]
    for images, patches in (([0, 1, 4], held[0]), ([3], held[3])):
        assert sorted(patches.tolist()) == sorted(patches_of(maps[images]).tolist())
    assert not memory.bank[0, 36:].any()


def test_the_bank_covers_more_than_random_patches_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """One patch in 120 is of another kind, as the tip of a part is."""
    monkeypatch.setattr(module, "BANK", 80)
    maps = maps_of(100, channels=40)
    maps[:, :, 0, 0] += 20 * (torch.arange(100) % 10 == 0)[:, None]
    for seed in range(5):
        memory = Memory(40, 2)
        memory.learn(maps.split(10), np.arange(100) // 10 % 2, np.ones(100, bool), seed)
        assert (memory.bank.mean(2) > 10).any(1).all()  # of random 40 patches, one in three draws
