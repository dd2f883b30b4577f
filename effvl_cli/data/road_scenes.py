"""`road-scenes`: procedural roads by day and by night with pedestrians, vehicles, scooters and bicycles, 160x256 px.

`road-scenes:style=outside,scenes=100,frames=8`: `style` is `road`, the default, or `outside`, other colours and no
street lamps; `scenes` of the training split with so many `frames` each, near-duplicates of one another; `val` and
`test` scenes of the other splits, of one frame; `seed` of all of it; a run's own seed does not matter, so
that all of them are tested on the same scenes. Every second scene is at night.

A scene is laid out from (seed, split, scene) and a frame's noise from (seed, split, scene, frame): each can be rebuilt
alone. Pictures of a split are drawn once and kept in the cache.
"""

import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from effvl_cli.core.cache import Cache
from effvl_cli.core.errors import UsageError
from effvl_cli.core.seeds import derive
from effvl_cli.data.boxes import BoxRecord, BoxSource, Reading, SourceInfo, box_arrays
from effvl_cli.data.class_maps import mapped
from effvl_cli.data.road_layout import CLASSES, PALETTES, SIZE, Scene
from effvl_cli.data.road_painter import paint
from effvl_cli.data.source import digest

VERSION = 2
NAME = "road-scenes"
PICTURES = "pictures"  # in the cache


@dataclass(frozen=True)
class Plan:
    """What the argument asks for.

    Attributes:
        style: "road" or "outside".
        scenes: of the training split.
        frames: of each training scene.
        val: scenes of the validation split.
        test: of the test split.
        seed: of the scenes.
    """

    style: str = "road"
    scenes: int = 200
    frames: int = 1
    val: int = 40
    test: int = 100
    seed: int = 0

    @classmethod
    def parse(cls, argument: str) -> "Plan":
        """From "style=outside,scenes=100".

        Raises:
            UsageError: unknown word or style, or no positive number.
        """
        given: dict[str, str] = {}
        for part in filter(None, argument.split(",")):
            key, _, value = part.partition("=")
            if key not in cls.__dataclass_fields__:
                known = ", ".join(cls.__dataclass_fields__)
                raise UsageError(f"--data {NAME}:{argument}: unknown {key!r}", f"Known: {known}, e.g. scenes=100")
            given[key] = value
        style = given.pop("style", cls.style)
        if style not in PALETTES:
            raise UsageError(f"--data {NAME}:{argument}: unknown style {style!r}", f"Give {' or '.join(PALETTES)}")
        for key, value in given.items():
            if not value.isdecimal() or (int(value) < 1 and key != "seed"):
                raise UsageError(f"--data {NAME}:{argument}: {key} is {value!r}", "Give a whole number from 1 on")
        return cls(style, **{key: int(value) for key, value in given.items()})

    def counts(self, split: str) -> tuple[int, int]:
        """Scenes, and frames of each."""
        return (self.scenes, self.frames) if split == "train" else (getattr(self, split), 1)


def build(
    argument: str, split: str, *, root: Path | None = None, seed: int = 0, reading: Reading | None = None
) -> BoxSource:
    """Registry builder; the argument says how many scenes, of which style.

    Raises:
        UsageError: it cannot be read.
    """
    plan, reading = Plan.parse(argument), reading or Reading()
    album = _Album(plan, split, reading.cache)
    source = BoxSource(
        f"{NAME}:{argument}" if argument else NAME,
        split,
        classes=CLASSES,
        records=album.records(),
        content=lambda: digest([NAME, str(album.recipe)]),
        sources=(SourceInfo(NAME),),
        readers={NAME: album.read},
    )
    return mapped(source, reading.map, classes=reading.classes, unknown=reading.unknown)


class _Album:
    """The scenes of a split.

    Attributes:
        recipe: all that the pictures follow from.
    """

    def __init__(self, plan: Plan, split: str, cache: Cache | None) -> None:
        self.split, self.cache, self.seed = split, cache, plan.seed
        self.scenes, self.frames = plan.counts(split)
        self.recipe = {
            "version": VERSION,
            "style": plan.style,
            "split": split,
            "seed": plan.seed,
            "scenes": self.scenes,
            "frames": self.frames,
        }
        self.layouts = [Scene.drawn(plan.style, split, number, plan.seed) for number in range(self.scenes)]

    def records(self) -> list[BoxRecord]:
        """One for each frame, scene after scene."""
        return [self._record(number, frame) for number in range(self.scenes) for frame in range(self.frames)]

    def _record(self, number: int, frame: int) -> BoxRecord:
        found, labels = self.layouts[number].boxes(frame)
        boxes = box_arrays(found)
        nothing = np.zeros(len(boxes), dtype=np.bool_)
        return BoxRecord(
            image_id=number * self.frames + frame + 1,
            file=f"{self.split}/{number:05d}_{frame:03d}",
            path=None,
            width=SIZE[1],
            height=SIZE[0],
            boxes=boxes,
            labels=np.array(labels, dtype=np.int64),
            iscrowd=nothing,
            ignore=nothing,
            area=(boxes[:, 2:] - boxes[:, :2]).prod(1),
            seq=f"{number:05d}",
            frame=frame,
            time="night" if self.layouts[number].night else "day",
            source=NAME,
        )

    def read(self, record: BoxRecord) -> Image.Image:
        """The picture of a frame."""
        assert record.frame is not None
        return Image.fromarray(self.pictures[int(record.seq) * self.frames + record.frame])

    @cached_property
    def pictures(self) -> NDArray[np.uint8]:
        """(M, 160, 256, 3), drawn, or from the cache."""
        entry = (self.cache or Cache()).entry(NAME, self.recipe)
        stored = entry.load(PICTURES, warnings.warn)
        if stored is None:
            stored = {PICTURES: torch.from_numpy(self._painted())}
            entry.save(PICTURES, stored)
        return stored[PICTURES].numpy()

    def _painted(self) -> NDArray[np.uint8]:
        frames = [(number, frame) for number in range(self.scenes) for frame in range(self.frames)]
        return np.stack([paint(self.layouts[number], frame, self._noise(number, frame)) for number, frame in frames])

    def _noise(self, number: int, frame: int) -> np.random.Generator:
        """Of the camera, other in each frame."""
        return np.random.default_rng(derive(self.seed, NAME, "noise", self.split, number, frame))
