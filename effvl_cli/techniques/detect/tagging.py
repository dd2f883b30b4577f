"""Day or night of a frame by how light it is, and of a sequence by the vote of its frames.

IMMVP (arXiv 1910.06573) trains day and night samples under labels of their own and does not say how it tells them
apart; statistic, threshold and vote are ours. The median is robust to lamps and headlights.
"""

from collections.abc import Hashable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

Condition = Literal["day", "night"]
Statistic = Literal["median", "sky", "mean"]
STATISTICS: tuple[Statistic, ...] = ("median", "sky", "mean")

WIDTH = 64  # px to which a frame is shrunk
DARK = 8  # rows and columns at the edge that are nowhere as light as this are a letterbox
SKY = 0.4  # share of the rows, from above
BINS = 256
LEAST_RATIO, LEAST_SHARE = 0.5, 0.02  # below these a histogram has no two groups


def shrunk(luma: Tensor, height: int, width: int) -> Tensor:
    """Antialiased bilinear resize.

    Args:
        luma: (H, W) in 0..255, any type.
        height: px.
        width: px.

    Returns:
        (height, width) float32.
    """
    pixels = luma[None, None].float()
    return functional.interpolate(pixels, size=(height, width), mode="bilinear", antialias=True)[0, 0]


def without_letterbox(luma: Tensor, dark: float = DARK) -> Tensor:
    """A frame (H, W) without the dark rows and columns at its edges; a frame that is all dark stays as it is."""
    rows, columns = ((luma.amax(axis) >= dark).nonzero()[:, 0] for axis in (1, 0))
    if not len(rows):
        return luma
    return luma[int(rows[0]) : int(rows[-1]) + 1, int(columns[0]) : int(columns[-1]) + 1]


def lightness(luma: Tensor) -> tuple[float, float, float]:
    """The statistics of a frame in 0..255, of the frame shrunk to 64 px width and without letterbox.

    Args:
        luma: (H, W) 0.299 R + 0.587 G + 0.114 B in 0..255, any type.

    Returns:
        Those of STATISTICS: the median, the mean of the upper 40 % of the rows (sky), the mean.
    """
    height, width = luma.shape
    small = without_letterbox(shrunk(luma, max(1, round(WIDTH * height / width)), WIDTH))
    sky = small[: max(1, round(SKY * len(small)))]
    return float(small.quantile(0.5)), float(sky.mean()), float(small.mean())


class Otsu(NamedTuple):
    """Threshold between the two groups of a histogram.

    Attributes:
        threshold: values below it are the lower group.
        ratio: variance between the groups over the whole variance; near 1 for two spikes.
        share: of the values that are in the smaller group.
    """

    threshold: float
    ratio: float
    share: float

    @property
    def holds(self) -> bool:
        """Whether there are two groups at all."""
        return self.ratio >= LEAST_RATIO and self.share >= LEAST_SHARE


def otsu(values: Tensor) -> Otsu:
    """Otsu's threshold (1979) on a histogram of 256 bins; of several equally good ones the middle.

    Args:
        values: (N,) in 0..255, at least one.
    """
    counts = torch.histc(values.double(), bins=BINS, min=0, max=BINS)  # bin k holds k <= value < k + 1
    centres = torch.arange(BINS, dtype=torch.float64) + 0.5
    share = counts / counts.sum()
    below, total = share.cumsum(0), (share * centres).sum()
    moment = (share * centres).cumsum(0)
    inside = (below > 0) & (below < 1 - 1e-12)
    between = torch.where(inside, (total * below - moment) ** 2 / (below * (1 - below)).clamp(min=1e-12), 0.0)
    best = (between >= between.max() - 1e-9).nonzero()[:, 0]
    threshold = float(best[0] + best[-1]) / 2 + 1  # the upper edge of a bin
    variance = float((share * (centres - total) ** 2).sum())
    lower = float((values < threshold).double().mean())
    return Otsu(threshold, float(between.max()) / variance if variance else 0.0, min(lower, 1 - lower))


def of_frames(values: Sequence[float], threshold: float) -> list[Condition]:
    """Night where the statistic is below the threshold."""
    return ["night" if value < threshold else "day" for value in values]


def voted(values: Sequence[float], sequences: Sequence[Hashable], threshold: float) -> list[Condition]:
    """The tag of each frame by the majority of its sequence; at a tie, by the mean of the statistic over it.

    Args:
        values: the statistic of each frame.
        sequences: what each frame belongs to.
        threshold: below it is night.
    """
    groups: dict[Hashable, list[float]] = {}
    for value, sequence in zip(values, sequences, strict=True):
        groups.setdefault(sequence, []).append(value)
    tags = {sequence: _majority(group, threshold) for sequence, group in groups.items()}
    return [tags[sequence] for sequence in sequences]


def _majority(values: Sequence[float], threshold: float) -> Condition:
    lead = sum(1 if value < threshold else -1 for value in values)
    night = lead > 0 or (lead == 0 and sum(values) / len(values) < threshold)
    return "night" if night else "day"
