import numpy as np
import pytest

from defectcls.evaluation.localisation import chance, mask_scores


def test_hit_and_energy_by_hand() -> None:
    heat = np.zeros((5, 2, 2), np.float32)
    heat[0] = [[1.0, 0.5], [0.25, 0.25]]
    heat[1] = [[0.5, 1.0], [0.5, 0.0]]
    heat[2] = [[1.0, 1.0], [1.0, 0.0]]  # three are equally hot, one of them in the mask
    masks = np.zeros((5, 2, 2), bool)
    masks[:4, 0, 0] = masks[0, 1, 1] = True
    hit, energy = mask_scores(heat, masks)
    assert hit == pytest.approx([1, 0, 1 / 3, 0, np.nan], nan_ok=True)  # the fourth map is cold, the fifth mask empty
    assert energy == pytest.approx([1.25 / 2, 0.5 / 2, 1 / 3, 0, np.nan], nan_ok=True)
    assert chance(masks) == pytest.approx([0.5, 0.25, 0.25, 0.25, np.nan], nan_ok=True)


def test_energy_of_random_heat_is_chance() -> None:
    rng = np.random.default_rng(0)
    masks = rng.random((200, 16, 16)) < rng.uniform(0.1, 0.9, (200, 1, 1))
    hit, energy = mask_scores(rng.random((200, 16, 16)).astype(np.float32), masks)
    assert energy.mean() == pytest.approx(chance(masks).mean(), abs=0.01)
    assert hit.mean() == pytest.approx(chance(masks).mean(), abs=0.1)
