"""How far a photo is from what a model has learned from, against numpy and by hand."""

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from defectcls.errors import UserError
from defectcls.evaluation.drift import LOOKS, SEEN, Measured
from defectcls.model.likeness import DIMENSIONS, Likeness, appearance, fit_likeness

DIMENSION = DIMENSIONS + len(SEEN)


def told(photos: int, paths: int) -> dict[str, Any]:
    return {"photos": photos, "low": [0.0] * 7, "high": [1.0] * 7, "paths": [f"{row}.png" for row in range(paths)]}


def kept(bank: np.ndarray, defective: list[bool], distances: list[float], features: int = 3) -> dict[str, Any]:
    """A likeness that looks at the first feature alone, one of `features`."""
    projection = torch.zeros(features + len(SEEN), DIMENSION)
    projection[0, 0] = 1
    points = torch.zeros(len(bank), DIMENSION)
    points[:, 0] = torch.from_numpy(bank)
    values = {"centre": torch.zeros(features + len(SEEN)), "projection": projection, "bank": points}
    values |= {"defective": torch.tensor(defective), "distances": torch.tensor(distances)}
    return values | {"measured": told(len(distances), len(bank))}


def compared(likeness: Likeness, features: list[float]) -> list[list[float]]:
    rows = torch.zeros(len(features), 3)
    rows[:, 0] = torch.tensor(features)
    return [one.tolist() for one in likeness(torch.zeros(len(features), 3, 8, 8), rows)[:3]]


def test_share_of_nearer_photos_and_the_nearest_of_both_kinds_by_hand() -> None:
    bank = np.array([0, 10, 30], np.float32)
    likeness = Likeness(kept(bank, [False, True, False], [1.0, 2.0, 4.0]), 3)
    unlike, sound, defective = compared(likeness, [0, 0.5, 1, 11.5, 13, 34, 38, 1e6])
    # Of distances 0, 0.5, 1, 1.5, 3, 4, 8 and nearly 1e6 so many are nearer, and so far it is to the next:
    expected = [0, 0.5, 1, 1.5, 2.5, 3, 3 + 1 / 2, 4 - 4 / 999_970]
    assert unlike == pytest.approx([one / 4 for one in expected], abs=1e-6)
    assert (sound, defective) == ([0, 0, 0, 0, 0, 2, 2, 2], [1] * 8)
    assert max(unlike) < 1


def test_a_kind_of_which_there_is_no_photo() -> None:
    likeness = Likeness(kept(np.array([0, 10], np.float32), [False, False], [1.0, 1.0]), 3)  # and a tie
    assert compared(likeness, [9, 0]) == [[pytest.approx(1 / 3), 0], [1, 0], [-1, -1]]


