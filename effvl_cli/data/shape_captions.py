"""`shape-captions`: procedural scenes of one coloured shape among distractors, each rebuilt alone from its number.

Every random number is a hash of (split, index, place), so an image is the same whether it is made alone or in a batch,
and no state is kept. Styles: `photo`, the default; `sketch`, outlines on paper with faded colours; `mixed`, photographs
with a small share of sketches, larger objects first, on which the shipped tiny:clip was trained (val and test: photo).
"""

from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from effvl_cli.core.errors import UsageError
from effvl_cli.data.source import ENDLESS, Indices, digest

SIZE, PATCH = 64, 8
COLOURS = {
    "red": (0.90, 0.12, 0.12),
    "green": (0.12, 0.70, 0.18),
    "blue": (0.15, 0.25, 0.95),
    "yellow": (0.96, 0.88, 0.10),
    "pink": (0.98, 0.45, 0.75),
    "cyan": (0.10, 0.85, 0.90),
}
SHAPES = ("circle", "square", "triangle", "cross", "ring")
CLASSES = tuple(f"{colour} {shape}" for colour in COLOURS for shape in SHAPES)
TEMPLATES = (
    "a photo of a {}.",
    "a picture of a {}.",
    "an image of a {}.",
    "a small photo of a {}.",
    "a photo of one {}.",
    "there is a {} in the scene.",
    "this is a {}.",
    "a {}.",
)
SPLITS = {"train": ENDLESS, "val": 2000, "test": 4000}
STYLES = ("photo", "sketch", "mixed")
VERSION = 1

RADIUS = (7.5, 12.0)
MIXED_SKETCHES = 0.008  # share of sketches in `mixed`
EASY_RADIUS, EASY_IMAGES = 18.0, 115_200  # `mixed` shrinks its largest objects from this radius over so many images
DISTRACTORS = 4
_COARSE = 6  # cells of the smooth texture
_NOISE = 1 << 18  # length of the pixel-noise table

Floats = NDArray[np.float32]


def build(style: str, split: str, *, root: Path | None = None, seed: int = 0) -> "ShapeCaptions":
    """Registry builder; the argument is the style."""
    style = style or "photo"
    if style not in STYLES:
        raise UsageError(f"unknown style {style!r} of shape-captions", f"Give one of {', '.join(STYLES)}")
    return ShapeCaptions(style, split)


class _Labels:
    """Class of any index."""

    def __init__(self, split: str, size: int) -> None:
        self._split, self._size = split, size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, indices: Indices) -> NDArray[np.int64]:
        return (_uniform(self._split, np.asarray(indices), 1, start=0)[..., 0] * len(CLASSES)).astype(np.int64)


class _Ids:
    """Name of any index."""

    def __init__(self, prefix: str, size: int) -> None:
        self._prefix, self._size = prefix, size

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> str:
        return f"{self._prefix}/{index:07d}"


