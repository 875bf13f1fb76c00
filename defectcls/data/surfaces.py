"""What the synthetic photos show: three surfaces, and two defects that each of them really gets.

A surface is an albedo (relative, about 1) and a relief (height in pixels); a defect changes both where its mask lies.
Light that falls at a slant turns the relief into shading, so pits, grooves and dents look right wherever the lamp is.
Every surface also carries marks that are no defect (formwork seams, bug holes, grain lines, turning grooves, dust),
because telling these apart is what an inspector does.

Lengths are in units of `px`, the size of 1/128 of an image's side: a larger image shows the same in finer detail.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import fft
from scipy.ndimage import gaussian_filter

Field = NDArray[np.floating]
Point = NDArray[np.floating]  # x, y in pixels
Shape = tuple[int, int]
Random = np.random.Generator

OVERSAMPLING = 4  # strokes are drawn this much larger and averaged, so that a line of half a pixel is half as dark


@dataclass(frozen=True)
class Scene:
    """What the photographer met: shape (height, width), scale, the grain's direction in radians, clutter 0..1."""

    shape: Shape
    px: float
    grain: float
    clutter: float


@dataclass(frozen=True)
class Spot:
    """Where a defect goes: a square of `side` pixels, with severity and difficulty in 0..1."""

    side: int
    px: float
    grain: float
    severity: float
    difficulty: float

    @property
    def shape(self) -> Shape:
        return self.side, self.side

    def somewhere(self, rng: Random) -> Point:
        """A point near enough to the middle for the defect to be in the crop."""
        return self.side * rng.uniform(0.32, 0.68, 2)

    @property
    def contrast(self) -> float:
        """0..1: hardly to be seen .. as plain as this defect gets."""
        return (0.25 + 0.75 * self.severity) * (1.15 - 0.75 * self.difficulty)

    @property
    def size(self) -> float:
        """Pixels per `px` of the defect: slight defects are small too."""
        return self.px * (0.75 + 0.75 * self.severity) * (1.1 - 0.4 * self.difficulty)


@dataclass(frozen=True)
class Skin:
    """Fields (height, width): albedo, relative, and relief, in pixels."""

    albedo: Field
    relief: Field


@dataclass(frozen=True)
class Defect(Skin):
    """Fields (side, side): a factor on the albedo, an addition to the relief, and where the defect is."""

    mask: NDArray[np.bool_]


def clouds(rng: Random, shape: Shape, roughness: float, stretch: float = 1.0, angle: float = 0.0) -> Field:
    """Noise of unit variance, amplitude as frequency ** -roughness, drawn out `stretch` times along `angle`."""
    down, right = np.meshgrid(fft.fftfreq(shape[0]), fft.rfftfreq(shape[1]), indexing="ij")
    along, across = right * np.cos(angle) + down * np.sin(angle), down * np.cos(angle) - right * np.sin(angle)
    frequency = np.hypot(along * stretch, across) + 0.5 / max(shape)
    spectrum = fft.rfft2(rng.standard_normal(shape, dtype=np.float32)) * (frequency**-roughness).astype(np.float32)
    spectrum[0, 0] = 0
    noise = fft.irfft2(spectrum, s=shape)
    return noise / noise.std()


def grains(rng: Random, shape: Shape, size: float) -> Field:
    """Noise of unit variance in grains of `size` pixels."""
    noise = gaussian_filter(rng.standard_normal(shape, dtype=np.float32), size / 2)
    return noise / noise.std()


