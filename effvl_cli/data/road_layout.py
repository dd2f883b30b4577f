"""Where things are in a procedural road scene: horizon, buildings, lamps, and objects made of simple shapes.

Everything is in px of a 160x256 canvas, y down. The box of an object is the extent of its shapes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from effvl_cli.core.seeds import derive

CLASSES = ("pedestrian", "vehicle", "scooter", "bicycle")
SIZE = (160, 256)  # height and width

SHARES = (0.3, 0.3, 0.25, 0.15)  # of the classes
HEIGHTS = (1.0, 0.85, 0.9, 0.75)
ASPECTS = (0.42, 1.6, 0.75, 1.25)  # width by height
ASPECT_JITTER = (0.85, 1.15)
OBJECTS = (2, 6)
DEPTH, FOOT = (0.12, 0.55), 0.95
HORIZON = (0.32, 0.42)
VELOCITY, GROWTH = (-0.6, 0.6), (1.0, 1.01)  # px per frame, factor per frame
VISIBLE, LEAST_SIDE = 0.3, 4.0
HIDDEN = 0.7  # an object is left out where nearer ones cover more of its box

DAY, NIGHT = (0.75, 1.05), (0.06, 0.22)
DAY_NOISE, NIGHT_NOISE = 0.015, 0.05
BUILDINGS, LANES = 8, 4

Colour = tuple[float, float, float]
Floats = NDArray[np.float64]

SKIN: Colour = (0.80, 0.62, 0.50)
TYRE: Colour = (0.10, 0.10, 0.11)
GLASS: Colour = (0.30, 0.38, 0.45)
METAL: Colour = (0.25, 0.25, 0.27)


@dataclass(frozen=True)
class Palette:
    """Middle and spread of the colours of a style; the sky's at the top and at the horizon."""

    sky: tuple[tuple[Colour, float], tuple[Colour, float]]
    ground: tuple[Colour, float]
    walls: tuple[Colour, float]
    clothes: tuple[Colour, float]
    bodies: tuple[Colour, float]
    lamps: int
    """How many street lamps there are."""


PALETTES = {
    "road": Palette(
        sky=(((0.55, 0.70, 0.92), 0.05), ((0.85, 0.88, 0.93), 0.05)),
        ground=((0.46, 0.46, 0.47), 0.03),
        walls=((0.55, 0.53, 0.52), 0.18),
        clothes=((0.45, 0.40, 0.45), 0.35),
        bodies=((0.50, 0.45, 0.45), 0.40),
        lamps=4,
    ),
    "outside": Palette(
        sky=(((0.80, 0.62, 0.60), 0.05), ((0.95, 0.82, 0.66), 0.05)),
        ground=((0.58, 0.50, 0.40), 0.03),
        walls=((0.70, 0.45, 0.36), 0.12),
        clothes=((0.70, 0.66, 0.55), 0.20),
        bodies=((0.72, 0.72, 0.62), 0.22),
        lamps=0,
    ),
}


@dataclass(frozen=True)
class Shape:
    """A filled rectangle ("box"), ellipse or ring within its extent.

    Attributes:
        kind: what is drawn.
        extent: (x1, y1, x2, y2).
        colour: red, green, blue in 0..1.
    """

    kind: str
    extent: tuple[float, float, float, float]
    colour: Colour


@dataclass(frozen=True)
class Light:
    """A lamp that glows: place, size of its core in px, colour."""

    x: float
    y: float
    size: float
    colour: Colour


@dataclass(frozen=True)
class Thing:
    """An object at the first frame.

    Attributes:
        label: 0..3.
        x: middle.
        foot: y of its lowest point.
        height: in px.
        width: in px.
        velocity: px per frame.
        growth: factor per frame.
        colours: of clothes and of body.
        rear: whether a vehicle shows its tail.
    """

    label: int
    x: float
    foot: float
    height: float
    width: float
    velocity: float
    growth: float
    colours: tuple[Colour, Colour]
    rear: bool

    def at(self, frame: int) -> "Thing":
        """The same some frames later."""
        factor = self.growth**frame
        return replace(self, x=self.x + self.velocity * frame, height=self.height * factor, width=self.width * factor)

    def shapes(self) -> list[Shape]:
        """What it is drawn of, from back to front."""
        return [self._placed(*part) for part in (_pedestrian, _vehicle, _scooter, _bicycle)[self.label](self)]

    def lights(self) -> list[Light]:
        """What glows at night: lamps of vehicles and scooters."""
        if CLASSES[self.label] == "vehicle":
            colour = (1.0, 0.12, 0.10) if self.rear else (1.0, 0.97, 0.85)
            size = self.height * (0.05 if self.rear else 0.07)
            return [self._light(side * 0.38, 0.62, size, colour) for side in (-1, 1)]
        if CLASSES[self.label] == "scooter":
            return [self._light(0.0, 0.62, self.height * 0.06, (1.0, 0.95, 0.80))]
        return []

    def extent(self) -> Floats:
        """(4,) box of its shapes, which may leave the canvas."""
        every = np.array([shape.extent for shape in self.shapes()])
        return np.concatenate([every[:, :2].min(0), every[:, 2:].max(0)])

    def _light(self, x: float, y: float, size: float, colour: Colour) -> Light:
        return Light(self.x + x * self.width, self.foot - (1 - y) * self.height, max(size, 0.6), colour)

    def _placed(self, kind: str, x1: float, y1: float, x2: float, y2: float, colour: Colour) -> Shape:
        """From px right of the middle and below the top."""
        top = self.foot - self.height
        return Shape(kind, (self.x + x1, top + y1, self.x + x2, top + y2), colour)


