"""Whole pictures of any size in one tensor: squeezed into one shape, with their original sizes."""

import contextlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from effvl_cli.core.errors import DataError
from effvl_cli.data.decoded import CHUNK
from effvl_cli.data.loader import SampleLoader
from effvl_cli.data.source import ImageSource
from effvl_cli.data.transforms import Preprocess

LOOKED_AT = 16  # pictures whose sizes determine the canvas


def canvas_shape(source: ImageSource, limit: int) -> tuple[int, int]:
    """Height and width of the largest of some pictures, up to a limit."""
    some = np.linspace(0, len(source) - 1, min(LOOKED_AT, len(source))).astype(int)
    sizes = []
    for index in some:
        with contextlib.suppress(DataError):  # counted when all pictures are read
            sizes.append(source.image(int(index)).size)
    width, height = (max(side) for side in zip(*sizes, strict=True)) if sizes else (limit, limit)
    return min(limit, height), min(limit, width)


def squeezed(source: ImageSource, preprocess: Preprocess, workers: int, on_bad: str) -> tuple[Tensor, Tensor, Tensor]:
    """Positions (M,), pixels (M, 3, H, W) and sizes (M, 2) of the readable pictures, whole and in one shape."""

    def make(index: int, epoch: int) -> tuple[Tensor, Tensor]:
        image = source.image(index)
        return preprocess.to_uint8(image), torch.tensor([image.height, image.width])

    def collate(samples: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        return torch.stack([pixels for pixels, _ in samples]), torch.stack([size for _, size in samples])

    loader = SampleLoader(lambda step: make, collate, len(source), workers=workers, on_bad=on_bad)
    canvas = torch.empty(len(source), 3, *preprocess.size, dtype=torch.uint8)
    kept, sizes, filled = [], [], 0
    for batch, indices in loader.once(np.arange(len(source)), chunk=CHUNK):
        if batch is not None:
            canvas[filled : filled + len(indices)] = batch[0]
            sizes.append(batch[1])
            kept.append(torch.from_numpy(indices))
            filled += len(indices)
    if not kept:
        raise DataError(f"{source.name} has no readable training picture", "Give other --data")
    return torch.cat(kept), canvas[:filled], torch.cat(sizes)
