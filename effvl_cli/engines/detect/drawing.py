"""Boxes drawn on an image: a colour for each class, solid outlines by day, dashed ones by night."""

import colorsys
import hashlib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

NIGHT = 1  # number of the condition, see techniques/detect/subclass.py
PX_PER_LINE = 400  # of the shorter side, for each px of a line
PX_PER_LETTER, LEAST_LETTER = 32, 9  # of the shorter side, for each px of the letters' height
_SALT = (9305).to_bytes(2, "big")  # with it the usual classes of roads have colours that differ
DASH = 4  # lengths of a dash and of a gap, in widths of the line

Colour = tuple[int, int, int]
Pixels = tuple[int, int, int, int]
"""The first and the last column and row that belong to a box, as (left, top, right, bottom)."""


def draw(image: Image.Image, detections: Mapping[str, Tensor], classes: Sequence[str]) -> Image.Image:
    """A copy of an image with boxes and their names, the surest on top.

    Args:
        image: RGB.
        detections: `boxes` (N, 4) xyxy in its pixels and `labels` (N,) from 1; where they are known, `scores` (N,) and
            `conditions` (N,), 1 for night; without scores, e.g. true boxes, names stand alone.
        classes: names of the classes 1..C.
    """
    drawn = image.copy()
    canvas = ImageDraw.Draw(drawn)
    width = max(1, round(min(image.size) / PX_PER_LINE))
    font = _font(max(LEAST_LETTER, round(min(image.size) / PX_PER_LETTER)))
    boxes, labels = detections["boxes"].tolist(), detections["labels"].tolist()
    scores: list[float | None] = detections["scores"].tolist() if "scores" in detections else [None] * len(boxes)
    conditions = detections["conditions"].tolist() if "conditions" in detections else [0] * len(boxes)
    for k in sorted(range(len(boxes)), key=lambda k: (scores[k] or 0, -k)):
        name, score = classes[labels[k] - 1], scores[k]
        colour = colour_of(name)
        _outline(canvas, _pixels(boxes[k], image.size), colour, width, dashed=conditions[k] == NIGHT)
        text = name if score is None else f"{name} {score:.2f}"
        _label(canvas, tuple(boxes[k][:2]), text, colour, font, image.size)
    return drawn


@lru_cache
def colour_of(name: str) -> Colour:
    """The colour of a class, the same wherever it is drawn."""
    hue = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=2, salt=_SALT).digest(), "big") / 2**16
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)


@lru_cache
def _font(size: int) -> Any:
    return ImageFont.load_default(size)


def _pixels(box: Sequence[float], size: tuple[int, int]) -> Pixels:
    left, top = (min(max(0, round(value)), end - 1) for value, end in zip(box[:2], size, strict=True))
    right, bottom = (min(max(0, round(value)), end) - 1 for value, end in zip(box[2:], size, strict=True))
    return left, top, max(left, right), max(top, bottom)


def _outline(canvas: ImageDraw.ImageDraw, box: Pixels, colour: Colour, width: int, *, dashed: bool) -> None:
    left, top, right, bottom = box
    if not dashed:
        canvas.rectangle((left, top, right, bottom), outline=colour, width=width)
        return
    dash = DASH * width
    inner = width - 1  # lines lie inside the box, as those of a solid outline do
    for start in range(left, right + 1, 2 * dash):
        end = min(start + dash - 1, right)
        canvas.rectangle((start, top, end, min(top + inner, bottom)), fill=colour)
        canvas.rectangle((start, max(bottom - inner, top), end, bottom), fill=colour)
    for start in range(top, bottom + 1, 2 * dash):
        end = min(start + dash - 1, bottom)
        canvas.rectangle((left, start, min(left + inner, right), end), fill=colour)
        canvas.rectangle((max(right - inner, left), start, right, end), fill=colour)


def _label(
    canvas: ImageDraw.ImageDraw,
    corner: tuple[float, float],
    text: str,
    colour: Colour,
    font: Any,
    size: tuple[int, int],
) -> None:
    """The name above a box; where that would be outside of the image, moved into it."""
    x, y, right, bottom = canvas.textbbox((0, 0), text, font=font)
    width, height = round(right - x) + 2, round(bottom - y) + 2
    left = max(0, min(round(corner[0]), size[0] - width))
    top = max(0, min(round(corner[1]) - height, size[1] - height))
    canvas.rectangle((left, top, left + width - 1, top + height - 1), fill=colour)
    red, green, blue = colour
    ink = "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 128 else "white"
    canvas.text((left + 1 - x, top + 1 - y), text, fill=ink, font=font)
