"""The interface of a data set to the rest of the toolkit."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

ENDLESS = 2**40
"""Length of a split that never ends."""

Indices = NDArray[np.int64]


class Source(Protocol):
    """One split of a data set, of samples of any kind.

    A source whose samples are not images has an attribute `kind`, e.g. "boxes" or "clips"; it has what commands
    for that kind ask for, and `data/loader.py` makes batches of it by a `make(index, epoch)` and a `collate`.

    Attributes:
        name: e.g. "shape-captions", "folder:cifar10".
        split: "train", "val" or "test".
        ids: stable names of the samples, the same on every machine.
        endless: whether samples are generated on demand.
    """

    name: str
    split: str
    ids: Sequence[str]
    endless: bool

    def __len__(self) -> int: ...

    def fingerprint(self) -> str:
        """Short digest of the content: names, labels, size and time of each file; for generated images, the recipe."""
        ...


class ImageSource(Source, Protocol):
    """One split of a labelled, captioned or bare image collection.

    Attributes:
        classes: readable class names; empty when there are captions only, or nothing but images.
        templates: caption templates with one "{}" each.
        labels: (M,) int64, or for an endless split an object that takes an index array and gives labels; all 0 where
            there are no classes.
        captions: one text per image, or None.
    """

    classes: tuple[str, ...]
    templates: tuple[str, ...]
    labels: NDArray[np.int64]
    captions: Sequence[str] | None

    def image(self, index: int) -> Image.Image:
        """One RGB image.

        Raises:
            DataError: unreadable; names the file.
        """
        ...


@runtime_checkable
class BatchSource(Protocol):
    """A source that makes many images at once, all of one size."""

    def images(self, indices: Indices) -> NDArray[np.uint8]:
        """(B, H, W, 3)."""
        ...


def digest(parts: Iterable[str]) -> str:
    """Sixteen hex digits over some texts."""
    total = hashlib.sha256()
    for part in parts:
        total.update(part.encode() + b"\0")
    return total.hexdigest()[:16]


class Subset:
    """Some samples of a source, renumbered from 0."""

    endless = False

    def __init__(self, source: ImageSource, indices: Indices) -> None:
        self.source, self.indices = source, indices
        self.name, self.split = source.name, source.split
        self.classes, self.templates = source.classes, source.templates
        self.labels = np.asarray(source.labels[indices])
        self.ids: Sequence[str] = [source.ids[int(index)] for index in indices]
        self.captions: Sequence[str] | None = None
        if source.captions is not None:
            self.captions = [source.captions[int(index)] for index in indices]

    def __len__(self) -> int:
        return len(self.indices)

    def image(self, index: int) -> Image.Image:
        """One image."""
        return self.source.image(int(self.indices[index]))

    def fingerprint(self) -> str:
        """Digest of the whole and of which part."""
        return digest([self.source.fingerprint(), *self.ids])
