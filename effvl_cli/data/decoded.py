"""One split as a network sees it: pixels, labels, names, and how many files could not be read.

Pixels are held in memory if they fit, else they are read from the files whenever they are needed; code that uses a
split notices the difference only in the time it takes.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from effvl_cli.core.report import physical_memory
from effvl_cli.data.loader import image_loader, makes_at_once
from effvl_cli.data.source import BatchSource, ImageSource, Indices
from effvl_cli.data.transforms import Preprocess

MEMORY_SHARE = 0.5  # of the machine's memory, for one split
CHUNK = 64  # images decoded at a time


def held_bytes(count: int, preprocess: Preprocess, memory_share: float = MEMORY_SHARE) -> int:
    """Memory that the pixels of so many images are held in; 0 where they do not fit and are read when needed.

    Args:
        count: images.
        preprocess: their geometry.
        memory_share: of the machine's memory that they may take.
    """
    height, width = preprocess.size
    wanted = count * 3 * height * width
    return wanted if wanted <= memory_share * physical_memory() else 0


@dataclass(frozen=True, eq=False)
class Decoded:
    """M images of a split, with labels.

    Attributes:
        source: the split.
        preprocess: what made the pixels.
        indices: (M,) positions in the split, of the images that were readable.
        labels: (M,) int64.
        bad_files: images that were not readable.
        workers: loader processes, for pixels that are not held.
        held: (M, 3, H, W) uint8, or None: pixels are read when they are needed.
    """

    source: ImageSource
    preprocess: Preprocess
    indices: Indices
    labels: Tensor
    bad_files: int
    workers: int
    held: Tensor | None

    @classmethod
    def read(
        cls,
        source: ImageSource,
        preprocess: Preprocess,
        indices: Indices | None = None,
        *,
        workers: int = 0,
        on_bad: str = "error",
        memory_share: float = MEMORY_SHARE,
    ) -> "Decoded":
        """Images of a split, all of them when no indices are given.

        What does not fit in memory is still read through once, so that unreadable files are known from the
        start; later a file that cannot be read is an error.

        Args:
            source: the split.
            preprocess: geometry of the result.
            indices: (M,) positions.
            workers: loader processes.
            on_bad: "error" or "skip".
            memory_share: of the machine's memory that the pixels may take.

        Raises:
            DataError: an unreadable image, or too many of them.
        """
        indices = np.arange(len(source)) if indices is None else np.asarray(indices, dtype=np.int64)
        fits = not len(indices) or held_bytes(len(indices), preprocess, memory_share) > 0
        held = torch.empty(len(indices) if fits else 0, 3, *preprocess.size, dtype=torch.uint8)
        kept, filled = [], 0
        if fits or on_bad == "skip":
            for images, found in _read(source, preprocess, indices, workers, on_bad):
                if fits:
                    held[filled : filled + len(found)] = images
                filled += len(found)
                kept.append(found)
        readable = np.concatenate([indices[:0], *kept]) if kept or fits else indices
        return cls(
            source,
            preprocess,
            readable,
            torch.as_tensor(np.asarray(source.labels[readable])),
            len(indices) - len(readable),
            workers,
            held[:filled] if fits else None,
        )

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, rows: slice | Sequence[int] | Tensor) -> Tensor:
        """(b, 3, H, W) uint8 of a few rows; if they are not held, they are read in this process."""
        if self.held is not None:
            return self.held[rows]
        return self._again(self.indices[np.asarray(rows) if not isinstance(rows, slice) else rows], workers=0)

    @cached_property
    def pixels(self) -> Tensor:
        """(M, 3, H, W) uint8, all at once; only for splits known to be small."""
        return self.held if self.held is not None else self._again(self.indices, workers=self.workers)

    def batches(self, size: int, rows: range | None = None) -> Iterator[tuple[range, Tensor]]:
        """Consecutive rows (all, or a range of them), `size` at a time, and their (b, 3, H, W) uint8 pixels."""
        rows = range(len(self)) if rows is None else rows
        parts = [range(k, min(k + size, rows.stop)) for k in range(rows.start, rows.stop, size)]
        if self.held is not None:
            yield from ((part, self.held[part.start : part.stop]) for part in parts)
            return
        asked = self.indices[rows.start : rows.stop]
        found = _read(self.source, self.preprocess, asked, self.workers, "error", chunk=size)
        yield from ((part, images) for part, (images, _) in zip(parts, found, strict=True))

    @cached_property
    def ids(self) -> tuple[str, ...]:
        """Stable names, the same in every run."""
        return tuple(self.source.ids[int(index)] for index in self.indices)

    @cached_property
    def keys(self) -> Tensor:
        """(M,) int64 numbers derived from the names, for random draws that belong to a sample."""
        digests = (hashlib.blake2b(name.encode(), digest_size=8).digest() for name in self.ids)
        return torch.tensor([int.from_bytes(digest, "big") >> 1 for digest in digests], dtype=torch.int64)

    def digests(self, *, labelled: bool) -> list[bytes]:
        """16 bytes of each image's name and pixels, and of its label where that matters."""
        names = []
        for rows, pixels in self.batches(CHUNK):
            for row, picture in zip(rows, pixels, strict=True):
                total = hashlib.blake2b(self.ids[row].encode(), digest_size=16)
                total.update(picture.numpy().tobytes())
                if labelled:
                    total.update(int(self.labels[row]).to_bytes(8, "big"))
                names.append(total.digest())
        return names

    @property
    def captions(self) -> list[str]:
        """Captions of the images, for a source that has them."""
        texts = self.source.captions or ()
        return [texts[int(index)] for index in self.indices]

    def take(self, rows: Tensor) -> "Decoded":
        """A subset, in the order given."""
        held = None if self.held is None else self.held[rows]
        return replace(self, indices=self.indices[rows.numpy()], labels=self.labels[rows], held=held)

    def _again(self, indices: Indices, *, workers: int) -> Tensor:
        parts = [images for images, _ in _read(self.source, self.preprocess, indices, workers, "error")]
        return torch.cat(parts) if parts else torch.empty(0, 3, *self.preprocess.size, dtype=torch.uint8)


def _read(
    source: ImageSource, preprocess: Preprocess, indices: Indices, workers: int, on_bad: str, chunk: int = CHUNK
) -> Iterator[tuple[Tensor, NDArray[np.int64]]]:
    """The readable images among some, a chunk at a time, and their indices."""
    if len(indices) and isinstance(source, BatchSource) and makes_at_once(source, preprocess):
        for k in range(0, len(indices), chunk):
            part = indices[k : k + chunk]
            yield torch.from_numpy(source.images(part)).permute(0, 3, 1, 2).contiguous(), part
        return
    blank = torch.empty(0, 3, *preprocess.size, dtype=torch.uint8)
    loader = image_loader(source, lambda _: preprocess.to_uint8, workers=workers, on_bad=on_bad, total=len(indices))
    for images, found in loader.once(indices, chunk=chunk):
        yield (blank if images is None else images), found