def walk(rng: Random, centre: Point, heading: float, length: float, wobble: float, step: float) -> Field:
    """Points (n, 2) of a line through `centre` that keeps its heading but for a wobble in radians."""
    turns = rng.normal(0, wobble, max(int(length / step), 2))
    for i in range(1, len(turns)):
        turns[i] += 0.8 * turns[i - 1]
    points = step * np.cumsum(np.stack([np.cos(heading + turns), np.sin(heading + turns)], axis=1), axis=0)
    return (points - points[len(points) // 2] + centre).astype(np.float32)


def taper(points: Field) -> Field:
    """Width 0..1 at each of the points (n, 2) of a line that thins out towards both ends."""
    return np.sin(np.linspace(0.15, np.pi - 0.15, len(points), dtype=np.float32)) ** 0.5


def stroke(shape: Shape, points: Field, width: Field | float) -> Field:
    """Coverage 0..1 of a line through points (n, 2) whose width, in pixels, may vary along it."""
    canvas = Image.new("L", (shape[1] * OVERSAMPLING, shape[0] * OVERSAMPLING))
    draw = ImageDraw.Draw(canvas)
    large, widths = points * OVERSAMPLING, np.broadcast_to(width, len(points)) * OVERSAMPLING
    for start, end, thickness in zip(large[:-1], large[1:], widths[1:], strict=True):
        draw.line([*start, *end], fill=255, width=max(round(float(thickness)), 1))
        draw.ellipse([*(end - thickness / 2), *(end + thickness / 2)], fill=255)
    return np.asarray(canvas.reduce(OVERSAMPLING), dtype=np.float32) / 255


def core(coverage: Field) -> NDArray[np.bool_]:
    """The pixels that a stroke fills best, so that a line thinner than a pixel has some too."""
    return coverage > 0.4 * coverage.max()


def dots(rng: Random, shape: Shape, count: int, smallest: float, largest: float) -> Field:
    """Coverage 0..1 of round spots scattered over the field, small ones more often than large ones; radii in pixels."""
    canvas = Image.new("L", (shape[1] * OVERSAMPLING, shape[0] * OVERSAMPLING))
    draw = ImageDraw.Draw(canvas)
    for *place, luck in rng.random((count, 3)):
        centre, radius = place * np.array(canvas.size), OVERSAMPLING * smallest * (largest / smallest) ** (luck**2)
        draw.ellipse([*(centre - radius), *(centre + radius)], fill=255)
    return np.asarray(canvas.reduce(OVERSAMPLING), dtype=np.float32) / 255


def blob(rng: Random, spot: Spot, centre: Point, radius: float, raggedness: float) -> Field:
    """A ragged, slightly drawn-out patch: about 1 at its centre, 0 on its rim, negative outside."""
    y, x = np.mgrid[: spot.side, : spot.side].astype(np.float32)
    stretch, angle = rng.uniform(1, 1.25), rng.uniform(0, np.pi)
    dx, dy = x - centre[0], y - centre[1]
    along, across = dx * np.cos(angle) + dy * np.sin(angle), dy * np.cos(angle) - dx * np.sin(angle)
    ragged = grains(rng, spot.shape, 0.7 * radius) + 0.5 * grains(rng, spot.shape, 0.25 * radius)
    return 1 - np.hypot(along / stretch, across * stretch) / radius + raggedness * ragged


def straight_across(rng: Random, shape: Shape, angle: float) -> Field:
    """Two points (2, 2) of a straight line at `angle` that crosses the whole field."""
    middle = rng.uniform(0.1, 0.9, 2) * shape[::-1]
    reach = max(shape) * 1.5 * np.array([np.cos(angle), np.sin(angle)])
    return np.stack([middle - reach, middle + reach]).astype(np.float32)


def lint(rng: Random, scene: Scene, most: float) -> Field:
    """Coverage 0..1 of short curled hairs, on average `most` of them at full clutter."""
    coverage = np.zeros(scene.shape, dtype=np.float32)
    for _ in range(rng.poisson(most * scene.clutter)):
        centre, length = rng.random(2) * scene.shape[::-1], rng.uniform(8, 22) * scene.px
        hair = walk(rng, centre, rng.uniform(0, 2 * np.pi), length, 0.35, 1.5 * scene.px)
        coverage = np.maximum(coverage, stroke(scene.shape, hair, 0.6 * scene.px))
    return coverage


def concrete(rng: Random, scene: Scene) -> Skin:
    """Mottled cement with sand grain, bug holes, and the seam that two formwork boards leave."""
    shape, px = scene.shape, scene.px
    albedo = 1 + rng.uniform(0.03, 0.07) * clouds(rng, shape, rng.uniform(1.2, 1.7))
    albedo += rng.uniform(0.015, 0.04) * grains(rng, shape, 1.4 * px)
    relief = 0.10 * px * grains(rng, shape, 1.6 * px) + 0.35 * px * clouds(rng, shape, 1.5)
    holes = dots(rng, shape, rng.poisson(np.prod(shape) / 2500 / px**2 * (0.3 + scene.clutter)), 0.5 * px, 2.4 * px)
    albedo *= 1 - 0.4 * holes
    relief -= 1.2 * px * gaussian_filter(holes, 0.7 * px)
    if rng.random() < 0.4 + 0.3 * scene.clutter:
        seam = straight_across(rng, shape, scene.grain)
        relief += rng.uniform(0.5, 1.2) * px * gaussian_filter(stroke(shape, seam, 2.2 * px), 0.8 * px)
        albedo *= 1 - rng.uniform(0.05, 0.2) * stroke(shape, seam + px, 1.5 * px)
    return Skin(albedo, relief)


def brushed_metal(rng: Random, scene: Scene) -> Skin:
    """Sheet brushed along its grain: streaks, bright bands across them, rolled-in lines along them, dust and lint."""
    shape, px, angle = scene.shape, scene.px, scene.grain
    streaks = clouds(rng, shape, rng.uniform(0.55, 0.8), rng.uniform(25, 60), angle)
    albedo = 1 + rng.uniform(0.03, 0.06) * (0.7 + scene.clutter) * streaks + 0.03 * clouds(rng, shape, 1.8)
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    band = (x * np.cos(angle) + y * np.sin(angle)) / rng.uniform(150, 320) / px + rng.uniform(0, 2 * np.pi)
    albedo += rng.uniform(0.03, 0.12) * np.sin(band)
    for _ in range(rng.poisson(6 * scene.clutter)):
        albedo += rng.uniform(-0.12, 0.14) * stroke(shape, straight_across(rng, shape, angle), 0.8 * px)
    specks = dots(rng, shape, rng.poisson(40 * scene.clutter), 0.4 * px, 1.2 * px)
    albedo *= 1 - rng.uniform(0.15, 0.35) * specks + rng.uniform(0.1, 0.3) * lint(rng, scene, 5)
    return Skin(albedo, 0.02 * px * grains(rng, shape, 2 * px))


def casting(rng: Random, scene: Scene) -> Skin:
    """Sand-cast skin: coarse grain and shallow dimples, often a machined face with its turning grooves, and grit."""
    shape, px = scene.shape, scene.px
    coarse = grains(rng, shape, rng.uniform(1.8, 2.8) * px)
    albedo = 1 + 0.05 * clouds(rng, shape, 1.4) + 0.04 * coarse
    relief = rng.uniform(0.1, 0.2) * (0.7 + scene.clutter) * px * coarse + 0.6 * px * clouds(rng, shape, 1.6)
    relief -= 0.35 * px * gaussian_filter(dots(rng, shape, rng.poisson(60 * scene.clutter), 1.5 * px, 4 * px), px)
    if rng.random() < 0.55:
        y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
        away, bearing = rng.uniform(0.6, 2) * max(shape), rng.uniform(0, 2 * np.pi)
        from_axis = np.hypot(x - shape[1] / 2 - away * np.cos(bearing), y - shape[0] / 2 - away * np.sin(bearing))
        machined = 1 / (1 + np.exp((from_axis - away - rng.uniform(-0.25, 0.25) * max(shape)) / (0.8 * px)))
        pitch = rng.uniform(3, 6) * px
        depth = rng.uniform(0.02, 0.06) * pitch * (1 + 0.4 * clouds(rng, shape, 1.2))
        grooves = depth * np.sin(2 * np.pi * from_axis / pitch + 0.5 * clouds(rng, shape, 1.5))
        relief = relief * (1 - 0.7 * machined) + machined * grooves
        albedo += 0.22 * machined
    albedo += 0.3 * dots(rng, shape, rng.poisson(50 * scene.clutter), 0.4 * px, 1.1 * px)
    return Skin(albedo, relief)


def crack(rng: Random, spot: Spot) -> Defect:
    """A dark jagged line that narrows towards its ends, and sometimes forks."""
    heading, length = rng.uniform(0, 2 * np.pi), spot.side * rng.uniform(0.6, 1.5)
    line = walk(rng, spot.somewhere(rng), heading, length, 0.38, 2.5 * spot.px)
    uneven = np.exp(rng.normal(0, 0.25, len(line)))
    coverage = stroke(spot.shape, line, rng.uniform(1.5, 2.1) * spot.size * taper(line) * uneven)
    for _ in range(rng.poisson(0.9 * spot.severity)):
        aside = heading + rng.choice([-1, 1]) * rng.uniform(0.5, 1.1)
        branch = walk(rng, rng.choice(line), aside, 0.6 * length, 0.38, 2.5 * spot.px)
        branch = branch[len(branch) // 2 :]
        thinning = np.linspace(1.3, 0.3, len(branch), dtype=np.float32)
        coverage = np.maximum(coverage, stroke(spot.shape, branch, spot.size * thinning))
    return Defect(1 - 0.85 * spot.contrast * coverage, -0.6 * spot.size * spot.contrast * coverage, core(coverage))


def spalling(rng: Random, spot: Spot) -> Defect:
    """A flake broken away: a ragged hollow with a steep rim, and the aggregate laid bare in it."""
    hollow = blob(rng, spot, spot.somewhere(rng), rng.uniform(14, 24) * spot.size, 0.2)
    inside = spot.contrast * np.clip(5 * hollow, 0, 1)
    stones = grains(rng, spot.shape, 5 * spot.px) + 0.7 * grains(rng, spot.shape, 1.8 * spot.px)
    albedo = 1 + inside * (0.13 * stones - rng.uniform(0.1, 0.3))
    return Defect(albedo, spot.px * inside * (0.5 * stones - rng.uniform(2, 3.5)), hollow > 0)


def scratch(rng: Random, spot: Spot) -> Defect:
    """One to three bright grooves across the grain, fainter where the tool was lifted."""
    centre = spot.somewhere(rng)
    heading = spot.grain + rng.choice([-1, 1]) * rng.uniform(0.35, np.pi / 2)
    beside = 4 * spot.px * np.array([-np.sin(heading), np.cos(heading)])
    coverage = np.zeros(spot.shape, dtype=np.float32)
    for track in range(1 + rng.binomial(2, 0.5 * spot.severity)):
        line = walk(rng, centre + track * beside, heading, spot.side * rng.uniform(0.4, 1.1), 0.025, 3 * spot.px)
        coverage = np.maximum(coverage, stroke(spot.shape, line, 1.2 * spot.size * taper(line)))
    pressed = spot.contrast * coverage * np.clip(0.85 + 0.35 * grains(rng, spot.shape, 8 * spot.px), 0.35, 1)
    return Defect(1 + 0.85 * pressed, -0.5 * spot.size * pressed, core(coverage))


def dent(rng: Random, spot: Spot) -> Defect:
    """A smooth bowl with a raised rim: bright on the wall that faces the lamp, dark on the other."""
    depth = blob(rng, spot, spot.somewhere(rng), rng.uniform(10, 18) * spot.size, 0.06)
    bowl = np.exp(-rng.uniform(1.5, 3) * np.clip(1 - depth, 0, None) ** 2)
    rim = np.exp(-((depth + 0.1) ** 2) / 0.06)
    relief = spot.contrast * spot.size * gaussian_filter(rng.uniform(0.3, 1) * rim - 11 * bowl, 1.5 * spot.px)
    return Defect(1 - 0.15 * spot.contrast * bowl, relief, depth > 0)


def pitting(rng: Random, spot: Spot) -> Defect:
    """A nest of gas holes: black and ragged, each with a lit far wall."""
    nest, deepest = spot.somewhere(rng), np.full(spot.shape, -1, dtype=np.float32)
    for _ in range(1 + rng.binomial(7, 0.25 + 0.5 * spot.severity)):
        place = np.clip(nest + rng.normal(0, 11 * spot.px, 2), 0.12 * spot.side, 0.88 * spot.side)
        hole = blob(rng, spot, place.round(), rng.uniform(2.2, 6) * spot.size, 0.25)  # has one whole pixel at least
        deepest = np.maximum(deepest, hole)
    inside = spot.contrast * np.clip(3 * deepest, 0, 1)
    return Defect(1 - 0.75 * inside, -3 * spot.size * gaussian_filter(inside, 0.6 * spot.px), deepest > 0)


def cold_shut(rng: Random, spot: Spot) -> Defect:
    """The seam where two streams of metal met too cold to join: a smooth curved furrow between rounded lips."""
    heading, length = rng.uniform(0, 2 * np.pi), spot.side * rng.uniform(0.6, 1.3)
    line = walk(rng, spot.somewhere(rng), heading, length, 0.13, 3 * spot.px)
    furrow = spot.contrast * stroke(spot.shape, line, rng.uniform(1.3, 1.9) * spot.size * taper(line))
    lips = spot.contrast * gaussian_filter(stroke(spot.shape, line, 6 * spot.size * taper(line)), 1.5 * spot.size)
    return Defect(1 - 0.7 * furrow, spot.size * (3.2 * lips - 3 * furrow), core(furrow))


def photograph(rng: Random, scene: Scene, skin: Skin, brightness: tuple[float, float]) -> NDArray[np.uint8]:
    """The photo (height, width, 3): slanting light, its falling off, somebody's shadow, the lens, the sensor."""
    (height, width), px = scene.shape, scene.px
    y, x = np.mgrid[-0.5 : 0.5 : height * 1j, -0.5 : 0.5 : width * 1j].astype(np.float32)
    lamp, slant = rng.uniform(0, 2 * np.pi), rng.uniform(0.45, 0.75)
    down, right = np.gradient(skin.relief)
    light = 1 + slant * np.tanh(right * np.cos(lamp) + down * np.sin(lamp))
    light *= 1 - rng.uniform(0.1, 0.4) * (x * np.cos(lamp) + y * np.sin(lamp))
    light *= 1 - rng.uniform(0.1, 0.45) * (x**2 + y**2)
    if rng.random() < 0.15 + 0.4 * scene.clutter:
        way = rng.uniform(0, 2 * np.pi)
        beyond = (x * np.cos(way) + y * np.sin(way) - rng.uniform(-0.3, 0.3)) / rng.uniform(0.01, 0.06)
        light *= 1 - rng.uniform(0.1, 0.3) / (1 + np.exp(-beyond))
    grey = rng.uniform(*brightness) * gaussian_filter(skin.albedo * light, rng.uniform(0.35, 0.7) * px)
    grey += rng.uniform(0.08, 0.2) * np.sqrt(np.maximum(grey, 0)) * rng.standard_normal(scene.shape, dtype=np.float32)
    tint = 1 + rng.uniform(-0.03, 0.03) * np.array([1, 0.1, -1], dtype=np.float32)
    return np.clip(grey[..., None] * tint + 0.5, 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class Surface:
    """A product: how it is drawn, its mean brightness (grey levels, lowest and highest) and its defects by name."""

    draw: Callable[[Random, Scene], Skin]
    brightness: tuple[float, float]
    defects: dict[str, Callable[[Random, Spot], Defect]]


SURFACES = {
    "concrete": Surface(concrete, (120, 185), {"crack": crack, "spalling": spalling}),
    "brushed_metal": Surface(brushed_metal, (125, 180), {"scratch": scratch, "dent": dent}),
    "casting": Surface(casting, (75, 125), {"pitting": pitting, "cold_shut": cold_shut}),
}
