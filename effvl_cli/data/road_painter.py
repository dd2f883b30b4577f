"""Pixels of a procedural road scene: shapes with covered shares of pixels, illumination, glow of lamps, noise."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from effvl_cli.data.road_layout import DAY_NOISE, NIGHT_NOISE, SIZE, Colour, Light, Scene, Shape

NIGHT_TINT = (0.75, 0.88, 1.25)
LINE: Colour = (0.85, 0.85, 0.80)
POLE: Colour = (0.30, 0.30, 0.32)
LAMP_LIGHT: Colour = (1.0, 0.85, 0.55)
POOL, POOL_REACH = 0.07, 0.8  # light of a street lamp, and how far it reaches in heights of the lamp
HALO = 4.0  # reach of a halo, in sizes of its core
RING = 0.28  # share of a ring's radius that is drawn

Floats = NDArray[np.floating[Any]]


def paint(scene: Scene, frame: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """(160, 256, 3) picture of a frame; the generator gives the camera's noise."""
    canvas = _background(scene)
    things = scene.at(frame)
    for thing in things:
        for shape in thing.shapes():
            _draw(canvas, shape)
    if not scene.night:
        canvas *= scene.light
    else:
        canvas *= _lit(scene)
        for x, foot, height in scene.lamps:
            _glow(canvas, Light(x, foot - height, 0.05 * height, LAMP_LIGHT))
        for thing in things:
            for light in thing.lights():
                _glow(canvas, light)
    canvas += (NIGHT_NOISE if scene.night else DAY_NOISE) * rng.standard_normal(canvas.shape, dtype=np.float32)
    found: NDArray[np.uint8] = (canvas.clip(0, 1) * 255 + 0.5).astype(np.uint8)
    return found


def _lit(scene: Scene) -> Floats:
    """(160, 256, 3) illumination by night: what there is everywhere, and pools of light around street lamps."""
    ys, xs = np.arange(SIZE[0], dtype=np.float32)[:, None] + 0.5, np.arange(SIZE[1], dtype=np.float32) + 0.5
    found = scene.light * np.ones((*SIZE, 1), np.float32) * np.array(NIGHT_TINT, np.float32)
    for x, foot, height in scene.lamps:
        distance = np.hypot(xs - x, ys - foot + 0.5 * height) / height
        found += POOL * np.exp(-distance / POOL_REACH)[..., None] * np.array(LAMP_LIGHT, np.float32)
    return found


def _background(scene: Scene) -> Floats:
    """(160, 256, 3) reflectances of sky, buildings, road, lane lines and lamp posts."""
    height, width = SIZE
    share = ((np.arange(height, dtype=np.float32) + 0.5) / scene.horizon).clip(0, 1)[:, None]
    top, low = (np.array(colour, np.float32) for colour in scene.sky)
    canvas = np.repeat(((1 - share) * top + share * low)[:, None], width, 1)
    for shape in scene.buildings:
        _draw(canvas, shape)
    _draw(canvas, Shape("box", (0, scene.horizon, width, height), scene.ground))
    rows = np.arange(int(np.ceil(scene.horizon)), height)
    near = ((rows + 0.5 - scene.horizon) / (height - scene.horizon)).astype(np.float32)[:, None]
    columns = np.arange(width, dtype=np.float32)
    for foot in scene.lanes:
        middle, half = scene.vanishing + (foot - scene.vanishing) * near, 0.2 + 1.8 * near
        cover = _covered(columns, middle - half, middle + half)
        _blend(canvas[rows[0] :], cover, LINE)
    for x, foot, tall in scene.lamps:
        thick = max(0.5, 0.02 * tall)
        _draw(canvas, Shape("box", (x - thick, foot - tall, x + thick, foot), POLE))
    return canvas


def _covered(pixels: NDArray[np.float32], low: float | Floats, high: float | Floats) -> Floats:
    """Share of each pixel [k, k + 1] between two places."""
    found: Floats = (np.minimum(pixels + 1, high) - np.maximum(pixels, low)).clip(0, 1).astype(np.float32)
    return found


def _blend(window: Floats, cover: Floats, colour: Colour) -> None:
    """Put a colour over a part of the canvas, in place."""
    window += cover[..., None] * (np.array(colour, np.float32) - window)


def _window(x1: float, y1: float, x2: float, y2: float) -> tuple[slice, slice]:
    """Rows and columns of the canvas that a box touches."""
    height, width = SIZE
    rows = slice(max(0, int(np.floor(y1))), max(0, min(height, int(np.ceil(y2)))))
    return rows, slice(max(0, int(np.floor(x1))), max(0, min(width, int(np.ceil(x2)))))


def _draw(canvas: Floats, shape: Shape) -> None:
    x1, y1, x2, y2 = shape.extent
    rows, columns = _window(*shape.extent)
    ys, xs = (np.arange(part.start, part.stop, dtype=np.float32) for part in (rows, columns))
    if not (len(ys) and len(xs)):
        return
    if shape.kind == "box":
        cover = _covered(ys, y1, y2)[:, None] * _covered(xs, x1, x2)
    else:
        rx, ry = (x2 - x1) / 2, (y2 - y1) / 2
        dx, dy = (xs + 0.5 - x1 - rx) / rx, (ys + 0.5 - y1 - ry) / ry
        inside = 1 - np.hypot(dx, dy[:, None])
        if shape.kind == "ring":  # a band, at least about a pixel wide
            inside = np.minimum(inside, max(RING, 1.2 / rx) - inside)
        cover = (inside * min(rx, ry) + 0.5).clip(0, 1).astype(np.float32)
    _blend(canvas[rows, columns], cover, shape.colour)


def _glow(canvas: Floats, light: Light) -> None:
    """A Gaussian core and an exponential halo, added in place."""
    reach = 4 * HALO * light.size
    rows, columns = _window(light.x - reach, light.y - reach, light.x + reach, light.y + reach)
    ys, xs = (np.arange(part.start, part.stop, dtype=np.float32) + 0.5 for part in (rows, columns))
    distance = np.hypot(xs - light.x, (ys - light.y)[:, None]) / light.size
    strength = 1.2 * np.exp(-0.5 * distance**2) + 0.35 * np.exp(-distance / HALO * 2)
    canvas[rows, columns] += strength[..., None].astype(np.float32) * np.array(light.colour, np.float32)
