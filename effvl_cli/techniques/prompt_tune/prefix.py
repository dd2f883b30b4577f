"""Prompts that begin alike pass a causal tower together: what comes first is computed once for all of them.

Under a causal mask the states of the start token and of context tokens before the name are the same for every class.
Their keys and values are computed once, and only the tail of each prompt (name, period, end) runs against them. In the
last block only the row that is read is computed. The result is that of `text_tower.encode` up to rounding. Ours.

Ours; language models keep keys and values of a shared beginning in the same way.

Shapes: K prompts, P tokens that they share, t tokens of a tail, d width, H heads, E embedding width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .text_tower import TextTower

KeysValues = tuple[Tensor, Tensor]
"""Keys and values of some tokens in one block."""


def run_prefix(tower: TextTower, rows: Tensor) -> list[KeysValues]:
    """Keys and values of the shared tokens in every block.

    Args:
        tower: causal, and one that splits.
        rows: (P, d) token embeddings without positions.

    Returns:
        A pair for each block, each (H, P, d / H).
    """
    states = (rows + tower.positions(0, len(rows)))[None]
    found = []
    for index in range(tower.depth - 1):
        query, keys, values = tower.qkv(index, states)
        found.append((keys[0], values[0]))
        states = tower.attend(index, states, F.scaled_dot_product_attention(query, keys, values, is_causal=True))
    keys, values = tower.qkv(tower.depth - 1, states, "kv")
    return [*found, (keys[0], values[0])]


def run_tails(tower: TextTower, shared: list[KeysValues], rows: Tensor, read: Tensor) -> Tensor:
    """Embed prompts whose beginnings have passed the tower.

    Args:
        tower: causal, and one that splits.
        shared: see `run_prefix`.
        rows: (K, t, d) token embeddings of the tails without positions.
        read: (K,) int64, place in the tail that the embedding is read from.

    Returns:
        (K, E), not normalised.
    """
    length, first = rows.shape[1], shared[0][0].shape[1]
    states = rows + tower.positions(first, first + length)
    seen = torch.ones(length, length, dtype=torch.bool, device=rows.device).tril()
    for index in range(tower.depth - 1):
        query, keys, values = tower.qkv(index, states)
        states = tower.attend(index, states, _attention(query, (keys, values), shared[index], seen))
    keys, values = tower.qkv(tower.depth - 1, states, "kv")
    last = states[torch.arange(len(states), device=states.device), read][:, None]
    (query,) = tower.qkv(tower.depth - 1, last, "q")
    seen = torch.arange(length, device=read.device) <= read[:, None]
    attended = _attention(query, (keys, values), shared[-1], seen[:, None, None])
    return tower.head(tower.attend(tower.depth - 1, last, attended)[:, 0])


def _attention(query: Tensor, own: KeysValues, shared: KeysValues, seen: Tensor) -> Tensor:
    """Attention of tails to the shared tokens and to their own, without a copy of the shared ones for each prompt.

    Args:
        query: (K, H, q, d / H).
        own: (K, H, t, d / H) each.
        shared: (H, P, d / H) each.
        seen: True where a token of the tail is seen, broadcast to (K, H, q, t).

    Returns:
        (K, H, q, d / H).
    """
    query = query * query.shape[-1] ** -0.5
    far = _by_head(query, shared[0].transpose(1, 2))
    near = (query @ own[0].transpose(2, 3)).masked_fill(~seen, float("-inf"))
    weights = torch.cat([far, near], -1).softmax(-1).to(query.dtype)
    far, near = weights.split([far.shape[-1], near.shape[-1]], -1)
    found: Tensor = _by_head(far, shared[1]) + near @ own[1]
    return found


def _by_head(rows: Tensor, matrices: Tensor) -> Tensor:
    """(K, H, q, a) times (H, a, b), as one product for each head: (K, H, q, b)."""
    product = rows.transpose(0, 1).flatten(1, 2) @ matrices
    found: Tensor = product.unflatten(1, (rows.shape[0], rows.shape[2])).transpose(0, 1)
    return found
