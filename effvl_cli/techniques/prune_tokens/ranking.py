"""Golden ranking: greedy search for the order in which the patches of an image can be removed with least harm.

Wu et al., arXiv 2409.14607, phase I. Patches are removed from the states entering block p, and the damage is measured
at the tower's output. Shapes: P prefix tokens, N patches, D width, E embedding width, C candidates.

Everything is computed image by image: a candidate is never batched with another image's, so neither the batch size nor
the number of processes can change a rank.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from .tower import NonFiniteError, Tower


class Scorer(Protocol):
    """How harmless a removal is."""

    def score(self, embeddings: Tensor, reference: Tensor, sample: int) -> Tensor:
        """Embeddings (C, E) without the removed patches, and (E,) with all, to (C,) float32; high = safe to remove.

        `sample` is the image's row in the batch that is being ranked, for scorers that know more about it.
        """


class FeatureScorer:
    """Cosine between the embeddings with and without the removed patches; 0 for an embedding of length 0."""

    def score(self, embeddings: Tensor, reference: Tensor, sample: int) -> Tensor:
        """See `Scorer`."""
        return F.normalize(embeddings.float(), dim=-1) @ F.normalize(reference.float(), dim=-1)


CPU_CANDIDATE_TOKENS = 2048
SCORERS: Mapping[str, type] = {"feature": FeatureScorer}


@dataclass(frozen=True)
class Ranking:
    """Result for B images.

    Attributes:
        rank: (B, N) int16, importance of each patch: 0 = removed first.
        removal_score: (B, N) float32, mean score of the candidates that held the patch in the pass that ranked it.
        round: (B, N) int16, round in which the patch was removed; the last round ranks those that stay.
        passes: (B,) int64, sequences run through the blocks after p, the dense one aside.
        dense: (B, E) float32, embedding with all patches, not normalised.
        candidate_tokens: tokens in a chunk of candidates; less than asked for if the memory did not suffice.
    """

    rank: Tensor
    removal_score: Tensor
    round: Tensor
    passes: Tensor
    dense: Tensor
    candidate_tokens: int

    @classmethod
    def cat(cls, parts: list[Self]) -> Self:
        """Join rankings of several batches."""
        names = [field.name for field in fields(cls) if field.name != "candidate_tokens"]
        joined = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
        return cls(**joined, candidate_tokens=min(part.candidate_tokens for part in parts))


def golden_ranking(
    tower: Tower,
    images: Tensor,
    *,
    layer: int,
    scorer: Scorer | None = None,
    block: int = 1,
    block_stride: int = 1,
    group: int = 10,
    rank_until: float = 0.3,
    candidate_tokens: int = CPU_CANDIDATE_TOKENS,
    exact_fast_paths: bool = True,
) -> Ranking:
    """Rank the patches of each image by backward elimination.

    Args:
        tower: in eval mode, float32.
        images: (B, 3, H, W).
        layer: p, blocks run before the removal.
        scorer: default `FeatureScorer`.
        block: side r of the removal window, in patches.
        block_stride: stride of the windows.
        group: patches removed per round; 1 is the exact greedy search, 0 ranks all patches by a single pass.
        rank_until: share of the patches at which removal stops; one more pass orders the rest.
        candidate_tokens: tokens run at once.
        exact_fast_paths: project block p once per image, and compute CLS only in the last block. Same ranks, less work.

    Returns:
        The ranking, on the CPU.

    Raises:
        ValueError: an option is out of range.
        NonFiniteError: a score is NaN or infinite; names the rows of `images`.
        torch.OutOfMemoryError: a single candidate does not fit into the memory.
    """
    if not 0 <= layer < tower.depth:
        raise ValueError(f"layer is {layer}, and the tower has blocks 0 to {tower.depth - 1}")
    if group < 0 or not 0 < rank_until <= 1 or candidate_tokens < 1:
        raise ValueError(f"group {group}, rank_until {rank_until} or candidate_tokens {candidate_tokens} out of range")
    search = _Search(removal_windows(tower.grid, block, block_stride), scorer or FeatureScorer(), group, rank_until)
    parts = []
    with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        for sample, image in enumerate(images):
            part = _rank_image(search, tower, image, sample, layer, candidate_tokens, exact_fast_paths)
            candidate_tokens = part.candidate_tokens
            parts.append(part)
    return Ranking.cat(parts)


def removal_windows(grid: tuple[int, int], side: int, stride: int) -> Tensor:
    """Square windows over the patch grid, the last of each row and column moved inwards so that all is covered.

    Args:
        grid: rows and columns.
        side: of the windows, in patches.
        stride: from one window to the next.

    Returns:
        (windows, N) bool, in raster order.

    Raises:
        ValueError: the window is larger than the grid, or a number is below 1.
    """
    if not 1 <= side <= min(grid) or stride < 1:
        raise ValueError(f"windows of side {side} and stride {stride} do not fit a grid of {grid[0]} x {grid[1]}")
    tops, lefts = (sorted({*range(0, size - side + 1, stride), size - side}) for size in grid)
    windows = torch.zeros(len(tops), len(lefts), *grid, dtype=torch.bool)
    for i, top in enumerate(tops):
        for j, left in enumerate(lefts):
            windows[i, j, top : top + side, left : left + side] = True
    return windows.view(len(tops) * len(lefts), -1)


def alive_until(rank_until: float, num_patches: int) -> int:
    """ceil(rank_until * N), the number of patches at which removal stops."""
    return max(1, math.ceil(rank_until * num_patches - 1e-9))  # 0.07 * 100 is a little above 7


def token_damage(removed: Tensor, scores: Tensor, reference: float) -> Tensor:
    """Damage of each patch: mean, over the candidates that hold it, of (reference - score) / size of the candidate.

    Args:
        removed: (C, N) bool, patches that each candidate removes.
        scores: (C,) score of each candidate.
        reference: score with nothing removed; cancels out where all candidates have the same size.

    Returns:
        (N,) float32; infinite for patches in no candidate.
    """
    held = removed.float()
    damage = (reference - scores) / held.sum(1)
    coverage = held.sum(0)
    return torch.where(coverage > 0, (damage @ held) / coverage, torch.inf)


def auto_candidate_tokens(memory_bytes: int, width: int, mlp_ratio: float, *, cpu: bool = False) -> int:
    """Tokens in a chunk of candidates that use at most half of the memory, in float32.

    On a CPU no more than 2,048, which was the fastest from D = 64 to 768: larger chunks only leave the cache.
    """
    bytes_per_token = int(width * (2 * mlp_ratio + 8)) * 4
    tokens = max(1, memory_bytes // 2 // bytes_per_token)
    return min(tokens, CPU_CANDIDATE_TOKENS) if cpu else tokens


def _rank_image(
    search: "_Search", tower: Tower, image: Tensor, sample: int, layer: int, candidate_tokens: int, fast: bool
) -> Ranking:
    """One image; begun again with half the chunk when the device's memory does not suffice."""
    states = tower.embed(image[None])
    for index in range(layer):
        states = tower.block(index, states)
    while True:
        try:
            return search.run(CandidateRunner(tower, states, layer, candidate_tokens, fast), sample)
        except torch.OutOfMemoryError:
            if candidate_tokens <= states.shape[1]:
                raise
            candidate_tokens //= 2


