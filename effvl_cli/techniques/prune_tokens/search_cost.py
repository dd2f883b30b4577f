"""Cost of a golden search: candidates and multiply-adds for one image.

Ours, for the search of arXiv 2409.14607, phase I.
"""

import torch

from .macs import TowerShape
from .ranking import alive_until, removal_windows


def search_cost(
    shape: TowerShape,
    grid: tuple[int, int],
    layer: int,
    *,
    block: int,
    block_stride: int,
    group: int,
    rank_until: float,
    shortlist: int,
    by_gradients: bool,
) -> tuple[int, int]:
    """Candidates and multiply-adds of the search on one image; an upper bound where windows lose single patches.

    Args:
        shape: sizes of the tower.
        grid: rows and columns of patches.
        layer: p.
        block: side of a window.
        block_stride: between windows.
        group: patches removed in a round; 0: all at once.
        rank_until: see `golden_ranking`.
        shortlist: candidates of a round by estimated scores, for each removed patch; 0: all.
        by_gradients: whether scores are estimated and none evaluated.
    """
    windows = removal_windows(grid, block, block_stride)
    alive, side = torch.ones(shape.num_patches, dtype=torch.bool), int(windows[0].sum())
    stop = alive_until(rank_until, shape.num_patches)
    passes, macs = 0, shape.dense()
    while alive.any():
        left = int(alive.sum())
        last = not group or left <= stop
        take = left if last else min(group, left - stop)
        candidates = int((windows & alive).any(1).sum())
        if by_gradients or (shortlist and not last):
            macs += shape.taylor(layer, 0)
            candidates = 0 if by_gradients else min(candidates, shortlist * take)
        passes += candidates
        macs += candidates * shape.candidate(max(0, left - side), layer)
        alive[alive.nonzero().flatten()[:take]] = False
    return passes, macs
