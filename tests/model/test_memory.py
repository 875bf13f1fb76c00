"""The memory of sound patches: against a plain k-center, torch.cdist and distances taken by hand."""

from collections.abc import Iterator

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


def filled(patches: torch.Tensor) -> Memory:
    memory = Memory(patches.shape[1])
    memory.bank[: len(patches)] = patches
    memory.size.fill_(len(patches))
    return memory


class Passes:
    """The same maps at every call, in batches."""

    def __init__(self, maps: torch.Tensor, size: int) -> None:
        self.maps, self.size, self.calls = maps, size, 0

    def __call__(self) -> Iterator[torch.Tensor]:
        self.calls += 1
        return iter(self.maps.split(self.size))


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


def test_distances_are_those_of_torch() -> None:
    bank, maps = torch.randn(50, 6), maps_of(5)
    expected = torch.cdist(patches_of(maps).double(), bank.double()).amin(1).view(5, 3, 4)
    found = filled(bank)(maps)
    assert found.dtype == torch.float32
    assert found.numpy() == pytest.approx(expected.numpy(), abs=1e-5)
    with torch.autocast("cpu", torch.bfloat16):  # would leave three digits
        assert torch.equal(filled(bank)(maps), found)
    alone = torch.cat([filled(bank)(one[None]) for one in maps])
    assert torch.equal(alone, found)
    assert torch.equal(filled(bank)(maps.to(memory_format=torch.channels_last)), found)


def test_what_is_in_the_bank_is_no_distance_away() -> None:
    maps = maps_of(3) + 30  # far from 0, where differences of squares lose most
    assert filled(patches_of(maps))(maps).numpy() == pytest.approx(np.zeros((3, 3, 4)), abs=0.05)


def test_an_empty_memory_knows_nothing() -> None:
    assert Memory(6)(maps_of(2)).tolist() == np.zeros((2, 3, 4)).tolist()


def test_the_score_is_the_mean_of_the_hottest_cells() -> None:
    distances = torch.arange(200.0).view(2, 10, 10)
    assert image_scores(distances).tolist() == [98.5, 198.5]
    assert image_scores(distances[:, :2, :3]).tolist() == [12.0, 112.0]  # at least one


def test_training_images_are_scored_as_if_the_bank_had_none_of_their_unit() -> None:
    maps, units = maps_of(8), np.array([3, 3, 5, 5, 5, 7, 8, 8])
    sound = np.array([True, True, True, True, False, True, True, False])
    scores, median = Memory(6).learn(Passes(maps, 3), sound, units, 0)
    distances = []
    for image in range(8):
        others = maps[torch.from_numpy(sound & (units != units[image]))]
        distances.append(torch.cdist(patches_of(maps[image : image + 1]), patches_of(others)).amin(1).numpy())
    assert scores == pytest.approx(np.max(distances, axis=1), abs=1e-4)  # 2 % of twelve cells are one
    medians = [np.sort(one)[5] for one in np.array(distances)[sound]]
    assert median == pytest.approx(np.sort(medians)[2], abs=1e-4)  # of six the lower middle, as torch has it


def test_images_of_one_unit_alone_have_no_score() -> None:
    scores, _ = Memory(6).learn(Passes(maps_of(3), 3), np.ones(3, bool), np.zeros(3, int), 0)
    assert np.isinf(scores).all()


@pytest.mark.parametrize(("candidates", "calls"), [(12 * 20, 1), (100, 2)])
def test_the_bank_is_bounded_and_of_sound_patches_whatever_the_batches(
    candidates: int, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BANK", 30)
    monkeypatch.setattr(module, "CANDIDATES", candidates)
    maps, sound = maps_of(20), np.arange(20) % 3 > 0

    def learned(size: int, seed: int) -> tuple[Memory, Passes, tuple[np.ndarray, float]]:
        memory, passes = Memory(6), Passes(maps, size)
        return memory, passes, memory.learn(passes, sound, np.arange(20), seed)

    memory, passes, (scores, median) = learned(7, 0)
    assert passes.calls == calls
    assert (memory.bank.shape, int(memory.size)) == ((30, 6), 30)
    place = torch.cdist(memory.bank, patches_of(maps)).argmin(1)
    assert torch.equal(patches_of(maps)[place], memory.bank)
    assert len(set(place.tolist())) == 30
    assert sound[place // 12].all()
    for size in (1, 20):
        other, _, (again, usual) = learned(size, 0)
        assert torch.equal(other.bank, memory.bank)
        assert (again.tolist(), usual) == (scores.tolist(), median)
    assert not torch.equal(learned(7, 1)[0].bank, memory.bank)


def test_the_bank_covers_more_than_random_patches_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """One patch in 120 is of another kind, as the tip of a part is."""
    monkeypatch.setattr(module, "BANK", 40)
    maps = maps_of(100, channels=40)
    maps[:, :, 0, 0] += 20 * (torch.arange(100) % 10 == 0)[:, None]
    for seed in range(5):
        memory = Memory(40)
        memory.learn(Passes(maps, 10), np.ones(100, bool), np.arange(100), seed)
        assert (memory.bank.mean(1) > 10).any()  # of random 40 patches, one in three draws
