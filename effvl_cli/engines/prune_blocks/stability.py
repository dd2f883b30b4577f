"""How many images a ranking needs: rankings by random parts of the scoring images, beside that by all of them."""

from typing import Any

import torch
from safetensors.torch import load_file

from effvl_cli.core import distributed, seeds
from effvl_cli.engines.prune_blocks.context import Scoring
from effvl_cli.engines.prune_blocks.removals import scores_file
from effvl_cli.techniques.prune_blocks import statistics

SIZES = (100, 250, 500, 1000, 2500, 5000)
REPORTED = 500
DRAWS = 100


def measure(context: Scoring) -> list[dict[str, Any]]:
    """For each number of images below that of all: how well the units of the first step are ranked by them.

    Returns:
        Rows of `images`, and for each measure (`top1`, `loss`) `winner_...`, the share of draws with the same unit in
        front as with all images, and `tau_...`, the mean rank correlation with the ranking by all. Empty after a race,
        a proxy, or with a single unit.
    """
    path = scores_file(context, 1)
    if context.config.race != "none" or not distributed.is_main() or not path.is_file():
        return []
    known = load_file(path)
    correct, loss = known["correct"].bool(), known["loss"]
    if len(loss) < 3 or not bool(loss.isfinite().all()):
        return []
    everything = statistics.impacts(correct, loss)
    generator = seeds.generator(context.config.seed, "stability")
    rows = []
    for size in (size for size in SIZES if size < correct.shape[1]):
        draws = []
        for _ in range(DRAWS):
            part = torch.randperm(correct.shape[1], generator=generator)[:size]
            draws.append(_agreement(everything, statistics.impacts(correct[:, part], loss[:, part])))
        means = torch.tensor(draws, dtype=torch.float64).nanmean(0).tolist()
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
