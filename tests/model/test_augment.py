"""Augmentation: pixels and distributions against torchvision.transforms.v2, symmetries against torch's own."""

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib.colors import rgb_to_hsv
from scipy.stats import ks_2samp
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from defectcls.model.augment import Augment
from defectcls.settings import AugmentSettings

SWITCHES = ("horizontal_flip", "vertical_flip", "quarter_turns")
RANGES = ("rotation", "scale", "shift", "crop", "brightness", "contrast", "saturation", "hue")
OFF = {**dict.fromkeys(SWITCHES, False), **dict.fromkeys(RANGES, 0.0)}
ALL = {
    **dict.fromkeys(SWITCHES, True),
    **{"rotation": 10, "scale": 0.1, "shift": 0.1, "crop": 0.3},
    **{"brightness": 0.5, "contrast": 0.5, "saturation": 0.5, "hue": 0.2},
}
NEVER = 0.5  # a draw that does not flip, and lies in the middle of every range
BILINEAR = v2.InterpolationMode.BILINEAR


def augment(**on: Any) -> Augment:
    return Augment(AugmentSettings(**{**OFF, **on}))


def drawn(count: int, **values: float) -> torch.Tensor:
    """The same draws for all images: in the middle but for those named."""
    draws = torch.full((count, Augment.DRAWS), NEVER)
    for name, value in values.items():
        draws[:, Augment.DRAWN.index(name)] = value
    return draws


def at(value: float, limit: float) -> float:
    """The draw that gives a value of -limit to limit."""
    return (value / limit + 1) / 2


def pixels(count: int = 8, side: int = 12, seed: int = 0) -> torch.Tensor:
    return torch.randint(
        0, 256, (count, 3, side, side), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8
    )


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
    images = pixels(16, side)
    for image, result in zip(images, augment(**dict.fromkeys(SWITCHES, True))(images), strict=True):
        assert any(torch.equal(result, turn(image.float())) for turn in DIHEDRAL.values())


@pytest.mark.parametrize(
    ("name", "expected"),
    [("horizontal_flip", tv.horizontal_flip), ("vertical_flip", tv.vertical_flip)],
)
def test_flips_equal_torchvisions_and_come_for_draws_under_a_half(name: str, expected: Any) -> None:
    images = pixels().float()
    assert torch.equal(augment(**{name: True})(images, drawn(8, **{name: 0.499})), expected(images))
    assert torch.equal(augment(**{name: True})(images, drawn(8, **{name: 0.5})), images)


