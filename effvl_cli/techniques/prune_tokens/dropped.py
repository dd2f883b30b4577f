"""What becomes of the patches that are not kept: nothing, one token for all, or a share of the kept ones.

One token: Liang et al., arXiv 2202.07800. Into the most similar kept one, with proportional attention: after Bolya
et al., arXiv 2210.09461, and what ranks and merges (arXiv 2310.01812). Shapes: B images, P prefix tokens, N patches, K
kept, D width.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Dropped = Literal["discard", "fuse", "average", "merge"]
"""discard: nothing; fuse: one token for all; average: into the kept ones; merge: likewise, which then weigh more."""
DIVERSITY = 2.0  # of the kept patches, where others go into them: least change of the embedding on CIFAR-10


@dataclass(frozen=True)
class Choice:
    """What is done with scored patches.

    Attributes:
        dropped: what becomes of those that are not kept.
        diversity: how much the kept ones shall stand for all; see `keeping.diverse_indices`.
    """

    dropped: Dropped = "discard"
    diversity: float = 0.0


def choices(dropped: Dropped | Literal["auto"], diversity: float | None) -> tuple[Choice, ...]:
    """The choices that two options leave.

    Args:
        dropped: one of `Dropped`; auto leaves discard and merge.
        diversity: None: 0 where dropped patches vanish or become one token, else `DIVERSITY`.
    """
    names: tuple[Dropped, ...] = ("discard", "merge") if dropped == "auto" else (dropped,)
    usual = {"average": DIVERSITY, "merge": DIVERSITY}
    return tuple(Choice(name, usual.get(name, 0.0) if diversity is None else diversity) for name in names)


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
