"""Augmentation, by value: against torch's own flips, turns and shifts and torchvision's colour adjustments."""

import math
from collections import Counter
from typing import Any

import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from defectcls.model import augment as module
from defectcls.model.augment import Augment, mirrored, mixer

SWITCHES = ("horizontal_flip", "vertical_flip", "quarter_turns")
RANGES = ("rotation", "scale", "shift", "brightness", "contrast", "saturation", "hue")
OFF = {**dict.fromkeys(SWITCHES, False), **dict.fromkeys(RANGES, 0.0)}
ALL = {
    **dict.fromkeys(SWITCHES, True),
    **{"rotation": 10, "scale": 0.1, "shift": 0.1},
    **{"brightness": 0.5, "contrast": 0.5, "saturation": 0.5, "hue": 0.2},
}


def augment(**on: Any) -> Augment:
    return Augment(**{**OFF, **on})


def pixels(count: int = 8, side: int = 12, seed: int = 0) -> torch.Tensor:
    return torch.randint(
        0, 256, (count, 3, side, side), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )


def draw(monkeypatch: pytest.MonkeyPatch, *values: float) -> None:
    """Every uniform draw with a limit takes the next of these values instead; without a limit it stays 0."""
    remaining = list(values)

    def fixed(shape: Any, limit: float, device: torch.device) -> torch.Tensor:
        value = remaining.pop(0) if limit else 0.0
        assert abs(value) <= limit
        return torch.full(shape if isinstance(shape, tuple) else (shape,), value, device=device)

    monkeypatch.setattr(module, "_uniform", fixed)


def test_all_off_is_the_identity() -> None:
    image = pixels()
    result = augment()(image)
    assert result.dtype == torch.float32
    assert torch.equal(result, image.float())


# --- geometry ---------------------------------------------------------------------------------------------------------

# A square's eight symmetries: turned 0 to 3 times, as it is or mirrored.
DIHEDRAL = {
    (turns, mirrored): lambda image, turns=turns, mirrored=mirrored: torch.rot90(
        image.flip(-1) if mirrored else image, turns, (-2, -1)
    )
    for turns in range(4)
    for mirrored in (False, True)
}
FLIPS = {"horizontal_flip": (0, True), "vertical_flip": (2, True)}


@pytest.mark.parametrize(
    ("switches", "reachable"),
    [
        (("horizontal_flip",), {(0, False), (0, True)}),
        (("vertical_flip",), {(0, False), (2, True)}),
        (("horizontal_flip", "vertical_flip"), {(0, False), (0, True), (2, True), (2, False)}),
        (("quarter_turns",), {(0, False), (1, False), (2, False), (3, False)}),
        (SWITCHES, set(DIHEDRAL)),
    ],
)
def test_flips_and_turns_give_each_symmetry_they_can_and_change_no_value(switches: tuple, reachable: set) -> None:
    torch.manual_seed(0)
    images = pixels(200).float()
    found: Counter = Counter()
    for image, result in zip(images, augment(**dict.fromkeys(switches, True))(images), strict=True):
        matches = [name for name, turn in DIHEDRAL.items() if torch.allclose(result, turn(image), atol=1e-3)]
        assert len(matches) == 1
        found[matches[0]] += 1
    assert set(found) == reachable
    assert min(found.values()) > 0.5 * 200 / len(reachable)


@pytest.mark.parametrize("side", [7, 96, 224])
def test_symmetries_stay_exact_at_every_size(side: int) -> None:
    torch.manual_seed(1)
    images = pixels(16, side).float()
    for image, result in zip(images, augment(**dict.fromkeys(SWITCHES, True))(images), strict=True):
        assert min((result - turn(image)).abs().max() for turn in DIHEDRAL.values()) < 0.05  # of 255


