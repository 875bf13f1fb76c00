"""What the synthetic photos show: two surfaces, and two defects that each of them really gets.

A surface is an albedo (relative, about 1) and a relief (height in pixels); a defect multiplies the one and adds to the
other. Light that falls at a slant turns the relief into shading, so hollows, grooves and dents look right wherever the
lamp is. Every surface also carries marks that are no defect (formwork seams, bug holes, rolled-in lines, dust), because
telling these apart is what an inspector does. Lengths are in units of `px`, the size of 1/128 of an image's side.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft
from scipy.ndimage import gaussian_filter

Field = NDArray[np.floating]
Surface = tuple[Field, Field]  # albedo and relief, (height, width)
Defect = tuple[Field, Field, NDArray[np.bool_]]  # factor on the albedo, addition to the relief, where the defect is
Random = np.random.Generator


@dataclass(frozen=True)
class Scene:
    """A canvas, or the square of one crop on it: shape (height, width), scale, direction of the grain in radians."""

    shape: tuple[int, int]
    px: float
    grain: float
    difficulty: float  # 0..1: how many marks there are that are no defect, and how faint a defect is
    contrast: float = 0  # of a defect, 0..1: hardly to be seen .. as plain as it gets
    size: float = 0  # of a defect, pixels per `px`


def clouds(rng: Random, shape: tuple[int, int], roughness: float, stretch: float = 1, angle: float = 0) -> Field:
    """Noise of unit variance, amplitude as frequency ** -roughness, drawn out `stretch` times along `angle`."""
    down, right = np.meshgrid(fft.fftfreq(shape[0]), fft.rfftfreq(shape[1]), indexing="ij")
    along, across = right * np.cos(angle) + down * np.sin(angle), down * np.cos(angle) - right * np.sin(angle)
    frequency = np.hypot(along * stretch, across) + 0.5 / max(shape)
    spectrum = fft.rfft2(rng.standard_normal(shape, dtype=np.float32)) * (frequency**-roughness).astype(np.float32)
    spectrum[0, 0] = 0
    noise = fft.irfft2(spectrum, s=shape)
    return noise / noise.std()


def grains(rng: Random, shape: tuple[int, int], size: float) -> Field:
    """Noise of unit variance in grains of `size` pixels."""
    noise = gaussian_filter(rng.standard_normal(shape, dtype=np.float32), size / 2)
    return noise / noise.std()


def specks(rng: Random, scene: Scene, size: float) -> Field:
    """Coverage 0..1 of spots of about `size` px, one in a thousand pixels, four times as many at full difficulty."""
    return np.clip(3 * (grains(rng, scene.shape, size * scene.px) - 3 + 0.5 * scene.difficulty), 0, 1)


def line(rng: Random, scene: Scene, angle: float, width: float, reach: float = 99, jagged: float = 0) -> Field:
    """Coverage 0..1 of a line through the middle, `width` pixels wide there, that thins out to its ends.

    Half its length is `reach` widths of the field, and it strays about `jagged` px from the straight.
    """
    y, x = _from_the_middle(rng, scene)
    along, away = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    away += jagged * scene.px * clouds(rng, scene.shape, 2) if jagged else 0
    widths = width * np.sqrt(np.clip(1 - (along / reach / scene.shape[1]) ** 2, 0, 1))
    return np.clip(widths / 2 + 0.5 - np.abs(away), 0, np.minimum(widths, 1))


def blob(rng: Random, spot: Scene, radius: float, raggedness: float) -> Field:
    """A ragged patch near the middle: about 1 at its centre, 0 on its rim, negative outside."""
    ragged = grains(rng, spot.shape, 0.7 * radius) + 0.5 * grains(rng, spot.shape, 0.25 * radius)
    return 1 - np.hypot(*_from_the_middle(rng, spot)) / radius + raggedness * ragged


def _from_the_middle(rng: Random, scene: Scene) -> tuple[Field, Field]:
    """Pixels down and to the right of a point that is not near the rim, each (height, width)."""
    y, x = np.mgrid[: scene.shape[0], : scene.shape[1]].astype(np.float32)
    down, right = rng.uniform(0.32, 0.68, 2) * scene.shape
    return y - down, x - right


def concrete(rng: Random, scene: Scene) -> Surface:
    """Mottled cement with sand grain, bug holes, and the seam that two formwork boards leave."""
    shape, px, holes = scene.shape, scene.px, specks(rng, scene, 3)
    albedo = 1 + rng.uniform(0.03, 0.07) * clouds(rng, shape, rng.uniform(1.2, 1.7)) - 0.4 * holes
    albedo += rng.uniform(0.015, 0.04) * grains(rng, shape, 1.4 * px)
    relief = 0.08 * px * grains(rng, shape, 1.6 * px) + 0.35 * px * clouds(rng, shape, 1.5) - 1.2 * px * holes
    if rng.random() < 0.5 + 0.3 * scene.difficulty:
        seam = gaussian_filter(line(rng, scene, scene.grain, 2.2 * px), 0.8 * px)
        albedo, relief = albedo - 0.1 * seam, relief + rng.uniform(0.5, 1.2) * px * seam
    return albedo, relief


def brushed_metal(rng: Random, scene: Scene) -> Surface:
    """Sheet brushed along its grain: streaks, bright bands across them, rolled-in lines along them, and dust."""
    shape, px, angle = scene.shape, scene.px, scene.grain
    streaks = clouds(rng, shape, rng.uniform(0.55, 0.8), rng.uniform(25, 60), angle)
    albedo = 1 + rng.uniform(0.04, 0.055) * (1 + 0.7 * scene.difficulty) * streaks + 0.04 * clouds(rng, shape, 1.8)
    for _ in range(rng.poisson(1.5 + 4.5 * scene.difficulty)):
        albedo += rng.uniform(-0.12, 0.14) * line(rng, scene, angle, 0.8 * px)
    return albedo - 0.25 * specks(rng, scene, 1.5), 0.02 * px * grains(rng, shape, 2 * px)


def crack(rng: Random, spot: Scene) -> Defect:
    """A dark jagged line that narrows towards its ends."""
    width = rng.uniform(1.5, 2.1) * spot.size
    inside = spot.contrast * line(rng, spot, rng.uniform(0, np.pi), width, rng.uniform(0.3, 0.7), jagged=5)
    return 1 - 0.85 * inside, -0.6 * spot.size * inside, inside > 0.4 * inside.max()


def spalling(rng: Random, spot: Scene) -> Defect:
    """A flake broken away: a ragged hollow with a steep rim, and the aggregate laid bare in it."""
    hollow = blob(rng, spot, rng.uniform(14, 24) * spot.size, 0.2)
    inside = spot.contrast * np.clip(5 * hollow, 0, 1)
    stones = grains(rng, spot.shape, 5 * spot.px) + 0.7 * grains(rng, spot.shape, 1.8 * spot.px)
    albedo = 1 + inside * (0.13 * stones - rng.uniform(0.1, 0.3))
    return albedo, spot.px * inside * (0.5 * stones - rng.uniform(2, 3.5)), hollow > 0


def scratch(rng: Random, spot: Scene) -> Defect:
    """A bright groove across the grain."""
    angle = spot.grain + rng.choice([-1, 1]) * rng.uniform(0.35, np.pi / 2)
    inside = spot.contrast * line(rng, spot, angle, 1.4 * spot.size, rng.uniform(0.2, 0.5), jagged=0.5)
    return 1 + 0.75 * inside, -0.5 * spot.size * inside, inside > 0.4 * inside.max()


def dent(rng: Random, spot: Scene) -> Defect:
    """A smooth bowl with a raised rim: bright on the wall that faces the lamp, dark on the other."""
    depth = blob(rng, spot, rng.uniform(10, 18) * spot.size, 0.06)
    bowl, rim = np.exp(-rng.uniform(1.5, 3) * np.clip(1 - depth, 0, None) ** 2), np.exp(-((depth + 0.1) ** 2) / 0.06)
    relief = spot.contrast * spot.size * gaussian_filter(rng.uniform(0.3, 1) * rim - 11 * bowl, 1.5 * spot.px)
    return 1 - 0.15 * spot.contrast * bowl, relief, depth > 0


def photograph(rng: Random, scene: Scene, albedo: Field, relief: Field) -> NDArray[np.uint8]:
    """The photo (height, width, 3): slanting light, its falling off, the lens, the sensor."""
    (height, width), px = scene.shape, scene.px
    y, x = np.mgrid[-0.5 : 0.5 : height * 1j, -0.5 : 0.5 : width * 1j].astype(np.float32)
    lamp, slant = rng.uniform(0, 2 * np.pi), rng.uniform(0.45, 0.75)
    down, right = np.gradient(relief)
    light = 1 + slant * np.tanh(right * np.cos(lamp) + down * np.sin(lamp))
    light *= 1 - rng.uniform(0.1, 0.4) * (x * np.cos(lamp) + y * np.sin(lamp))
    light *= 1 - rng.uniform(0.1, 0.45) * (x**2 + y**2)
    grey = rng.uniform(120, 185) * gaussian_filter(albedo * light, rng.uniform(0.35, 0.7) * px)
    grey += rng.uniform(0.06, 0.16) * np.sqrt(np.maximum(grey, 0)) * rng.standard_normal(scene.shape, dtype=np.float32)
    tint = 1 + rng.uniform(-0.03, 0.03) * np.array([1, 0.1, -1], dtype=np.float32)
    return np.clip(grey[..., None] * tint + 0.5, 0, 255).astype(np.uint8)


SURFACES: dict[str, tuple[Callable[[Random, Scene], Surface], dict[str, Callable[[Random, Scene], Defect]]]] = {
    "concrete": (concrete, {"crack": crack, "spalling": spalling}),
    "brushed_metal": (brushed_metal, {"scratch": scratch, "dent": dent}),
}  # how each is drawn, and its defects by name
