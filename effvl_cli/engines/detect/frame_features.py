"""What tags and near-duplicates are told by: figures of each image, from the cache where they were computed before."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from effvl_cli.core.run import Run
from effvl_cli.data.boxes import BoxSource
from effvl_cli.engines.common.batches import LoaderOptions
from effvl_cli.engines.detect.frame_rows import READABLE, Figures, FrameRows
from effvl_cli.techniques.detect.dedup import dhash, phash, standardised
from effvl_cli.techniques.detect.tagging import STATISTICS, lightness

FORMAT = 1  # raised whenever the figures change, so that older ones are not reused
FIELDS = {
    "lightness": (len(STATISTICS), torch.float32),
    "dhash": (64, torch.uint8),
    "phash": (63, torch.uint8),
    "vector": (640, torch.float16),
}


@dataclass(frozen=True, eq=False)
class FrameFeatures:
    """Figures of N images; of an image that cannot be read they are zeros.

    Attributes:
        lightness: (N, 3) float32, see `techniques.detect.tagging.STATISTICS`.
        dhash: (N, 64) bool.
        phash: (N, 63) bool.
        vector: (N, 640) float32, the standardised small image.
        readable: (N,) bool.
    """

    lightness: Tensor
    dhash: Tensor
    phash: Tensor
    vector: Tensor
    readable: Tensor


def frame_features(source: BoxSource, indices: Sequence[int], loading: LoaderOptions, run: Run) -> FrameFeatures:
    """Figures of some images; an image is decoded once for all of them.

    Args:
        source: images.
        indices: (N,) positions.
        loading: loader processes, and what an unreadable image does.
        run: cache, progress and stop requests.

    Raises:
        DataError: an unreadable image, or too many of them.
    """
    rows = FrameRows("frames", {"format": FORMAT}, FIELDS, lambda image: figures(image), _stacked)
    found = rows.of(source, indices, loading, run)
    return FrameFeatures(
        lightness=found["lightness"],
        dhash=found["dhash"].bool(),
        phash=found["phash"].bool(),
        vector=found["vector"].float(),
        readable=found[READABLE],
    )


def figures(image: Image.Image) -> Figures:
    """Those of one RGB image."""
    luma = torch.from_numpy(np.array(image.convert("L")))
    found = (torch.tensor(lightness(luma)), dhash(luma), phash(luma), standardised(luma))
    return tuple(part.to(kind) for part, (_, kind) in zip(found, FIELDS.values(), strict=True))


def _stacked(samples: Sequence[Figures]) -> list[Tensor]:
    return [torch.stack(field) for field in zip(*samples, strict=True)]