Part = tuple[str, float, float, float, float, Colour]


def _disc(kind: str, x: float, y: float, radius: float, colour: Colour) -> Part:
    return kind, x - radius, y - radius, x + radius, y + radius, colour


def _pedestrian(thing: Thing) -> list[Part]:
    w, h, (cloth, trousers) = thing.width, thing.height, thing.colours
    legs: list[Part] = [("box", x * w, 0.54 * h, (x + 0.2) * w, h, trousers) for x in (-0.28, 0.08)]
    arms: list[Part] = [("box", x * w, 0.2 * h, (x + 0.15) * w, 0.54 * h, cloth) for x in (-0.5, 0.35)]
    torso: Part = ("box", -0.3 * w, 0.18 * h, 0.3 * w, 0.56 * h, cloth)
    return [*legs, *arms, torso, _disc("ellipse", 0.0, 0.09 * h, 0.09 * h, SKIN)]


def _vehicle(thing: Thing) -> list[Part]:
    w, h, (_, body) = thing.width, thing.height, thing.colours
    return [
        ("box", -0.34 * w, 0.0, 0.34 * w, 0.5 * h, body),
        ("box", -0.28 * w, 0.08 * h, 0.28 * w, 0.4 * h, GLASS),
        ("box", -0.5 * w, 0.42 * h, 0.5 * w, 0.88 * h, body),
        *(_disc("ellipse", side * 0.32 * w, 0.84 * h, 0.16 * h, TYRE) for side in (-1, 1)),
    ]


def _scooter(thing: Thing) -> list[Part]:
    w, h, (cloth, body) = thing.width, thing.height, thing.colours
    return [
        *(_disc("ellipse", side * 0.33 * w, 0.88 * h, 0.12 * h, TYRE) for side in (-1, 1)),
        ("box", -0.5 * w, 0.56 * h, 0.5 * w, 0.84 * h, body),
        ("box", -0.24 * w, 0.2 * h, 0.24 * w, 0.6 * h, cloth),
        _disc("ellipse", 0.0, 0.11 * h, 0.11 * h, body),
    ]


def _bicycle(thing: Thing) -> list[Part]:
    w, h, (cloth, trousers) = thing.width, thing.height, thing.colours
    radius = 0.25 * h
    return [
        *(_disc("ring", side * (0.5 * w - radius), h - radius, radius, TYRE) for side in (-1, 1)),
        ("box", -0.3 * w, 0.5 * h, 0.3 * w, 0.55 * h, METAL),
        ("box", -0.06 * w, 0.45 * h, 0.06 * w, 0.84 * h, trousers),
        ("box", -0.14 * w, 0.17 * h, 0.14 * w, 0.5 * h, cloth),
        _disc("ellipse", 0.0, 0.09 * h, 0.09 * h, SKIN),
    ]


