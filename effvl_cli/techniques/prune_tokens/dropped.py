"""What becomes of the patches that are not kept: nothing, one token for all, or a share of the kept ones.

One token: Liang et al., arXiv 2202.07800. Into the most similar kept one, with proportional attention: after Bolya
et al., arXiv 2210.09461, and what ranks and merges (arXiv 2310.01812). Shapes: B images, P prefix tokens, N patches, K
kept, D width.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Dropped = Literal["discard", "fuse", "average", "merge"]
"""discard: nothing; fuse: one token for all; average: into the kept ones; merge: likewise, which then weigh more."""


def fused(patches: Tensor, keep: Tensor, weights: Tensor) -> Tensor:
    """One row in place of all that is dropped: their mean. The weights are scaled to sum to 1.

    A tower that was not trained with such a row expects one of the size of a state.

    Args:
        patches: (B, N, D).
        keep: (B, K) ids.
        weights: (B, N), not negative.

    Returns:
        (B, 1, D).
    """
    weights = weights.scatter(1, keep, 0.0)
    weights = weights / weights.sum(1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
    return weights[:, None].to(patches.dtype) @ patches


def nearest_kept(patches: Tensor, keep: Tensor) -> Tensor:
    """For each patch the kept one that it goes with: itself, or the one with the largest cosine of the states.

    Args:
        patches: (B, N, D).
        keep: (B, K) ids.

    Returns:
        (B, N) int64, places in `keep`.
    """
    unit = F.normalize(patches.float(), dim=-1)
    images, patch_count = patches.shape[:2]
    row = torch.arange(images, device=patches.device)[:, None]
    kept = torch.zeros(images, patch_count, device=patches.device).scatter(1, keep, 1.0)
    rest = kept.argsort(dim=1, stable=True)[:, : patch_count - keep.shape[1]]
    nearest = (unit[row, rest] @ unit[row, keep].transpose(1, 2)).argmax(-1)
    places = torch.arange(keep.shape[1], device=keep.device).expand_as(keep)
    return torch.zeros_like(kept, dtype=torch.int64).scatter(1, rest, nearest).scatter(1, keep, places)
