"""Running the blocks after p on many subsets of one image's tokens, exactly and with as little work as possible.

Shapes: P prefix tokens, N patches, D width, E embedding width, C candidates, K kept patches.

The search is that of arXiv 2409.14607, phase I; the exact shortcuts and the batching are ours.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from .scorers import Scorer
from .taylor import PROBES, taylor_scores
from .tower import Tower

CPU_CANDIDATE_TOKENS = 2048


def auto_candidate_tokens(memory_bytes: int, width: int, mlp_ratio: float, *, cpu: bool = False) -> int:
    """Tokens in a chunk of candidates that takes at most half of the memory, in float32.

    On a CPU no more than 2,048, which was the fastest from D = 64 to 768: larger chunks only leave the cache.
    """
    bytes_per_token = int(width * (2 * mlp_ratio + 8)) * 4
    tokens = max(1, memory_bytes // 2 // bytes_per_token)
    return min(tokens, CPU_CANDIDATE_TOKENS) if cpu else tokens


class CandidateRunner:
    """Blocks p to L-1 and the pooling, on subsets of one image's tokens.

    Args:
        tower: the tower.
        states: (1, P+N, D) of the image, entering block `layer`.
        layer: p.
        candidate_tokens: tokens run at once.
        fast: project block p once, and compute CLS only in the last block.
        pool: from the last states (C, P+K, D) to (C, E); default `tower.pool`.
    """

    def __init__(
        self,
        tower: Tower,
        states: Tensor,
        layer: int,
        candidate_tokens: int,
        fast: bool,
        pool: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.tower = tower
        self.layer = layer
        self.pool = pool or tower.pool
        self.embed_dim = tower.embed_dim
        self.candidate_tokens = candidate_tokens
        self.fast = fast
        self.rows = states[0]
        self.prefix = torch.arange(tower.num_prefix, device=states.device)
        self.passes = 0
        if fast:  # the first norm and projections of block p act on single tokens: the same for every candidate
            projected = torch.stack(tower.qkv(layer, states))[:, 0]
            self.qkv = projected.permute(2, 0, 1, 3).contiguous()  # (P+N, 3, heads, D/heads): one gather a candidate

    def __call__(self, keep: Tensor) -> Tensor:
        """(C, K) patch ids to (C, E), at least float32."""
        self.passes += len(keep)
        length = len(self.prefix) + keep.shape[1]
        if length == 0:  # no token is left: no direction, which every scorer ranks worst
            return torch.zeros(len(keep), self.embed_dim, device=self.rows.device)
        chunks = math.ceil(len(keep) / max(1, self.candidate_tokens // length))
        parts = keep.to(self.rows.device).split(math.ceil(len(keep) / chunks))
        embeddings = torch.cat([self._embed(part) for part in parts])
        embeddings = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))
        self.embed_dim = embeddings.shape[1]
        return embeddings

    def scores_by_taylor(self, keep: Tensor, scorer: Scorer, reference: Tensor, sample: int) -> tuple[Tensor, Tensor]:
        """Estimated scores (K,) without each of the patches `keep`, and the score with all of them; see `taylor`."""
        self.passes += 1 + 2 * (1 + PROBES * scorer.stationary)  # a backward pass costs twice a forward pass
        rows = self.rows[torch.cat([self.prefix, keep.to(self.rows.device) + len(self.prefix)])]
        return taylor_scores(self.tower, rows[None], self.layer, scorer, reference, sample, pool=self.pool)

    def _embed(self, keep: Tensor) -> Tensor:
        """(C, K) patch ids to (C, E)."""
        tokens = torch.cat([self.prefix.expand(len(keep), -1), keep + len(self.prefix)], 1)
        states = self.rows[tokens]
        last = self.tower.depth - 1
        cls_only = self.fast and self.tower.pools_prefix_only
        for index in range(self.layer, last + 1):
            needed = 1 if cls_only and index == last else states.shape[1]
            if self.fast and index == self.layer:
                query, keys, values = self.qkv[tokens].permute(2, 0, 3, 1, 4)
                query = query[:, :, :needed]
            elif needed < states.shape[1]:
                keys, values = self.tower.qkv(index, states, "kv")
                (query,) = self.tower.qkv(index, states[:, :needed], "q")
            else:
                states = self.tower.block(index, states)
                continue
            attended = F.scaled_dot_product_attention(query, keys, values)
            states = self.tower.attend(index, states[:, :needed], attended)
        return self.pool(states)
