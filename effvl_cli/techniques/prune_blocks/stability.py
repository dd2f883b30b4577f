"""How many images a ranking needs: rankings by random subsets of the images, compared with that by all.

N images, n candidates; ours, for the scores of arXiv 2312.16904.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from . import statistics

SIZES = (100, 250, 500, 1000, 2500, 5000)
DRAWS = 100


def ranking_stability(
    correct: Tensor, loss: Tensor, generator: torch.Generator, sizes: Sequence[int] = SIZES, draws: int = DRAWS
) -> list[dict[str, float]]:
    """How well the candidates are ranked by fewer than N images.

    Args:
        correct: (1 + n, N) bool, the network itself first.
        loss: (1 + n, N), finite.
        generator: draws the subsets; on the CPU.
        sizes: numbers of images.
        draws: subsets of each size.

    Returns:
        Rows of `images`, and for each measure (`top1`, `loss`) `winner_...`, the share of draws with the same candidate
        first as with all images, and `tau_...`, the mean rank correlation with the ranking by all. Empty for fewer
        than two candidates.
    """
    if len(loss) < 3:
        return []
    everything = statistics.impacts(correct, loss)
    rows = []
    for size in (size for size in sizes if size < correct.shape[1]):
        found = []
        for _ in range(draws):
            part = torch.randperm(correct.shape[1], generator=generator)[:size]
            found.append(_agreement(everything, statistics.impacts(correct[:, part], loss[:, part])))
        means = torch.tensor(found, dtype=torch.float64).nanmean(0).tolist()
        names = ("winner_top1", "winner_loss", "tau_top1", "tau_loss")
        rows.append({"images": size, **dict(zip(names, means, strict=True))})
    return rows


def _agreement(all_images: tuple[list[float], list[float]], some: tuple[list[float], list[float]]) -> list[float]:
    """Same first unit by top-1 and by loss, and the rank correlations."""

    def first(accuracy: list[float], loss: list[float]) -> int:
        nothing = [0] * len(accuracy)
        return statistics.rank(accuracy, loss, nothing, nothing)[0]

    same = (first(*some) == first(*all_images), first(*some[::-1]) == first(*all_images[::-1]))
    taus = (statistics.kendall(a, b) for a, b in zip(some, all_images, strict=True))
    return [*map(float, same), *taus]