class ShapeCaptions:
    """One split in one style."""

    classes = CLASSES
    templates = TEMPLATES
    captions = None

    def __init__(self, style: str, split: str) -> None:
        self.style, self.split = style, split
        self.name = "shape-captions" if style == "photo" else f"shape-captions:{style}"
        self.endless = split == "train"
        size = SPLITS[split]
        lazy = _Labels(split, size)
        self.labels = lazy if self.endless else lazy[np.arange(size)]
        self.ids = _Ids(split, size)

    def __len__(self) -> int:
        return SPLITS[self.split]

    def fingerprint(self) -> str:
        """Digest of the recipe: the content follows from it."""
        course = [str(MIXED_SKETCHES), str(EASY_RADIUS), str(EASY_IMAGES)] if self.style == "mixed" else []
        return digest(["shape-captions", str(VERSION), self.style, self.split, *course])

    def image(self, index: int) -> Image.Image:
        """One scene."""
        return Image.fromarray(self.images(np.array([index]))[0])

    def images(self, indices: Indices) -> NDArray[np.uint8]:
        """Scenes (B, 64, 64, 3)."""
        indices = np.asarray(indices, dtype=np.int64)
        scene = _Scene(self.split, indices, self._largest(indices))
        sketch = self._sketches(indices)
        pixels = np.empty((len(indices), SIZE, SIZE, 3), np.float32)
        if not sketch.all():
            pixels[~sketch] = scene.take(~sketch).photo()
        if sketch.any():
            pixels[sketch] = scene.take(sketch).sketch()
        return (np.clip(pixels, 0, 1) * 255 + 0.5).astype(np.uint8)

    def object_cover(self, indices: Indices) -> Floats:
        """(B,) share of the 8 px patches that the object touches."""
        scene = _Scene(self.split, np.asarray(indices), self._largest(np.asarray(indices)))
        cells = scene.object_mask(0.0).reshape(-1, SIZE // PATCH, PATCH, SIZE // PATCH, PATCH)
        found: Floats = cells.any((2, 4)).mean((1, 2), dtype=np.float32)
        return found

    def _sketches(self, indices: Indices) -> NDArray[np.bool_]:
        if self.style == "mixed" and self.split == "train":
            return _uniform(self.split, indices, 1, start=900)[:, 0] < MIXED_SKETCHES
        return np.full(len(indices), self.style == "sketch")

    def _largest(self, indices: Indices) -> Floats:
        """Largest radius at each index: constant, but for the course of `mixed`."""
        if self.style != "mixed" or self.split != "train":
            return np.full(len(indices), RADIUS[1], np.float32)
        progress = np.minimum(indices / EASY_IMAGES, 1.0)
        return (EASY_RADIUS + (RADIUS[1] - EASY_RADIUS) * progress).astype(np.float32)


class _Scene:
    """The random choices of B scenes, and their rendering."""

    def __init__(self, split: str, indices: Indices, largest: Floats) -> None:
        self.label = _Labels(split, 0)[indices]
        draw = _uniform(split, indices, 32 + 5 * DISTRACTORS + 3 * _COARSE**2, start=1)
        self.base, self.wave, self.light, self.jitter = draw[:, :3], draw[:, 3:8], draw[:, 8], draw[:, 9:12]
        self.radius = RADIUS[0] + (largest - RADIUS[0]) * draw[:, 12]
        self.centre = self.radius[:, None] + draw[:, 13:15] * (SIZE - 2 * self.radius[:, None])
        self.noise = (draw[:, 15] * (_NOISE - SIZE * SIZE * 3)).astype(np.int64)
        self.clutter = draw[:, 32 : 32 + 5 * DISTRACTORS].reshape(-1, DISTRACTORS, 5)
        self.coarse = draw[:, 32 + 5 * DISTRACTORS :].reshape(-1, 3, _COARSE, _COARSE)

    def take(self, rows: NDArray[np.bool_]) -> "_Scene":
        """Some of the scenes."""
        part = object.__new__(_Scene)
        part.__dict__.update({name: value[rows] for name, value in self.__dict__.items()})
        return part

    def photo(self) -> Floats:
        """Textured background, solid distractors, one solid object."""
        pixels = (0.15 + 0.5 * self.base)[:, None, None] + 0.45 * self._texture() + self._sinusoid(0.10)[..., None]
        for mask, colour in self._distractors(0.0):
            np.copyto(pixels, (0.8 * colour)[:, None, None], where=mask[..., None])
        colour = (_palette()[self.label // len(SHAPES)] + 0.16 * (self.jitter - 0.5)) * (0.75 + 0.25 * self.light)[
            :, None
        ]
        np.copyto(pixels, colour[:, None, None].astype(np.float32), where=self.object_mask(0.0)[..., None])
        return pixels + 0.10 * self._pixel_noise()

    def sketch(self) -> Floats:
        """The same scene as faded outlines on paper."""
        paper = np.array([0.93, 0.90, 0.84], np.float32) - 0.12 * self.base[:, :1] * np.ones(3, np.float32)
        grain = self._texture().mean(-1, keepdims=True)
        pixels = paper[:, None, None] + 0.10 * grain + 0.08 * self._pixel_noise().mean(-1, keepdims=True)
        for mask, colour in self._distractors(1.2):
            np.copyto(pixels, _faded(colour)[:, None, None], where=mask[..., None])
        outline = self.object_mask(0.0) & ~self.object_mask(2.2)
        colour = _palette()[self.label // len(SHAPES)] + 0.16 * (self.jitter - 0.5)
        np.copyto(pixels, _faded(colour)[:, None, None], where=outline[..., None])
        found: Floats = pixels
        return found

    def object_mask(self, inset: float) -> NDArray[np.bool_]:
        """(B, 64, 64): the object, or its inside `inset` px away from its edge."""
        dx, dy = self._offsets(self.centre)
        radius = self.radius[:, None, None]
        mask = np.zeros((len(self.label), SIZE, SIZE), bool)
        shape = self.label % len(SHAPES)
        for kind in range(len(SHAPES)):
            rows = shape == kind
            if rows.any():
                mask[rows] = _MASKS[kind](dx[rows], dy[rows], radius[rows], inset)
        return mask

    def _distractors(self, line: float) -> list[tuple[NDArray[np.bool_], Floats]]:
        """Masks and class colours; `line` > 0 asks for outlines of that width."""
        drawn = []
        for number in range(DISTRACTORS):
            u = self.clutter[:, number]
            dx, dy = self._offsets(2 + u[:, :2] * (SIZE - 4))
            radius = (2 + 2 * u[:, 2])[:, None, None]
            distance = np.where((u[:, 3] < 0.5)[:, None, None], np.hypot(dx, dy), np.maximum(abs(dx), abs(dy)))
            mask = distance <= radius
            if line:
                mask &= distance > radius - line
            drawn.append((mask, _palette()[(u[:, 4] * len(COLOURS)).astype(np.int64)]))
        return drawn

    def _offsets(self, centre: Floats) -> tuple[Floats, Floats]:
        grid = np.arange(SIZE, dtype=np.float32) + 0.5
        return (grid - centre[:, :1])[:, None, :], (grid - centre[:, 1:2])[:, :, None]

    def _texture(self) -> Floats:
        """(B, 64, 64, 3) smooth noise in -0.5..0.5: a coarse grid, bilinearly enlarged."""
        enlarge = _enlarge()
        found: Floats = np.einsum("ya,bcad,xd->byxc", enlarge, self.coarse - 0.5, enlarge, optimize=True).astype(
            np.float32
        )
        return found

    def _sinusoid(self, amplitude: float) -> Floats:
        fx, fy, phase, strength = (self.wave[:, k][:, None, None] for k in range(4))
        grid = np.arange(SIZE, dtype=np.float32) / SIZE
        angle = 2 * np.pi * (8 * (fx - 0.5) * grid[None, None] + 8 * (fy - 0.5) * grid[None, :, None] + phase)
        return (amplitude * strength * np.sin(angle)).astype(np.float32)

    def _pixel_noise(self) -> Floats:
        """(B, 64, 64, 3) in -0.5..0.5: a stretch of a fixed table, from a place of its own for each scene."""
        table, length = _noise_table(), SIZE * SIZE * 3
        return np.stack([table[first : first + length] for first in self.noise]).reshape(-1, SIZE, SIZE, 3)


def _circle(dx: Floats, dy: Floats, r: Floats, inset: float) -> NDArray[np.bool_]:
    found: NDArray[np.bool_] = dx * dx + dy * dy <= np.square(r - inset)
    return found


def _square(dx: Floats, dy: Floats, r: Floats, inset: float) -> NDArray[np.bool_]:
    return np.maximum(abs(dx), abs(dy)) <= 0.86 * r - inset


def _triangle(dx: Floats, dy: Floats, r: Floats, inset: float) -> NDArray[np.bool_]:
    slope = 2 * abs(dx) - dy  # upright isosceles: apex at -r, base at 0.8 r
    return (dy <= 0.8 * r - inset) & (slope <= r - 2.236 * inset)


def _cross(dx: Floats, dy: Floats, r: Floats, inset: float) -> NDArray[np.bool_]:
    long, short = r - inset, 0.34 * r - inset
    ax, ay = abs(dx), abs(dy)
    return ((ax <= long) & (ay <= short)) | ((ax <= short) & (ay <= long))


def _ring(dx: Floats, dy: Floats, r: Floats, inset: float) -> NDArray[np.bool_]:
    distance = dx * dx + dy * dy
    found: NDArray[np.bool_] = (distance <= np.square(r - inset)) & (distance >= np.square(0.55 * r + inset))
    return found


_MASKS = (_circle, _square, _triangle, _cross, _ring)


def _faded(colour: Floats) -> Floats:
    """Desaturated and darkened, like a crayon."""
    grey = colour.mean(-1, keepdims=True)
    found: Floats = (0.85 * (0.5 * grey + 0.5 * colour)).astype(np.float32)
    return found


@cache
def _palette() -> Floats:
    return np.array(list(COLOURS.values()), np.float32)


@cache
def _enlarge() -> Floats:
    """(64, 6) bilinear weights."""
    place = np.linspace(0, _COARSE - 1, SIZE)
    return np.maximum(0, 1 - abs(place[:, None] - np.arange(_COARSE))).astype(np.float32)


@cache
def _noise_table() -> Floats:
    found: Floats = _uniform("noise", np.array([0]), _NOISE, start=0)[0] - np.float32(0.5)
    return found


def _uniform(stream: str, indices: Indices, count: int, *, start: int) -> Floats:
    """(..., count) numbers in [0, 1): hashes (splitmix64) of (stream, index, start + k)."""
    tag = np.uint64(int(digest(["shape-captions", str(VERSION), stream]), 16))
    with np.errstate(over="ignore"):
        key = _mix(indices.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + tag)
        place = np.arange(start, start + count, dtype=np.uint64) * np.uint64(0xD1342543DE82EF95)
        bits = _mix(key[..., None] + place)
    return (bits >> np.uint64(40)).astype(np.float32) / np.float32(1 << 24)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
