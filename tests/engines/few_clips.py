"""A small data set of videos: a bright square that moves right, left, down or up over noise, which is its class."""

import numpy as np

from effvl_cli.data import DATASETS
from effvl_cli.data.clips import BadClipError
from effvl_cli.data.source import digest

NAME = "few-clips"
CLASSES = ("right", "left", "down", "up")
STEPS = {0: (0, 1), 1: (0, -1), 2: (1, 0), 3: (-1, 0)}
COUNTS = {"train": 40, "val": 8, "test": 16}
FRAMES, SIDE = 12, 24


class FewClips:
    """One split; the argument `bad=K` makes K videos unreadable, `short=K` K of them too short."""

    kind, endless, classes, name = "clips", False, CLASSES, NAME

    def __init__(self, argument, split):
        words = dict(word.split("=") for word in argument.split(",") if word)
        self.split, count = split, int(words.get("count", COUNTS[split]))
        self.labels = (np.arange(count) % 4).astype(np.int64)
        self.groups = np.arange(count, dtype=np.int64)
        self.ids = [f"{split}{k:03d}" for k in range(count)]
        self.bad = range(int(words.get("bad", 0)))
        self.short = range(len(self.bad), len(self.bad) + int(words.get("short", 0)))
        self.argument = argument

    def __len__(self):
        return len(self.labels)

    def fingerprint(self):
        return digest([self.split, self.argument, str(len(self))])

    def num_frames(self, index):
        if index in self.bad:
            raise BadClipError(f"{self.ids[index]} cannot be opened", "", "open_failed")
        if index in self.short:
            raise BadClipError(f"{self.ids[index]} has 2 frames", "", "too_short")
        return FRAMES

    def read(self, index, start, length, stride=1):
        rng = np.random.default_rng([index, len(self.split)])
        frames = rng.integers(0, 30, (FRAMES, SIDE, SIDE, 3), dtype=np.uint8)
        frames += rng.integers(0, 100, 3, dtype=np.uint8)  # the ground, by which a video is known
        row, column = rng.integers(8, 13, 2)
        colour = rng.integers(150, 256, 3, dtype=np.uint8)
        down, right = STEPS[int(self.labels[index])]
        for time in range(FRAMES):
            shift = (time - FRAMES // 2) * 2 // 3
            top, left = row + down * shift - 3, column + right * shift - 3
            frames[time, max(0, top) : top + 6, max(0, left) : left + 6] = colour
        times = np.arange(start, start + length * stride, stride).clip(0)
        return frames[times]


def build(argument, split, *, root=None, seed=0):
    """Builder of the data set."""
    return FewClips(argument, split)


def register(patch):
    """Let commands find it by its name."""
    from effvl_cli.core.registry import Row

    patch.setitem(DATASETS._rows, NAME, Row(NAME, f"{__name__}:build", "for tests", "clips"))