@pytest.mark.parametrize("shape", [(12, 20), (33, 16)])
def test_half_turns_are_made_of_images_that_are_not_square(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    images = torch.rand(200, 3, *shape) * 255
    turned = augment(quarter_turns=True)(images)
    as_it_was = [torch.equal(one, other) for one, other in zip(turned, images, strict=True)]
    upside_down = [torch.equal(one, other.rot90(2, (1, 2))) for one, other in zip(turned, images, strict=True)]
    assert [one or other for one, other in zip(as_it_was, upside_down, strict=True)] == [True] * 200
    assert 60 < sum(as_it_was) < 140
    for image, result in zip(images, augment(**dict.fromkeys(SWITCHES, True))(images), strict=True):
        assert any(torch.equal(result, image.flip(axes)) for axes in ((), (1,), (2,), (1, 2)))


@pytest.mark.parametrize("shape", [(96, 48), (40, 80)])
@pytest.mark.parametrize("degrees", [30.0, -20.0])
@pytest.mark.parametrize("flip", [False, True])
def test_a_wide_image_is_turned_by_the_angle_in_its_pixels(shape: tuple[int, int], degrees: float, flip: bool) -> None:
    """Where the turned image lies inside of the frame; a shear, as of a square that was stretched, does not pass."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (2, 3, *shape), generator=generator).float()
    moved = (round(0.1 * shape[1]), round(-0.05 * shape[0]))
    draws = drawn(
        2,
        rotation=at(degrees, 45),
        scale=at(0.2, 0.5),
        shift_across=at(moved[0] / shape[1], 0.2),
        shift_along=at(moved[1] / shape[0], 0.2),
        vertical_flip=0.0 if flip else 0.9,
    )
    result = augment(rotation=45, scale=0.5, shift=0.2, vertical_flip=True)(image, draws)
    expected = tv.affine(tv.vertical_flip(image) if flip else image, degrees, [*moved], 1.2, [0.0], BILINEAR)
    ones = tv.affine(torch.ones(1, 1, *shape), degrees, [*moved], 1.2, [0.0], BILINEAR)
    inner = -F.max_pool2d(-ones, 7, 1, 3)[0, 0] == 1  # away from where black comes in
    assert inner.float().mean() > 0.3
    assert (result - expected)[..., inner].abs().max() < 0.1  # of 255


def test_a_crop_of_a_wide_image_equals_torchvisions_resized_crop() -> None:
    image = torch.randint(0, 256, (2, 3, 32, 64), generator=torch.Generator().manual_seed(0)).float()
    result = augment(crop=0.8)(image, drawn(2, crop=(1 - 0.5**2) / 0.8, crop_across=0.25, crop_along=0.75))
    expected = tv.resized_crop(image, 12, 8, 16, 32, [32, 64], BILINEAR, antialias=False)
    assert (result - expected)[..., 2:-2, 2:-2].abs().max() < 0.05


def test_a_centred_disc_stays_under_any_rotation() -> None:
    side = 65
    disc = (255 / (1 + torch.exp((distance(side) - 20) / 2))).expand(16, 3, side, side)  # soft edge
    torch.manual_seed(0)
    result = augment(rotation=180)(disc)
    inner = distance(side) < 30
    assert (result - disc)[..., inner].abs().max() < 3  # of 255, at the edge of the disc


@pytest.mark.parametrize("degrees", [0.0, 30.0, -20.0])
@pytest.mark.parametrize("factor", [1.0, 0.8, 1.25])
@pytest.mark.parametrize("pixels_moved", [(0, 0), (4, -3)])
@pytest.mark.parametrize("flip", [False, True])
def test_flip_rotation_scale_and_shift_equal_torchvisions_affine(
    degrees: float, factor: float, pixels_moved: tuple[int, int], flip: bool
) -> None:
    """Inside the circle that no border reaches; noise, so that a turn the wrong way could not pass."""
    image = pixels(2, 64).float()
    draws = drawn(
        2,
        rotation=at(degrees, 45),
        scale=at(factor - 1, 0.5),
        shift_across=at(pixels_moved[0] / 64, 0.1),
        shift_along=at(pixels_moved[1] / 64, 0.1),
        horizontal_flip=0.0 if flip else 0.9,
    )
    result = augment(rotation=45, scale=0.5, shift=0.1, horizontal_flip=True)(image, draws)
    expected = tv.affine(
        tv.horizontal_flip(image) if flip else image, degrees, [*pixels_moved], factor, [0.0], BILINEAR
    )
    inner = distance(64) < 32 * factor - 6
    assert (result - expected)[..., inner].abs().max() < 0.05  # of 255


def distance(side: int) -> torch.Tensor:
    """Of each pixel from the centre (side, side)."""
    y, x = torch.meshgrid(*[torch.arange(side) - (side - 1) / 2] * 2, indexing="ij")
    return (x**2 + y**2).sqrt()


@pytest.mark.parametrize(("left", "top", "side"), [(0, 0, 32), (32, 32, 32), (7, 20, 44), (0, 0, 64)])
def test_a_crop_equals_torchvisions_resized_crop(left: int, top: int, side: int) -> None:
    image = pixels(2, 64).float()
    play = max(64 - side, 1)
    draws = drawn(2, crop=(1 - (side / 64) ** 2) / 0.8, crop_across=left / play, crop_along=top / play)
    result = augment(crop=0.8)(image, draws)
    expected = tv.resized_crop(image, top, left, side, side, [64, 64], BILINEAR, antialias=False)
    inside = slice(2, -2)  # at its edge we see beyond the window, torchvision does not
    assert (result - expected)[..., inside, inside].abs().max() < 0.05


def test_a_crop_is_of_the_moved_image() -> None:
    image = tv.gaussian_blur(pixels(2, 64).float(), [9, 9])
    draws = drawn(2, rotation=at(30, 45), crop=1 - 0.5**2, crop_across=0.25, crop_along=0.5)
    result = augment(rotation=45, crop=0.99999)(image, draws)
    turned = tv.affine(image, 30, [0, 0], 1, [0.0], BILINEAR)
    expected = tv.resized_crop(turned, 16, 8, 32, 32, [64, 64], BILINEAR, antialias=False)
    assert (result - expected)[..., 8:-8, 8:-8].abs().max() < 3  # torchvision resamples twice
    assert (result - image)[..., 8:-8, 8:-8].abs().max() > 20


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


def test_what_comes_in_at_the_border_is_a_reflection_not_black() -> None:
    image = pixels(2, 16).float().clamp(min=50)
    result = augment(shift=0.25)(image, drawn(2, shift_across=1.0))
    assert result.min() >= 49.9
    assert torch.allclose(result[..., 4:], image[..., :12], atol=1e-2)
    assert torch.allclose(result[..., :4], image[..., :4].flip(-1), atol=1e-2)


# --- colour -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["brightness", "contrast", "saturation"])
@pytest.mark.parametrize("factor", [0.6, 1.4])
@pytest.mark.parametrize("hue", [0.0, 0.1])  # with which brightness and contrast take the way of all colours
def test_colour_equals_torchvisions_adjustment(kind: str, factor: float, hue: float) -> None:
    image = pixels().float()
    expected = 255 * getattr(tv, f"adjust_{kind}")(image / 255, factor)
    result = augment(**{kind: 0.5}, hue=hue)(image, drawn(8, **{kind: at(factor - 1, 0.5)}))
    assert torch.allclose(result, expected, atol=0.03)


def test_all_colours_at_once_are_one_after_another() -> None:
    """Saturation, then hue by a third, then brightness, then contrast; on greys that no step takes out of 0..255."""
    image = pixels().float() / 4 + 90
    expected = tv.adjust_saturation(image / 255, 1.3)[:, [2, 0, 1]]
    expected = 255 * tv.adjust_contrast(tv.adjust_brightness(expected, 0.8), 1.25)
    draws = {"saturation": 0.3, "brightness": -0.2, "contrast": 0.25, "hue": 1 / 3}
    draws = {name: at(value, 0.5) for name, value in draws.items()}
    result = augment(saturation=0.5, brightness=0.5, contrast=0.5, hue=0.5)(image, drawn(8, **draws))
    assert torch.allclose(result, expected, atol=0.03)


def test_hue_leaves_grey_alone() -> None:
    torch.manual_seed(0)
    grey = pixels()[:, :1].expand(-1, 3, -1, -1).float()
    assert torch.allclose(augment(hue=0.5)(grey), grey, atol=1e-2)


@pytest.mark.parametrize(("share", "expected"), [(1 / 3, (2, 0, 1)), (-1 / 3, (1, 2, 0)), (0.5, None)])
def test_a_third_of_the_circle_permutes_red_green_and_blue(share: float, expected: tuple | None) -> None:
    image = pixels().float() / 4 + 90
    result = augment(hue=0.5)(image, drawn(8, hue=at(share, 0.5)))
    mean = image.mean(1, keepdim=True)
    assert torch.allclose(result.mean(1, keepdim=True), mean, atol=1e-2)  # the grey axis is what it turns about
    permuted = 2 * mean - image if expected is None else image[:, list(expected)]  # half a turn mirrors at that axis
    assert torch.allclose(result, permuted, atol=1e-2)


@pytest.mark.parametrize("share", [1 / 3, -1 / 3, 2 / 3 - 1])
@pytest.mark.parametrize("colour", [(200.0, 0, 0), (0, 200.0, 0), (120.0, 40, 40)])
def test_hue_by_a_third_equals_torchvisions(share: float, colour: tuple) -> None:
    image = torch.tensor(colour).view(1, 3, 1, 1).expand(1, 3, 4, 4)
    expected = 255 * tv.adjust_hue(image / 255, share)
    assert torch.allclose(augment(hue=0.5)(image, drawn(1, hue=at(share, 0.5))), expected, atol=0.1)


@pytest.mark.parametrize("share", [0.05, -0.13, 0.4])
def test_hue_turns_as_far_as_torchvisions(share: float) -> None:
    """But for the difference between a circle and HSV's hexagon, 1.12 degrees where it is largest, before and after."""
    image = pixels(8, 32).float() / 4 + 90
    expected = 255 * tv.adjust_hue(image / 255, share)
    result = augment(hue=0.5)(image, drawn(8, hue=at(share, 0.5)))
    hue, theirs = (rgb_to_hsv(one.permute(0, 2, 3, 1).numpy() / 255)[..., 0] for one in (result, expected))
    apart = np.abs((hue - theirs + 0.5) % 1 - 0.5)
    assert apart.max() < 2.3 / 360


# --- distributions: what each image gets, seen from its pixels, against torchvision's own draws -----------------------

DRAWN = 2000
LARGE = torch.zeros(1).expand(3, 10_000, 10_000)  # torchvision rounds to pixels


def alike(ours: torch.Tensor, theirs: list[float]) -> None:
    """Two samples of one distribution, by Kolmogorov and Smirnov."""
    assert ks_2samp(ours.numpy(), theirs).pvalue > 0.01


def sources(on: Augment, side: int = 33) -> tuple[torch.Tensor, torch.Tensor]:
    """Where the centre of each augmented image came from, and the pixel to the right of it: (images, 2), from -1 to 1.

    An image whose colours are its coordinates tells it.
    """
    y, x = torch.meshgrid(*[(2 * torch.arange(side) + 1) / side - 1] * 2, indexing="ij")
    result = on(torch.stack([x, y, x]).expand(DRAWN, 3, side, side))[:, :2]
    middle = side // 2
    return result[..., middle, middle], result[..., middle, middle + 1]


def test_rotation_and_scale_are_distributed_as_torchvisions() -> None:
    torch.manual_seed(0)
    centre, right = sources(augment(rotation=30, scale=0.2))
    step = (right - centre) * 33 / 2
    theirs = [v2.RandomAffine(30, scale=(0.8, 1.2)).make_params([LARGE]) for _ in range(DRAWN)]
    alike(torch.atan2(step[:, 1], step[:, 0]).rad2deg(), [one["angle"] for one in theirs])
    alike(1 / step.norm(dim=1), [one["scale"] for one in theirs])


def test_shift_is_distributed_as_torchvisions() -> None:
    torch.manual_seed(0)
    centre, _ = sources(augment(shift=0.15))
    theirs = [v2.RandomAffine(0, translate=(0.15, 0.15)).make_params([LARGE])["translate"] for _ in range(DRAWN)]
    for axis in (0, 1):
        alike(centre[:, axis] / 2, [one[axis] / 10_000 for one in theirs])
    assert torch.corrcoef(centre.T)[0, 1].abs() < 0.05


def test_crops_are_distributed_as_torchvisions_of_unchanged_proportions() -> None:
    torch.manual_seed(0)
    centre, right = sources(augment(crop=0.6))
    theirs = [v2.RandomResizedCrop(8, scale=(0.4, 1), ratio=(1, 1)).make_params([LARGE]) for _ in range(DRAWN)]
    alike(((right - centre)[:, 0] * 33 / 2) ** 2, [(one["width"] / 10_000) ** 2 for one in theirs])
    for axis, start in enumerate(("left", "top")):
        alike(centre[:, axis], [(2 * one[start] + one["width"]) / 10_000 - 1 for one in theirs])


@pytest.mark.parametrize("kind", ["brightness", "contrast", "saturation", "hue"])
def test_colours_are_distributed_as_torchvisions(kind: str) -> None:
    torch.manual_seed(0)
    image = torch.full((DRAWN, 3, 2, 2), 100.0)
    image[:, 0] += 20  # reddish
    image[..., 0] += 10  # and brighter to the left
    result = augment(**{kind: 0.3})(image)
    red, green, blue = result.mean((2, 3)).unbind(1)
    ours = {
        "brightness": red / 125,
        "contrast": (result[:, 0, 0, 0] - result[:, 0, 0, 1]) / 10,
        "saturation": (red - green) / 20,
        "hue": torch.atan2(3**0.5 * (green - blue), 2 * red - green - blue) / (2 * math.pi),
    }
    names = ("brightness", "contrast", "saturation", "hue")
    theirs = [v2.ColorJitter(**{kind: 0.3}).make_params([])[f"{kind}_factor"] for _ in range(DRAWN)]
    assert kind in names
    alike(ours[kind], theirs)


# --- draws ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [name for name in ALL if name not in SWITCHES])
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
        results.append(augment(**ALL)(image))
    assert torch.equal(results[0], results[1])
    assert not torch.allclose(results[0], results[2])


def test_draws_say_all_whatever_the_batch() -> None:
    """An image alone is changed as within a batch, and as when the generator gives the same draws."""
    image, every = pixels(20, 24), augment(**ALL)
    torch.manual_seed(3)
    expected = every(image)
    torch.manual_seed(3)
    draws = torch.rand(20, Augment.DRAWS)
    assert torch.equal(every(image, draws), expected)
    order = torch.randperm(20)
    assert torch.allclose(every(image[order], draws[order]), expected[order], atol=1e-3)
    for one in (0, 7, 19):
        assert torch.allclose(every(image[[one]], draws[[one]])[0], expected[one], atol=1e-3)


def test_half_precision_of_the_training_does_not_round_grey_values() -> None:
    image, every, draws = pixels(), augment(**ALL), torch.rand(8, Augment.DRAWS)
    expected = every(image, draws)
    with torch.autocast("cpu", torch.bfloat16):
        result = every(image, draws)
    assert result.dtype == torch.float32
    assert torch.equal(result, expected)


def test_nothing_is_made_elsewhere_than_on_the_device_of_the_image_and_kept_in_a_checkpoint() -> None:
    """As with images on a GPU, where what is made without a device lies on the host."""
    image, every, draws = pixels(), augment(**ALL), torch.rand(8, Augment.DRAWS)
    with torch.device("meta"):
        assert every(image).device.type == "cpu"
        assert every(image, draws).device.type == "cpu"
    assert not every.state_dict()


def test_values_stay_in_0_to_255_and_the_batch_in_its_shape() -> None:
    torch.manual_seed(0)
    image = pixels(64)
    before = image.clone()
    result = augment(**ALL)(image)
    assert result.shape == image.shape
    assert result.min() == pytest.approx(0, abs=1e-3)
    assert result.max() == pytest.approx(255, abs=1e-3)
    assert torch.equal(image, before)
