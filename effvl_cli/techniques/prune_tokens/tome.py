"""Merging similar tokens, some in every block, instead of dropping patches at one depth.

Bolya et al., "Token Merging: Your ViT But Faster", ICLR 2023, arXiv 2210.09461: bipartite soft matching,
size-weighted means, proportional attention. Shapes: B images, P prefix tokens, n tokens entering a block, r of which it
merges, m = n - r, D width.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .macs import TowerShape
from .token_sizes import attention, merge
from .tower import Tower, WrappedTower

TOLERANCE = 1.02  # merges count as equal in cost to dropping up to this ratio


def soft_matching(metric: Tensor, count: int, num_prefix: int) -> Tensor:
    """Which tokens merge: the `count` of one half of the patches that are most similar to one of the other half.

    The halves alternate, and no prefix token merges. The merged sequence holds prefix, the first half's patches that
    stay, and the second half's, each in their order.

    Args:
        metric: (B, n, d) compared by cosine.
        count: r, at most `most_merges(n, P)`.
        num_prefix: P.

    Returns:
        (B, n) int64, the row of the merged sequence that each token becomes (a part of).
    """
    # Even rows are the first half, prefix included, as in the official code.
    first, second = num_prefix + num_prefix % 2, num_prefix + 1 - num_prefix % 2
    with torch.autocast(metric.device.type, enabled=False):
        unit = F.normalize(metric.float(), dim=-1)
        best, partner = (unit[:, first::2] @ unit[:, second::2].transpose(1, 2)).max(-1)
    merging = torch.zeros_like(best, dtype=torch.bool)
    merging.scatter_(1, best.argsort(dim=1, descending=True, stable=True)[:, :count], True)
    stay = num_prefix + best.shape[1] - count
    row = torch.arange(metric.shape[1], device=metric.device).expand(len(metric), -1).clone()
    row[:, first::2] = torch.where(merging, stay + partner, num_prefix - 1 + (~merging).cumsum(1))
    row[:, second::2] = torch.arange(stay, metric.shape[1] - count, device=metric.device)
    return row


def most_merges(num_tokens: int, num_prefix: int) -> int:
    """The most patches that one block can merge: half of them."""
    return (num_tokens - num_prefix) // 2


def merging_block(
    tower: Tower, index: int, states: Tensor, size: Tensor | None, count: int
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """One block that merges `count` tokens between its attention and its MLP.

    Args:
        tower: the tower.
        index: of the block.
        states: (B, n, D).
        size: (B, n), patches that each token stands for; None: one each.
        count: r.

    Returns:
        The states (B, m, D), their sizes, and the rows that the tokens became; the last is None for r = 0.
    """
    query, keys, attended = attention(tower, index, states, size)
    if count == 0:
        return tower.attend(index, states, attended), size, None
    target = soft_matching(keys.mean(1), count, tower.num_prefix)
    size = torch.ones_like(target, dtype=torch.float32) if size is None else size
    # The attention's output projection is affine and these are means: merging before it saves products.
    both = torch.cat([states, attended.transpose(1, 2).flatten(2).to(states.dtype)], 2)
    merged, size = merge(both, size, target, count)
    states, flat = merged.split(states.shape[2], 2)
    attended = flat.unflatten(2, (query.shape[1], -1)).transpose(1, 2).to(attended.dtype)
    return tower.attend(index, states, attended), size, target


class MergedVision(WrappedTower):
    """An image tower that merges tokens in its blocks from p on.

    Args:
        tower: the tower. A norm after its attention, which some have, gets merged rows.
        layer: p.
        schedule: r of each of the blocks p to L-1. Without any merging the tower's own forward pass runs.

    Raises:
        ValueError: `layer` is out of range, or a block cannot merge as many tokens.
    """

    def __init__(self, tower: Tower, *, layer: int, schedule: Sequence[int]) -> None:
        super().__init__(tower, layer)
        if len(schedule) != tower.depth - layer:
            raise ValueError(f"the schedule has {len(schedule)} numbers for {tower.depth - layer} blocks")
        tokens = tower.num_prefix + self.num_patches
        for index, count in enumerate(schedule, layer):
            if not 0 <= count <= most_merges(tokens, tower.num_prefix):
                raise ValueError(f"block {index} has {tokens} tokens and cannot merge {count} of them")
            tokens -= count
        self.schedule = tuple(schedule)

    def forward(self, images: Tensor, ids: Tensor | None = None) -> Any:
        """Embed images (B, 3, H, W).

        Returns:
            What the tower returns. A tower that reads its embedding off its patches gets the rows of all N back, merged
            ones repeated, which weights them with their sizes; otherwise `output_tokens` has the merged rows.

        Raises:
            ValueError: the tower itself is dropping tokens (patch dropout).
        """
        if not any(self.schedule):
            return self.tower.module(images)
        states, place = self._merge(images)
        if not self.tower.pools_prefix_only:
            states = states.gather(1, place[..., None].expand(-1, -1, states.shape[2]))
        return self.tower.head(states)

    def groups(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, N) int64: patches with the same number end up in one token."""
        return self._merge(images)[1][:, self.tower.num_prefix :]

    def _merge(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The last states (B, m, D), and the row of them that each of the P+N tokens became (a part of)."""
        self.refuse_dropout()
        states = self.tower.embed(images)
        for index in range(self.layer):
            states = self.tower.block(index, states)
        place = torch.arange(states.shape[1], device=states.device).expand(len(states), -1)
        size = None
        for index, count in enumerate(self.schedule, self.layer):
            if count == 0 and size is None:
                states = self.tower.block(index, states)
                continue
            states, size, target = merging_block(self.tower, index, states, size, count)
            if target is not None:
                place = target.gather(1, place)
        return states, place


def merge_schedule(shape: TowerShape, num_heads: int, num_keep: int, layer: int) -> tuple[int, ...]:
    """Merges of each block from p on, equal up to rounding, whose cost is nearest that of dropping to K patches at p.

    Every block merges at most half of its patches, so a small K may be out of reach; see `equal_keep`.

    Args:
        shape: sizes of the tower.
        num_heads: attention heads of a block.
        num_keep: K.
        layer: p.
    """
    blocks = shape.depth - layer
    budget = shape.pruned(num_keep, layer)
    every = (_spread(total, blocks, shape) for total in range(blocks * (shape.num_patches // 2) + 1))
    return min(every, key=lambda schedule: abs(shape.merged(schedule, layer, num_heads) - budget))


def equal_keep(shape: TowerShape, num_heads: int, num_keep: int, layer: int) -> int | None:
    """K' such that dropping to K' costs as much as the merges for K, where merging cannot get as cheap as K.

    Args:
        shape: sizes of the tower.
        num_heads: attention heads of a block.
        num_keep: K.
        layer: p.

    Returns:
        None where merging reaches the cost; else the largest K' that costs no more than all possible merges.
    """
    schedule = merge_schedule(shape, num_heads, num_keep, layer)
    cost = shape.merged(schedule, layer, num_heads)
    blocks = shape.depth - layer
    if cost <= TOLERANCE * shape.pruned(num_keep, layer) or schedule != _spread(
        blocks * (shape.num_patches // 2), blocks, shape
    ):
        return None
    return max(count for count in range(num_keep, shape.num_patches + 1) if shape.pruned(count, layer) <= cost)


def _spread(total: int, blocks: int, shape: TowerShape) -> tuple[int, ...]:
    """`total` merges in equal shares of whole tokens, cut to what each block can merge."""
    schedule: list[int] = []
    tokens = shape.num_prefix + shape.num_patches
    for block in range(blocks):
        share = (block + 1) * total // blocks - block * total // blocks
        schedule.append(min(share, most_merges(tokens, shape.num_prefix)))
        tokens -= schedule[-1]
    return tuple(schedule)
