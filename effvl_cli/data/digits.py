"""`digits`: scikit-learn's 1,797 handwritten digits (UCI, 8x8 grey), enlarged to 32 px."""

from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from effvl_cli.core.errors import UsageError
from effvl_cli.data.source import digest

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TEMPLATES = ("a photo of the handwritten digit {}.", "a handwritten {}.")
SIZE = 32
SHARES = {"train": (0.0, 0.6), "val": (0.6, 0.75), "test": (0.75, 1.0)}


def build(argument: str, split: str, *, root: Path | None = None, seed: int = 0) -> "Digits":
    """Registry builder."""
    if argument:
        raise UsageError(f"digits takes no argument, got {argument!r}", "Give --data digits")
    return Digits(split)


@cache
def _everything() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Images (1797, 8, 8) and labels of all splits: the package's text takes a tenth of a second to read."""
    from sklearn.datasets import load_digits

    found = load_digits()
    return found.images, found.target


class Digits:
    """One split: of each class the first 60 % train, the next 15 % val, the rest test, after a fixed shuffle."""

    name, classes, templates, captions, endless = "digits", CLASSES, TEMPLATES, None, False

    def __init__(self, split: str) -> None:
        images, targets = _everything()
        order = np.random.default_rng(0).permutation(len(targets))
        low, high = SHARES[split]
        rows = []
        for label in range(10):
            places = order[targets[order] == label]
            rows.append(places[round(low * len(places)) : round(high * len(places))])
        self.split = split
        self._rows = np.sort(np.concatenate(rows))
        self._pixels = images[self._rows]
        self.labels = targets[self._rows].astype(np.int64)
        self.ids = [f"digits/{row:04d}" for row in self._rows]

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image.Image:
        """One digit, bilinearly enlarged, white on black."""
        grey = Image.fromarray((self._pixels[index] * (255 / 16)).round().astype(np.uint8))
        return grey.resize((SIZE, SIZE), Image.Resampling.BILINEAR).convert("RGB")

    def fingerprint(self) -> str:
        """Digest of the pixels."""
        return digest([self.split, self._pixels.astype(np.uint8).tobytes().hex()])