@dataclass(frozen=True)
class Scene:
    """The random choices of a scene.

    Attributes:
        night: whether it is dark.
        light: brightness of the illumination.
        horizon: its y.
        vanishing: x of the vanishing point.
        sky: colours at the top and at the horizon.
        ground: colour of the road.
        lanes: x at the lower edge of each lane line.
        buildings: (x1, y1, x2, horizon) and colour of each.
        lamps: foot and height of street lamps, as (x, foot, height).
        things: objects, from far to near.
    """

    night: bool
    light: float
    horizon: float
    vanishing: float
    sky: tuple[Colour, Colour]
    ground: Colour
    lanes: tuple[float, ...]
    buildings: tuple[Shape, ...]
    lamps: tuple[tuple[float, float, float], ...]
    things: tuple[Thing, ...]

    @classmethod
    def drawn(cls, style: str, split: str, number: int, seed: int) -> "Scene":
        """The scene of that number; odd ones are at night."""
        rng = np.random.default_rng(derive(seed, "road-scenes", style, split, number))
        night, palette = number % 2 == 1, PALETTES[style]
        height, width = SIZE
        horizon = float(rng.uniform(*HORIZON)) * height
        return cls(
            night,
            float(rng.uniform(*(NIGHT if night else DAY))),
            horizon,
            float(rng.uniform(0.35, 0.65)) * width,
            (_colour(rng, palette.sky[0]), _colour(rng, palette.sky[1])),
            _colour(rng, palette.ground),
            tuple(float(x) for x in np.linspace(-0.3, 1.3, LANES) * width + rng.uniform(-12, 12, LANES)),
            _buildings(rng, horizon, palette),
            _lamps(rng, horizon, palette.lamps),
            _things(rng, horizon, palette),
        )

    def at(self, frame: int) -> list[Thing]:
        """Objects some frames later, from far to near."""
        return [thing.at(frame) for thing in self.things]

    def boxes(self, frame: int) -> tuple[list[Floats], list[int]]:
        """Boxes that are visible enough within the canvas, and their labels from 1."""
        found, labels = [], []
        for thing in self.at(frame):
            whole = thing.extent()
            shown = whole.clip(0, [SIZE[1], SIZE[0]] * 2)
            if _area(shown) >= VISIBLE * _area(whole) and (shown[2:] - shown[:2]).min() >= LEAST_SIDE:
                found.append(shown)
                labels.append(thing.label + 1)
        return found, labels


def _colour(rng: np.random.Generator, around: tuple[Colour, float]) -> Colour:
    middle, spread = around
    red, green, blue = (np.array(middle) + rng.uniform(-spread, spread, 3)).clip(0.03, 0.97)
    return float(red), float(green), float(blue)


def _buildings(rng: np.random.Generator, horizon: float, palette: Palette) -> tuple[Shape, ...]:
    found = []
    for _ in range(BUILDINGS):
        x, width, height = rng.uniform(-20, SIZE[1]), rng.uniform(18, 55), rng.uniform(0.25, 0.85) * horizon
        colour = _colour(rng, palette.walls)
        found.append(Shape("box", (float(x), float(horizon - height), float(x + width), horizon), colour))
    return tuple(found)


def _lamps(rng: np.random.Generator, horizon: float, count: int) -> tuple[tuple[float, float, float], ...]:
    found = []
    for number in range(count):
        depth = float(rng.uniform(0.1, 0.5))
        side = rng.uniform(0.02, 0.2) if number % 2 else rng.uniform(0.8, 0.98)
        foot = horizon + FOOT * depth * SIZE[0]
        found.append((float(side) * SIZE[1], foot, 1.5 * depth * SIZE[0]))
    return tuple(found)


def _things(rng: np.random.Generator, horizon: float, palette: Palette) -> tuple[Thing, ...]:
    """Objects from far to near; those that nearer ones hide are left out."""
    found = [_thing(rng, horizon, palette) for _ in range(int(rng.integers(OBJECTS[0], OBJECTS[1] + 1)))]
    found.sort(key=lambda thing: thing.foot)
    extents = [thing.extent() for thing in found]
    return tuple(thing for k, thing in enumerate(found) if not _is_hidden(extents[k], extents[k + 1 :]))


def _thing(rng: np.random.Generator, horizon: float, palette: Palette) -> Thing:
    label = int(rng.choice(len(CLASSES), p=SHARES))
    depth = float(rng.uniform(*DEPTH))
    height = depth * SIZE[0] * HEIGHTS[label]
    return Thing(
        label,
        float(rng.uniform(0.03, 0.97)) * SIZE[1],
        horizon + FOOT * depth * SIZE[0],
        height,
        height * ASPECTS[label] * float(rng.uniform(*ASPECT_JITTER)),
        float(rng.uniform(*VELOCITY)),
        float(rng.uniform(*GROWTH)),
        (_colour(rng, palette.clothes), _colour(rng, palette.bodies)),
        bool(rng.random() < 0.5),
    )


def _is_hidden(box: Floats, nearer: Sequence[Floats]) -> bool:
    """Whether one of the nearer boxes covers most of it."""
    for other in nearer:
        shared = np.concatenate([np.maximum(box[:2], other[:2]), np.minimum(box[2:], other[2:])])
        if _area(shared) > HIDDEN * _area(box):
            return True
    return False


def _area(box: Floats) -> float:
    return float(np.prod((box[2:] - box[:2]).clip(0)))
