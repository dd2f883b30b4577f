"""`moving-shapes`: procedural videos of one textured disc or square whose motion is the class.

Colours are a nuisance that tells a little about the class, as scenes do in videos of actions: the palette is the one of
the class with probability RHO, else any. Half of the videos are shaken, object and background alike. Every video is
rebuilt alone from (seed, split, index).
"""

from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from effvl_cli.core.errors import DataError, UsageError
from effvl_cli.core.seeds import derive
from effvl_cli.data import CLIPS
from effvl_cli.data.clips import Frames, Motion, frame_numbers
from effvl_cli.data.source import digest

CLASSES = ("right", "left", "down", "up", "clockwise circle", "counter-clockwise circle", "growing", "shrinking")
SPLITS = {"train": 1024, "val": 320, "test": 320}
SIZE, FRAMES = 24, 10
RHO = 0.5  # probability that the palette is the class's own
PALETTE_SEED, PALETTES = 7, len(CLASSES)
RADIUS, SPEED, CENTRE = (3.0, 5.0), (0.5, 1.0), (9.0, 15.0)  # px, px per frame, px
CIRCLE_RADIUS, CIRCLE_STEP = 3.0, 0.7  # px; rad for each px of speed
GROWTH = 0.09
FREQUENCY = (0.3, 0.9)  # rad per px, of the textures
SHAKE, NOISE = 0.5, 0.03  # standard deviations: px, share of white
VERSION = 1

Floats = NDArray[np.float64]


def build(argument: str, split: str, *, root: Path | None = None, seed: int = 0) -> "MovingShapes":
    """Registry builder; the videos depend on the seed."""
    if argument:
        raise UsageError(f"moving-shapes takes no argument, got {argument!r}", "Give --data moving-shapes")
    return _opened(split, seed)


@lru_cache(maxsize=4)
def _opened(split: str, seed: int) -> "MovingShapes":
    """One source for all that open a split in this process: its videos are drawn once."""
    return MovingShapes(split, seed)


class MovingShapes:
    """One split: (10, 24, 24, 3) frames a video, as many of each class.

    Attributes:
        palettes: (M,) int64 number of each video's pair of colours; that of its class is the class's number.
    """

    name, kind, classes, endless = "moving-shapes", CLIPS, CLASSES, False

    def __init__(self, split: str, seed: int = 0) -> None:
        self.split, self.seed = split, seed
        count = SPLITS[split]
        self.labels = np.arange(count, dtype=np.int64) % len(CLASSES)
        self.groups = np.arange(count, dtype=np.int64)
        self.ids = [f"{split}/{index:04d}" for index in range(count)]
        self.palettes = np.array([self._palette(index) for index in range(count)], dtype=np.int64)
        self._videos: dict[int, Frames] = {}  # a whole split is 18 MB

    def __len__(self) -> int:
        return len(self.labels)

    def fingerprint(self) -> str:
        """Digest of the recipe: the content follows from it."""
        return digest(["moving-shapes", str(VERSION), str(self.seed), self.split])

    def num_frames(self, index: int) -> int:
        """Ten."""
        return FRAMES

    def read(self, index: int, start: int, length: int, stride: int = 1) -> Frames:
        """(T, 24, 24, 3) frames start, start + stride, ..."""
        numbers = frame_numbers(self.ids[index], FRAMES, start, length, stride)
        if index not in self._videos:
            self._videos[index] = self._scene(index).draw()
        found: Frames = self._videos[index][numbers]
        return found

    def motion(self, index: int, start: int, length: int, stride: int = 1) -> Motion:
        """There is none: nothing is encoded."""
        raise DataError("moving-shapes has no codec's motion vectors", "Give the view gradflow instead of flow:mv")

    def _scene(self, index: int) -> "_Scene":
        return _Scene.drawn(int(self.labels[index]), self._generator(index))

    def _palette(self, index: int) -> int:
        """Without the rest of the scene, of which the noise takes long."""
        return _palette(int(self.labels[index]), self._generator(index))

    def _generator(self, index: int) -> np.random.Generator:
        return np.random.default_rng(derive(self.seed, "moving-shapes", VERSION, self.split, index))


def _palette(label: int, generator: np.random.Generator) -> int:
    """The first choice of a scene."""
    own, other = generator.random() < RHO, int(generator.integers(PALETTES))
    return label if own else other