def test_a_centred_disc_stays_under_any_rotation() -> None:
    side = 65
    y, x = torch.meshgrid(*[torch.arange(side) - side // 2] * 2, indexing="ij")
    disc = (255 / (1 + torch.exp(((x**2 + y**2).sqrt() - 20) / 2))).expand(16, 3, side, side)  # soft edge
    torch.manual_seed(0)
    result = augment(rotation=180)(disc)
    inner = (x**2 + y**2).sqrt() < 30
    assert (result - disc)[..., inner].abs().max() < 3  # of 255, at the edge of the disc


@pytest.mark.parametrize("degrees", [30.0, -30.0])
def test_rotation_turns_by_the_degrees_drawn(monkeypatch: pytest.MonkeyPatch, degrees: float) -> None:
    """Against torchvision's rotation, inside the circle that no border reaches."""
    draw(monkeypatch, math.radians(degrees))
    image = tv.gaussian_blur(pixels(2, 64).float(), [9, 9])
    result = augment(rotation=45)(image)
    y, x = torch.meshgrid(*[torch.arange(64) - 31.5] * 2, indexing="ij")
    inner = (x**2 + y**2).sqrt() < 29
    both = [tv.rotate(image, sign * degrees, v2.InterpolationMode.BILINEAR) for sign in (1, -1)]
    assert min((result - turned)[..., inner].abs().max() for turned in both) < 0.1
    assert max((result - turned)[..., inner].abs().max() for turned in both) > 10


@pytest.mark.parametrize("factor", [0.8, 1.25])
def test_scale_enlarges_about_the_centre(monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
    draw(monkeypatch, factor - 1)
    image = tv.gaussian_blur(pixels(2, 60).float(), [9, 9])
    result = augment(scale=0.5)(image)
    expected = tv.affine(image, 0, [0, 0], factor, [0.0, 0.0], v2.InterpolationMode.BILINEAR)
    assert (result - expected)[..., 8:52, 8:52].abs().max() < 0.1


@pytest.mark.parametrize("share", [0.25, -0.125])
def test_shift_moves_by_its_share_of_the_side(monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    """16 pixels: a share of 1/4 is 4 of them, in both directions."""
    draw(monkeypatch, 2 * share)
    image = pixels(4, 16).float()
    result = augment(shift=0.25)(image)
    by = round(16 * share)
    inside = slice(0, 16 - by) if by > 0 else slice(-by, 16)
    expected = image.roll((-by, -by), (-2, -1))[..., inside, inside]
    assert torch.allclose(result[..., inside, inside], expected, atol=1e-2)


def test_shift_draws_up_to_its_share_in_each_direction_by_itself() -> None:
    """A bright dot in the middle lands anywhere in the square of +-20 of 100 pixels, and nowhere else."""
    torch.manual_seed(0)
    image = torch.zeros(400, 3, 101, 101)
    image[..., 48:53, 48:53] = 255
    result = augment(shift=0.2)(image)[:, 0]
    mass = result.sum((1, 2))
    at = torch.arange(101.0) - 50
    across, along = (result.sum(1) @ at) / mass, (result.sum(2) @ at) / mass
    for moved in (across, along):
        assert moved.abs().max() < 20.3
        assert moved.min() < -17
        assert moved.max() > 17
    assert torch.corrcoef(torch.stack([across, along]))[0, 1].abs() < 0.15


def test_what_comes_in_at_the_border_is_a_reflection_not_black(monkeypatch: pytest.MonkeyPatch) -> None:
    draw(monkeypatch, 0.5)
    image = pixels(2, 16).float().clamp(min=50)
    result = augment(shift=0.25)(image)
    assert result.min() >= 49.9
    assert torch.allclose(result[..., :12, 12:], image[..., 4:, 12:].flip(-1), atol=1e-2)


# --- colour -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["brightness", "contrast", "saturation"])
@pytest.mark.parametrize("factor", [0.6, 1.4])
def test_colour_equals_torchvisions_adjustment(monkeypatch: pytest.MonkeyPatch, kind: str, factor: float) -> None:
    draw(monkeypatch, factor - 1)
    image = pixels().float()
    expected = 255 * getattr(tv, f"adjust_{kind}")(image / 255, factor)
    assert torch.allclose(augment(**{kind: 0.5})(image), expected, atol=0.1)


def test_all_colours_at_once_are_one_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Saturation, then brightness, then contrast; on middle greys, where no step leaves 0..255."""
    draw(monkeypatch, 0.3, -0.2, 0.25)
    image = pixels().float() / 4 + 90
    expected = tv.adjust_saturation(image / 255, 1.3)
    expected = tv.adjust_brightness(expected, 0.8)
    expected = 255 * tv.adjust_contrast(expected, 1.25)
    assert torch.allclose(augment(saturation=0.5, brightness=0.5, contrast=0.5)(image), expected, atol=0.1)


def test_hue_leaves_grey_alone() -> None:
    torch.manual_seed(0)
    grey = pixels()[:, :1].expand(-1, 3, -1, -1).float()
    assert torch.allclose(augment(hue=0.5)(grey), grey, atol=1e-2)


@pytest.mark.parametrize(("share", "expected"), [(1 / 3, (1, 2, 0)), (-1 / 3, (2, 0, 1)), (0.5, None)])
def test_a_third_of_the_circle_permutes_red_green_and_blue(
    monkeypatch: pytest.MonkeyPatch, share: float, expected: tuple | None
) -> None:
    draw(monkeypatch, 2 * math.pi * share)
    image = pixels().float() / 4 + 90
    result = augment(hue=0.5)(image)
    mean = image.mean(1, keepdim=True)
    assert torch.allclose(result.mean(1, keepdim=True), mean, atol=1e-2)  # the grey axis is what it turns about
    if expected is None:  # half a turn mirrors each colour at the grey axis
        assert torch.allclose(result, 2 * mean - image, atol=1e-2)
    else:
        permuted = [image[:, list(order)] for order in ((1, 2, 0), (2, 0, 1))]
        assert min((result - one).abs().max() for one in permuted) < 1e-2


def test_hue_turns_red_by_a_third_to_green_and_not_to_blue_as_torchvision_does(monkeypatch: pytest.MonkeyPatch) -> None:
    draw(monkeypatch, 2 * math.pi / 3)
    red = torch.tensor([200.0, 0, 0]).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    expected = 255 * tv.adjust_hue(red / 255, 1 / 3)
    assert torch.allclose(augment(hue=0.5)(red), expected, atol=0.1)


# --- draws ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["rotation", "scale", "shift", "brightness", "contrast", "saturation", "hue"])
def test_each_image_gets_its_own_draw(kind: str) -> None:
    torch.manual_seed(0)
    image = pixels(1).expand(16, -1, -1, -1)
    results = augment(**{kind: ALL[kind]})(image)
    assert len({tuple(result.flatten().tolist()) for result in results}) == 16


def test_one_seed_gives_one_result_and_another_another() -> None:
    image = pixels()
    results = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        results.append(Augment(**ALL)(image))
    assert torch.equal(results[0], results[1])
    assert not torch.allclose(results[0], results[2])


def test_values_stay_in_0_to_255_and_the_batch_in_its_shape() -> None:
    torch.manual_seed(0)
    image = pixels(64)
    before = image.clone()
    result = Augment(**ALL)(image)
    assert result.shape == image.shape
    assert result.min() == 0
    assert result.max() == 255
    assert torch.equal(image, before)


# --- mixing -----------------------------------------------------------------------------------------------------------


def test_no_mixing_is_none() -> None:
    assert mixer(0, 0, 2) is None


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.5, 0), (0, 0.5), (0.5, 0.5)])
def test_mixing_gives_soft_targets_that_tell_the_share_of_each_class(mixup: float, cutmix: float) -> None:
    """Class 0 is all black and class 1 all white, so the mean of an image is its share of class 1."""
    torch.manual_seed(0)
    mix = mixer(mixup, cutmix, 2)
    assert mix is not None
    target = torch.arange(16) % 2
    mixed = 0
    for _ in range(10):
        image, soft = mix(255.0 * target.view(-1, 1, 1, 1).expand(-1, 3, 16, 16), target)
        assert soft.shape == (16, 2)
        assert torch.allclose(soft.sum(1), torch.ones(16))
        assert torch.allclose(image.mean((1, 2, 3)) / 255, soft[:, 1], atol=1e-4)
        mixed += int(((soft > 0.01) & (soft < 0.99)).any())
    assert mixed > 0


# --- the eight ways to lay an image -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("views", "expected"),
    [
        (1, [(0, False)]),
        (2, [(0, False), (0, True)]),
        (4, [(0, False), (0, True), (2, False), (2, True)]),
        (8, list(DIHEDRAL)),
    ],
)
def test_mirrored_views_are_symmetries_of_the_square_each_once_and_the_image_itself_first(
    views: int, expected: list
) -> None:
    image = pixels(2)
    found = mirrored(image, views)
    assert torch.equal(found[0], image)
    names = [[name for name, turn in DIHEDRAL.items() if torch.equal(view, turn(image))] for view in found]
    assert sorted(names) == sorted([name] for name in expected)