def test_on_an_apple_gpu_nothing_is_computed_in_float64() -> None:
    """Which has none; what it says is the same but for rounding."""

    class Apple(torch.Tensor):
        device = property(lambda self: torch.device("mps"))

        def to(self, to: Any) -> torch.Tensor:
            return self if isinstance(to, torch.device) else super().to(to)

    class Single(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = func(*args, **kwargs or {})
            assert getattr(made, "dtype", None) != torch.float64, func
            return made

    likeness, rows = (
        Likeness(kept(np.array([0, 10, 30], np.float32), [False, True, False], [1.0, 2.0]), 3),
        torch.eye(3),
    )
    image = torch.randint(0, 256, (3, 3, 8, 8), generator=torch.manual_seed(0), dtype=torch.uint8)
    with Single():
        found = likeness(image.as_subclass(Apple), rows.as_subclass(Apple))  # type: ignore[arg-type]
    for one, expected in zip(found, likeness(image, rows), strict=True):
        torch.testing.assert_close(one.as_subclass(torch.Tensor), expected, check_dtype=False)


def test_a_photo_has_the_same_bits_in_any_batch() -> None:
    generator = torch.manual_seed(0)
    values = kept(np.zeros(50, np.float32), [True, False] * 25, [1.0, 2.0])
    values |= {"projection": torch.randn(8, DIMENSION, generator=generator), "bank": torch.randn(50, DIMENSION)}
    likeness, images = Likeness(values, 3), torch.randint(0, 256, (21, 3, 33, 47), dtype=torch.uint8)
    features = torch.randn(21, 3)
    whole = likeness(images, features)
    for row in (0, 7, 20):
        alone = likeness(images[row : row + 1], features[row : row + 1])
        assert all(torch.equal(one[row : row + 1], own) for one, own in zip(whole, alone, strict=True))


def test_photos_are_measured_by_those_of_other_units() -> None:
    """Against differences in numpy, of standardised features in random dimensions."""
    generator = np.random.default_rng(0)
    taught = generator.normal(3, [[1, 2, 0, 5, 1, 0.1, 0.2, 0.3, 0.4]], (40, 9)).astype(np.float32)
    units = np.repeat(np.arange(20), 2)
    found = fit_likeness(taught, taught[::2], units[::2, None] == units)
    points = (taught - taught.mean(0)) @ found["projection"].numpy()
    np.testing.assert_allclose(found["bank"], points, atol=1e-5)
    far = np.linalg.norm(points[::2, None] - points, axis=2)
    far[units[::2, None] == units] = np.inf
    np.testing.assert_allclose(found["distances"], np.sort(far.min(1)), rtol=1e-4)
    appearances = (taught - taught.mean(0))[:, -5:] / taught.std(0)[-5:]
    np.testing.assert_allclose(points[:, DIMENSIONS:], appearances / np.sqrt(5), rtol=1e-3, atol=1e-5)
    assert not len(fit_likeness(taught, taught[::2], np.ones((20, 40), bool))["distances"])


def test_distances_in_random_dimensions_are_those_of_all_features() -> None:
    generator = np.random.default_rng(0)
    taught = generator.normal(size=(60, 2000)).astype(np.float32) * generator.uniform(1, 2, 2000).astype(np.float32)
    taught = np.hstack([taught, np.zeros((60, 5), np.float32)])
    bank = fit_likeness(taught, taught, np.eye(60, dtype=bool))["bank"].numpy()
    standard = taught[:, :2000] / taught[:, :2000].std(0)
    whole = ((standard[:, None] - standard) ** 2).mean(2)
    near = ((bank[:, None] - bank) ** 2).sum(2)
    assert near.sum() / whole.sum() == pytest.approx(1, abs=0.05)


def photo(light: float = 0.5, wide: int = 64) -> np.ndarray:
    """A pattern in colour, 0..255 float (1, 3, wide, wide)."""
    grid = np.sin(np.arange(wide) / 3)[:, None] * np.cos(np.arange(wide) / 5)
    grid += 0.3 * np.random.default_rng(0).normal(size=(wide, wide))
    return light * (150 + np.stack([grid, 0.8 * grid, 0.6 * grid]) * 50 + [[[10]], [[0]], [[-10]]])[None]


def looks(pixels: np.ndarray) -> np.ndarray:
    return appearance(torch.from_numpy(pixels)).numpy()[0]


def test_appearance_by_numpy_and_in_words() -> None:
    some = photo()[0, :, ::2, ::2]
    grey = some.mean(0)
    light, deviation = grey.mean() + 1, grey.std() + 1
    edges = np.abs(np.diff(grey, axis=0)).mean() + np.abs(np.diff(grey, axis=1)).mean() + 1
    expected = [np.log(light), np.log(deviation / light), np.log(edges / deviation)]
    expected += [np.ptp(some, axis=0).mean() / light, (some[0] - some[2]).mean() / light]
    assert looks(photo()) == pytest.approx(expected, rel=1e-5)
    usual, blurred = looks(photo()), photo()
    for axis in (2, 3):
        blurred = sum(np.roll(blurred, shift, axis) for shift in (-1, 0, 1)) / 3
    other = [photo(0.25), photo(1.0), photo() * 0.2 + 60, blurred, photo().mean(1, keepdims=True).repeat(3, 1)]
    changes = np.array([looks(one) - usual for one in other])
    assert [SEEN[one] for one in np.abs(changes[:2]).argmax(1)] == ["brightness"] * 2
    words = ["darker", "brighter", "of less contrast", "more blurred", "paler"]
    measured = Measured(photos=9, low=[*(usual - 0.02), 5, 8], high=[*(usual + 0.02), 5, 8], paths=[])
    said = [measured.cause(np.r_[usual + change, 5, 8]) for change in changes]
    assert said == [f"{word} than any measured" for word in words]
    assert measured.cause(np.r_[usual, 5.4, 8]) == "larger than any measured"
    assert measured.cause(np.r_[usual, 5, 12]) == "of more bits than any measured"
    assert measured.cause(np.r_[usual, 5, 8]) == "looks like nothing measured"
    assert len(LOOKS) == len(measured.low)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("bank", torch.zeros(2, DIMENSION)),
        ("bank", torch.zeros(3, 9)),
        ("bank", torch.zeros(3, DIMENSION, dtype=torch.float64)),
        ("defective", torch.zeros(3)),
        ("projection", torch.zeros(7, DIMENSION)),
        ("centre", torch.zeros(3)),
        ("distances", torch.zeros(0)),
        ("measured", told(10**6, 3)),
    ],
)
def test_what_does_not_fit_together_is_refused(name: str, value: Any) -> None:
    values = kept(np.zeros(3, np.float32), [True, False, False], [1.0, 2.0])
    with pytest.raises(UserError, match="does not fit together"):
        Likeness(values | {name: value}, 3)
