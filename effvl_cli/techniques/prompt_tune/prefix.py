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
"""Keys and values of the shared tokens in one block, each (1, H, P, d / H)."""


def run_prefix(tower: TextTower, rows: Tensor) -> list[KeysValues]:
    """Keys and values of the shared tokens in every block.

    Args:
        tower: causal, and one that splits.
        rows: (P, d) token embeddings without positions.

    Returns:
        A pair for each block.
    """
    states = (rows + tower.positions(0, len(rows)))[None]
    found = []
    for index in range(tower.depth - 1):
        query, keys, values = tower.qkv(index, states)
        found.append((keys, values))
        states = tower.attend(index, states, F.scaled_dot_product_attention(query, keys, values, is_causal=True))
    keys, values = tower.qkv(tower.depth - 1, states, "kv")
    return [*found, (keys, values)]


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
    length, first = rows.shape[1], shared[0][0].shape[2]
    states = rows + tower.positions(first, first + length)
    seen = _after(first, torch.ones(length, length, dtype=torch.bool, device=rows.device).tril())
    for index in range(tower.depth - 1):
        query, keys, values = tower.qkv(index, states)
        states = tower.attend(index, states, _attention(query, (keys, values), shared[index], seen))
    keys, values = tower.qkv(tower.depth - 1, states, "kv")
    last = states[torch.arange(len(states), device=states.device), read][:, None]
    (query,) = tower.qkv(tower.depth - 1, last, "q")
    seen = _after(first, torch.arange(length, device=read.device) <= read[:, None])
    attended = _attention(query, (keys, values), shared[-1], seen[:, None, None])
    return tower.head(tower.attend(tower.depth - 1, last, attended)[:, 0])


def _after(count: int, seen: Tensor) -> Tensor:
    """(..., t) to (..., P + t): all shared tokens are seen, and these of the tail."""
    return F.pad(seen, (count, 0), value=True)


def _attention(query: Tensor, own: KeysValues, shared: KeysValues, seen: Tensor) -> Tensor:
    """Attention of tails to the shared tokens and to their own.

    Args:
        query: (K, H, q, d / H).
        own: (K, H, t, d / H) each.
        shared: (1, H, P, d / H) each.
        seen: True where a token is seen, broadcast to (K, H, q, P + t).

    Returns:
        (K, H, q, d / H).
    """
    count = len(query)
    keys, values = (torch.cat([a.expand(count, -1, -1, -1), b], 2) for a, b in zip(shared, own, strict=True))
    return F.scaled_dot_product_attention(query, keys, values, attn_mask=seen)