@cache
def palettes() -> Floats:
    """(8, 2, 3): colours of object and background, in 0..1; fixed for all seeds."""
    return np.random.default_rng(PALETTE_SEED).uniform(0, 1, (PALETTES, 2, 3))


@dataclass(frozen=True)
class _Scene:
    """The random choices of one video, and its rendering.

    Attributes:
        label: class.
        palette: number of the colours.
        square: whether the object is a square rather than a disc.
        radius: of the object, in px.
        centre: (2,) x and y at the first frame; of the path for those that circle.
        speed: in px per frame.
        turn: first angle on the circle.
        waves: (2, 3) frequencies in x and y and phase of the textures of object and background.
        shake: (10, 2) shift of each frame, in px.
        noise: (10, 24, 24, 3).
    """

    label: int
    palette: int
    square: bool
    radius: float
    centre: Floats
    speed: float
    turn: float
    waves: Floats
    shake: Floats
    noise: Floats

    @classmethod
    def drawn(cls, label: int, generator: np.random.Generator) -> "_Scene":
        palette = _palette(label, generator)
        square = generator.random() < 0.5
        radius, speed = generator.uniform(*RADIUS), generator.uniform(*SPEED)
        centre, turn = generator.uniform(*CENTRE, 2), generator.uniform(0, 2 * np.pi)
        frequency, direction, phase = (
            generator.uniform(low, high, 2) for low, high in (FREQUENCY, (0, 2 * np.pi), (0, 2 * np.pi))
        )
        waves = np.stack([frequency * np.cos(direction), frequency * np.sin(direction), phase], 1)
        shaken = generator.random() < 0.5
        shake = SHAKE * generator.standard_normal((FRAMES, 2)) * shaken
        noise = NOISE * generator.standard_normal((FRAMES, SIZE, SIZE, 3))
        return cls(label, palette, square, radius, centre, speed, turn, waves, shake, noise)

    def draw(self) -> Frames:
        """(10, 24, 24, 3)."""
        grid = np.arange(SIZE) + 0.5
        place, scale = self._path()
        # (10, 24, 24) coordinates that move with the background, and with the object
        x, y = (grid - self.shake[:, :1])[:, None, :], (grid - self.shake[:, 1:])[:, :, None]
        dx = (x - place[:, 0, None, None]) / scale[:, None, None]
        dy = (y - place[:, 1, None, None]) / scale[:, None, None]
        distance = np.maximum(abs(dx), abs(dy)) if self.square else np.hypot(dx, dy)
        # covered share of each pixel, so that motion by parts of a pixel shows
        cover = np.clip((self.radius - distance) * scale[:, None, None] + 0.5, 0, 1)[..., None]
        front, back = palettes()[self.palette]
        pixels = cover * self._texture(0, dx, dy) * front + (1 - cover) * self._texture(1, x, y) * back
        found: Frames = (np.clip(pixels + self.noise, 0, 1) * 255 + 0.5).astype(np.uint8)
        return found

    def _path(self) -> tuple[Floats, Floats]:
        """(10, 2) centres and (10,) scales of the object."""
        time = np.arange(FRAMES, dtype=np.float64)
        place, scale = np.tile(self.centre, (FRAMES, 1)), np.ones(FRAMES)
        if self.label < 4:
            axis, sign = ((0, 1), (0, -1), (1, 1), (1, -1))[self.label]
            place[:, axis] += sign * self.speed * time
        elif self.label < 6:  # y points down: growing angles run clockwise
            angle = self.turn + (1, -1)[self.label - 4] * CIRCLE_STEP * self.speed * time
            place += CIRCLE_RADIUS * np.stack([np.cos(angle), np.sin(angle)], 1)
        else:
            scale = np.exp((1, -1)[self.label - 6] * GROWTH * self.speed * (time - (FRAMES - 1) / 2))
        return place, scale

    def _texture(self, part: int, x: Floats, y: Floats) -> Floats:
        """(10, 24, 24, 1) brightness of object (0) or background (1) at coordinates that move with it."""
        across, down, phase = self.waves[part]
        found: Floats = (0.75 + 0.25 * np.sin(across * x + down * y + phase))[..., None]
        return found