class CandidateRunner:
    """Blocks p to L-1 and the pooling, on subsets of one image's tokens."""

    def __init__(self, tower: Tower, states: Tensor, layer: int, candidate_tokens: int, fast: bool) -> None:
        self.tower = tower
        self.layer = layer
        self.candidate_tokens = candidate_tokens
        self.fast = fast
        self.rows = states[0]
        self.prefix = torch.arange(tower.num_prefix, device=states.device)
        self.passes = 0
        if fast:  # the first norm and the projections of block p see one token at a time: the same for every candidate
            projected = torch.stack(tower.qkv(layer, states))[:, 0]
            self.qkv = projected.permute(2, 0, 1, 3).contiguous()  # (P+N, 3, heads, D/heads): one gather a candidate

    def __call__(self, keep: Tensor) -> Tensor:
        """(C, K) patch ids to (C, E) float32."""
        self.passes += len(keep)
        length = len(self.prefix) + keep.shape[1]
        if length == 0:  # nothing left at all: no direction, which every scorer takes for the worst
            return torch.zeros(len(keep), self.tower.embed_dim, device=self.rows.device)
        chunks = math.ceil(len(keep) / max(1, self.candidate_tokens // length))
        parts = keep.to(self.rows.device).split(math.ceil(len(keep) / chunks))
        return torch.cat([self._embed(part).float() for part in parts])

    def _embed(self, keep: Tensor) -> Tensor:
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
        return self.tower.pool(states)


@dataclass(frozen=True)
class _Search:
    """Backward elimination for one image."""

    windows: Tensor
    scorer: Scorer
    group: int
    rank_until: float

    def run(self, suffix: CandidateRunner, sample: int) -> Ranking:
        num_patches = self.windows.shape[1]
        alive = torch.ones(num_patches, dtype=torch.bool)
        dense = suffix(torch.arange(num_patches)[None])[0]
        suffix.passes = 0
        order: list[Tensor] = []
        removal_score = torch.zeros(num_patches)
        rounds = torch.zeros(num_patches, dtype=torch.int16)
        for number, take in enumerate(self._takes(num_patches)):
            damage, score = self._damage(alive, suffix, dense, sample)
            ids = alive.nonzero().flatten()
            removed = ids[damage[ids].argsort(stable=True)][:take]
            order.append(removed)
            removal_score[removed] = score[removed]
            rounds[removed] = number
            alive[removed] = False
        rank = torch.empty(num_patches, dtype=torch.int16)
        rank[torch.cat(order)] = torch.arange(num_patches, dtype=torch.int16)
        return Ranking(
            rank[None],
            removal_score[None],
            rounds[None],
            torch.tensor([suffix.passes]),
            dense.cpu()[None],
            suffix.candidate_tokens,
        )

    def _takes(self, num_patches: int) -> Iterator[int]:
        """Patches taken by each round; the last one takes all that are left."""
        left = num_patches
        while self.group and left > (stop := alive_until(self.rank_until, num_patches)):
            yield min(self.group, left - stop)
            left -= min(self.group, left - stop)
        yield left

    def _damage(self, alive: Tensor, suffix: CandidateRunner, dense: Tensor, sample: int) -> tuple[Tensor, Tensor]:
        """Damage of removing each patch, and the mean score of the candidates that hold it: (N,) each."""
        removed = self._candidates(alive)
        sizes = removed.sum(1)
        scores = torch.empty(len(removed))
        for size in sizes.unique():  # rectangles: candidates that keep equally many patches
            rows = (sizes == size).nonzero().flatten()
            kept = alive & ~removed[rows]
            keep = kept.nonzero()[:, 1].view(len(rows), -1)
            scores[rows] = self._score(suffix(keep), dense, sample)
        reference = 0.0
        if len(sizes.unique()) > 1:
            keep = alive.nonzero().view(1, -1)
            reference = float(self._score(suffix(keep), dense, sample))
        held = removed.float()
        return token_damage(removed, scores, reference), (scores @ held) / held.sum(0).clamp(min=1)

    def _candidates(self, alive: Tensor) -> Tensor:
        """Distinct, non-empty windows on the alive patches: (C, N) bool."""
        removed = self.windows & alive
        removed = removed[removed.any(1)]
        if self.windows[0].sum() == 1:
            return removed
        return removed.unique(dim=0)

    def _score(self, embeddings: Tensor, dense: Tensor, sample: int) -> Tensor:
        scores = self.scorer.score(embeddings, dense, sample).float().cpu()
        if not scores.isfinite().all():
            raise NonFiniteError([sample])
        return scores
