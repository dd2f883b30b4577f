"""Tokens that stand for several patches: their means, and attention that counts each as often as its patches.

Bolya et al., arXiv 2210.09461: size-weighted means, proportional attention. Shapes: B images, n tokens, m of them after
a merging, D width.
"""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from .tower import Tower


def merge(rows: Tensor, size: Tensor, target: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Means of the tokens that become one, weighted by the number of patches that each stands for.

    Args:
        rows: (B, n, D).
        size: (B, n), patches that each token stands for.
        target: (B, n) int64, the token that each becomes (a part of).
        count: n - m.

    Returns:
        The merged tokens (B, m, D) and their sizes (B, m).
    """
    images, tokens, width = rows.shape
    sizes = size.new_zeros(images, tokens - count).scatter_add_(1, target, size)
    share = (size / sizes.gather(1, target)).to(rows.dtype)
    empty = rows.new_zeros(images, tokens - count, width)
    return empty.scatter_add_(1, target[..., None].expand_as(rows), rows * share[..., None]), sizes


def attention(tower: "Tower", index: int, states: Tensor, size: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys of a block, and what its attention gives, each (B, heads, n, D / heads).

    Args:
        tower: the tower.
        index: of the block.
        states: (B, n, D).
        size: (B, n), patches that each token stands for; None: one each.
    """
    query, keys, values = tower.qkv(index, states)
    bias = None if size is None else size.log()[:, None, None].to(query.dtype)
    return query, keys, F.scaled_dot_product_attention(query, keys, values, attn_mask=bias)


def sized_block(tower: "Tower", index: int, states: Tensor, size: Tensor) -> Tensor:
    """One block, (B, n, D) to the same, whose attention counts each token as often as its size (B, n) says.

    Rows beyond the sizes, such as prompts, count once.
    """
    further = states.shape[1] - size.shape[1]
    if further:
        size = torch.cat([size, size.new_ones(size.shape[0], further)], 1)
    return tower.attend(index, states, attention(tower, index, states, size)[2])
