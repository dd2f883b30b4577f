"""Many prompts a chunk at a time, each recomputed in the backward pass, so that memory grows with the chunk alone.

The recomputation is that of Chen et al., arXiv 1604.06174.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Chunk = int | Literal["auto"] | None
"""Prompts that pass the tower at once; "auto": as many as `MEMORY` allows; None: all."""
MEMORY = 2 << 30
KEPT = 13  # values of d that a block keeps of a token for the backward pass, of a frozen tower


def auto_chunk(tokens: int, width: int, depth: int, itemsize: int) -> int:
    """Prompts of so many computed tokens whose activations fit in `MEMORY` bytes, at least one."""
    return max(1, MEMORY // (tokens * width * depth * KEPT * itemsize))


def in_chunks(encode: Callable[[Tensor, Tensor], Tensor], rows: Tensor, read: Tensor, chunk: int) -> Tensor:
    """`encode(rows, read)` for parts of both, put together; each part is computed again in the backward pass.

    Args:
        encode: (k, T, d) and (k,) to (k, E), without random numbers.
        rows: (K, T, d).
        read: (K,).
        chunk: most prompts of a part; with K or more there is one part, which is not computed again.

    Returns:
        (K, E).
    """
    if chunk >= len(rows):
        return encode(rows, read)
    parts = list(zip(rows.split(chunk), read.split(chunk), strict=True))
    if not torch.is_grad_enabled():
        return torch.cat([encode(*part) for part in parts])
    return torch.cat([checkpoint(encode, *part, use_reentrant=False, preserve_rng_state=False) for part in parts])
