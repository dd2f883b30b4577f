"""Golden ranking: greedy search for the order in which the patches of an image can be removed with least damage.

Wu et al., arXiv 2409.14607, phase I. Patches are removed from the states entering block p, and the damage is measured
at the tower's output. Shapes: P prefix tokens, N patches, D width, E embedding width, C candidates.

Everything is computed image by image: candidates of different images never share a batch, so neither the batch size nor
the number of processes can change a rank.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import partial
from typing import Self

import torch
from torch import Tensor

from .candidates import CPU_CANDIDATE_TOKENS, CandidateRunner
from .scorers import FeatureScorer, Scorer
from .tower import NonFiniteError, Tower


@dataclass(frozen=True)
class Ranking:
    """Result for B images.

    Attributes:
        rank: (B, N) int16, importance of each patch: 0 = removed first.
        removal_score: (B, N) float32, mean score of the candidates that held the patch in the pass that ranked it.
            Damages are differences of scores in float64; this copy of the scores is rounded.
        round: (B, N) int16, round in which the patch was removed; the last round ranks the remaining ones.
        passes: (B,) int64, sequences run through the blocks after p, without the dense one.
        dense: (B, E) float32, embedding with all patches, not normalised.
        candidate_tokens: tokens in a chunk of candidates; fewer than requested if memory did not suffice.
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
    taylor: bool = False,
    shortlist: int = 0,
    pool: Callable[[Tensor], Tensor] | None = None,
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
        rank_until: share of the patches at which removal stops; one more pass ranks the rest.
        taylor: estimate every score from gradients instead of evaluating it.
        shortlist: in each round evaluate only the candidates of those patches, `shortlist` times as many as it removes,
            that do the least damage by gradients; 0 evaluates all. The pass that ranks the rest evaluates all.
        pool: from the last states to what the scorer compares; default `tower.pool`.
        candidate_tokens: tokens run at once.
        exact_fast_paths: project block p once per image, and compute CLS only in the last block. Same ranks, less work.

    Returns:
        The ranking, on the CPU.

    Raises:
        ValueError: an argument is out of range, or gradients are not informative (see `taylor_scores`).
        NonFiniteError: a score is NaN or infinite; names the rows of `images`.
        torch.OutOfMemoryError: a single candidate does not fit in memory.
    """
    if not 0 <= layer < tower.depth:
        raise ValueError(f"layer is {layer}, and the tower has blocks 0 to {tower.depth - 1}")
    if group < 0 or not 0 < rank_until <= 1 or candidate_tokens < 1:
        raise ValueError(f"group {group}, rank_until {rank_until} or candidate_tokens {candidate_tokens} out of range")
    if shortlist < 0 or (shortlist and (taylor or not group)):
        raise ValueError(f"shortlist is {shortlist}, which needs rounds of evaluated candidates: group is {group}")
    windows = removal_windows(tower.grid, block, block_stride)
    search = _Search(windows, scorer or FeatureScorer(), group, rank_until, taylor, shortlist)
    parts = []
    with torch.no_grad(), torch.autocast(images.device.type, enabled=False):
        for sample, image in enumerate(images):
            states = tower.embed(image[None])
            for index in range(layer):
                states = tower.block(index, states)
            runner = partial(CandidateRunner, tower, states, layer, fast=exact_fast_paths, pool=pool)
            parts.append(_rank_image(search, runner, sample, candidate_tokens))
            candidate_tokens = parts[-1].candidate_tokens
    return Ranking.cat(parts)


def removal_windows(grid: tuple[int, int], side: int, stride: int) -> Tensor:
    """Square windows over the patch grid, the last of each row and column moved inwards so that every patch is covered.

    Args:
        grid: rows and columns.
        side: of the windows, in patches.
        stride: from one window to the next.

    Returns:
        (windows, N) bool, in raster order.

    Raises:
        ValueError: the window is larger than the grid, or the stride than the window, or a number is below 1.
    """
    if not 1 <= side <= min(grid) or not 1 <= stride <= side:
        raise ValueError(f"windows of side {side} and stride {stride} do not fit a grid of {grid[0]} x {grid[1]}")
    tops, lefts = (sorted({*range(0, size - side + 1, stride), size - side}) for size in grid)
    windows = torch.zeros(len(tops), len(lefts), *grid, dtype=torch.bool)
    for i, top in enumerate(tops):
        for j, left in enumerate(lefts):
            windows[i, j, top : top + side, left : left + side] = True
    return windows.view(len(tops) * len(lefts), -1)


def mirrored(rank: Tensor, grid: tuple[int, int]) -> Tensor:
    """Rankings of images whose left and right are exchanged, for a tower to which the two look alike. Ours.

    Args:
        rank: (M, N).
        grid: rows and columns of patches, N in all.

    Returns:
        (M, N).
    """
    found: Tensor = rank.unflatten(1, grid)
    return found.flip(-1).flatten(1)


def alive_until(rank_until: float, num_patches: int) -> int:
    """ceil(rank_until * N), the number of patches at which removal stops."""
    return max(1, math.ceil(rank_until * num_patches - 1e-9))  # 0.07 * 100 is a little above 7


def token_damage(removed: Tensor, scores: Tensor, reference: float) -> Tensor:
    """Damage of each patch: mean, over the candidates that remove it, of (reference - score) / size of the candidate.

    Args:
        removed: (C, N) bool, patches that each candidate removes.
        scores: (C,) score of each candidate.
        reference: score with nothing removed; cancels out where all candidates have the same size.

    Returns:
        (N,) of the scores' type; infinite for patches in no candidate.
    """
    held = removed.to(scores.dtype)
    damage = (reference - scores) / held.sum(1)
    coverage = held.sum(0)
    return torch.where(coverage > 0, (damage @ held) / coverage, torch.inf)


def _rank_image(
    search: "_Search", runner: Callable[[int], CandidateRunner], sample: int, candidate_tokens: int
) -> Ranking:
    """Rank one image (1, 3, H, W), with half the chunk again where memory does not suffice."""
    while True:
        suffix = runner(candidate_tokens)
        try:
            return search.run(suffix, sample)
        except torch.OutOfMemoryError:
            if candidate_tokens <= len(suffix.rows):
                raise
            candidate_tokens //= 2


@dataclass(frozen=True)
class _Removals:
    """Scores of removals from one image. Candidates are (C, N) bool: what each removes from the patches left."""

    suffix: CandidateRunner
    scorer: Scorer
    dense: Tensor
    sample: int

    def evaluated(self, alive: Tensor, removed: Tensor) -> tuple[Tensor, float]:
        """(C,) score of each candidate, and the score with nothing removed, where that does not cancel out."""
        sizes = removed.sum(1)
        groups = [(sizes == size).nonzero().flatten() for size in sizes.unique()]  # same number kept: rectangles
        kept = [(alive & ~removed[rows]).nonzero()[:, 1].view(len(rows), -1) for rows in groups]
        embeddings = torch.cat([self.suffix(ids) for ids in kept])[torch.cat(groups).argsort()]
        if len(groups) == 1:
            return self._finite(self.scorer.score(embeddings, self.dense, self.sample)), 0.0
        embeddings = torch.cat([embeddings, self.suffix(alive.nonzero().view(1, -1))])
        scores = self._finite(self.scorer.score(embeddings, self.dense, self.sample))
        return scores[:-1], float(scores[-1])

    def estimated(self, alive: Tensor, removed: Tensor) -> tuple[Tensor, float]:
        """The same from gradients, (C,): the damage of a candidate is the sum over its patches."""
        ids = alive.nonzero().flatten()
        estimates, reference = self.suffix.scores_by_taylor(ids, self.scorer, self.dense, self.sample)
        damage = reference - estimates
        scores = reference - removed[:, ids].to(damage) @ damage
        return self._finite(scores), float(reference)

    def _finite(self, scores: Tensor) -> Tensor:
        """(C,) scores in float64 on the CPU, all finite."""
        if not scores.isfinite().all():
            raise NonFiniteError([self.sample])
        return scores.cpu().double()


@dataclass(frozen=True)
class _Search:
    """Backward elimination for one image."""

    windows: Tensor
    scorer: Scorer
    group: int
    rank_until: float
    taylor: bool
    shortlist: int

    def run(self, suffix: CandidateRunner, sample: int) -> Ranking:
        num_patches = self.windows.shape[1]
        alive = torch.ones(num_patches, dtype=torch.bool)
        dense = suffix(torch.arange(num_patches)[None])[0]
        suffix.passes = 0
        removals = _Removals(suffix, self.scorer, dense, sample)
        order: list[Tensor] = []
        removal_score = torch.zeros(num_patches)
        rounds = torch.zeros(num_patches, dtype=torch.int16)
        for number, take in enumerate(self._takes(num_patches)):
            damage, score = self._damage(alive, removals, take)
            ids = alive.nonzero().flatten()
            removed = ids[damage[ids].argsort(stable=True)][:take]
            order.append(removed)
            removal_score[removed] = score[removed].float()
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

    def _damage(self, alive: Tensor, removals: _Removals, take: int) -> tuple[Tensor, Tensor]:
        """Damage of removing each patch, and the mean score of the candidates that hold it: (N,) each."""
        removed, listed = self._candidates(alive), alive
        if self.taylor:
            scores, reference = removals.estimated(alive, removed)
        else:
            if 0 < self.shortlist * take < alive.sum():
                rough = token_damage(removed, *removals.estimated(alive, removed))
                listed = torch.zeros_like(alive)
                listed[rough.argsort(stable=True)[: self.shortlist * take]] = True
                removed = removed[(removed & listed).any(1)]
            scores, reference = removals.evaluated(alive, removed)
        damage = token_damage(removed, scores, reference)
        held = removed.to(scores.dtype)
        return damage.where(listed, torch.inf), (scores @ held) / held.sum(0).clamp(min=1)

    def _candidates(self, alive: Tensor) -> Tensor:
        """Distinct, non-empty windows on the alive patches, those of the lowest ids first: (C, N) bool."""
        removed = self.windows & alive
        removed = removed[removed.any(1)]
        if self.windows[0].sum() == 1:
            return removed
        found: Tensor = removed.unique(dim=0).flip(0)
        return found
