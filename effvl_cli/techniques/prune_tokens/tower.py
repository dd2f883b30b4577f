"""The pruned tower: an image tower that drops patches between two of its blocks.

Shapes: B images, P prefix tokens, N patches, D width, K kept patches, v prompt tokens, E embedding width.

Wu et al., arXiv 2409.14607: patches are dropped once, at one depth, and later blocks run on a shorter sequence.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from torch import Tensor, nn

from .dropped import Dropped, fused, nearest_kept
from .keeping import check_diversity, diverse_indices, keep_indices
from .prompts import CoupledPrompts, VisualPrompts, mean_patch_states
from .token_sizes import merge, sized_block


class Tower(Protocol):
    """An image tower as a flat sequence of tokens, P prefix tokens before N patches, that passes through L blocks.

    Attributes:
        module: the untouched tower; `module(images)` is its own forward pass.
        num_prefix: P.
        grid: rows and columns of patches, N = rows * columns.
        patch_size: height and width of a patch in pixels.
        width: D.
        depth: L.
        num_heads: attention heads of a block.
        mlp_width: hidden width of a block's MLP.
        embed_dim: E.
        pools_prefix_only: `pool` reads no patch, so the last block need not compute them.
        drops_tokens: the tower itself currently drops tokens at random (patch dropout in training).
    """

    module: nn.Module
    num_prefix: int
    grid: tuple[int, int]
    patch_size: tuple[int, int]
    width: int
    depth: int
    num_heads: int
    mlp_width: int
    embed_dim: int

    @property
    def pools_prefix_only(self) -> bool:
        """See the class."""

    @property
    def drops_tokens(self) -> bool:
        """See the class."""

    def embed(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, P+N, D), positional embedding and pre-norm applied."""

    def prompt_norm(self, rows: Tensor) -> Tensor:
        """The pre-norm, for prompt rows (..., D) that stand beside raw patch embeddings."""

    def block(self, index: int, states: Tensor) -> Tensor:
        """One block, (B, n, D) to the same; recomputed in the backward pass if the tower is set to."""

    def head(self, states: Tensor) -> Any:
        """What the untouched tower returns for these last states: (B, E), or a tuple that begins with it."""

    def pool(self, states: Tensor) -> Tensor:
        """Final norm, pooling and projection, (B, n, D) to (B, E), not normalised."""

    def qkv(self, index: int, states: Tensor, parts: str = "qkv") -> tuple[Tensor, ...]:
        """The named projections of block `index`, each (B, heads, n, D / heads), after its first norm.

        `parts` is a piece of "qkv". The queries are such that softmax(q k^T / sqrt(D / heads)) v is the attention.
        """

    def attend(self, index: int, states: Tensor, attended: Tensor) -> Tensor:
        """The rest of block `index` for some of its rows: (B, n, D), given the attention's (B, heads, n, D / heads)."""


@dataclass(frozen=True)
class Context:
    """What a selector may need besides the token states.

    Attributes:
        tower: the tower.
        layer: p.
        ids: (B,) int64, a number that names each sample, or None.
        previous: (B, P+N, D) token states one block earlier; None at p = 0, or where only the states are available.
    """

    tower: Tower
    layer: int
    ids: Tensor | None = None
    previous: Tensor | None = None


class Selector(Protocol):
    """Chooses patches. One that is an `nn.Module` is stored with the pruned tower.

    One with `dropped` says itself what becomes of what it drops; one with `weighs` gives scores that are weights.
    """

    def score(self, states: Tensor, context: Context) -> Tensor:
        """Token states (B, P+N, D) at depth p to (B, N) float32; the highest are kept."""


class NonFiniteError(FloatingPointError):
    """Scores that cannot be ordered.

    Attributes:
        samples: ids of the samples, or their positions in the batch where no ids were given.
    """

    def __init__(self, samples: Sequence[int]) -> None:
        self.samples = tuple(samples)
        shown = ", ".join(str(sample) for sample in self.samples[:5]) + (", ..." if len(self.samples) > 5 else "")
        super().__init__(f"NaN or infinite scores for {len(self.samples)} sample(s): {shown}")


def num_keep(keep: float, num_patches: int) -> int:
    """K = max(1, floor(keep N + 1/2)): half rounds up, and one patch always stays.

    Raises:
        ValueError: `keep` is not in (0, 1].
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep is {keep}, and must be above 0 and at most 1")
    return max(1, math.floor(keep * num_patches + 0.5))


def require_finite(scores: Tensor, ids: Tensor | None = None) -> None:
    """Raise NonFiniteError naming the rows of (B, N) `scores` that hold a NaN or an infinity."""
    finite = scores.isfinite().all(1)
    if not finite.all():
        bad = (~finite).nonzero().flatten()
        raise NonFiniteError((bad if ids is None else ids.to(bad.device)[bad]).tolist())


def gather_patches(states: Tensor, keep: Tensor, num_prefix: int, num_patches: int) -> Tensor:
    """Drop all patches except `keep`; prefix rows and whatever follows the patches stay.

    Args:
        states: (B, P+N+v, D).
        keep: (B, K) patch ids.
        num_prefix: P.
        num_patches: N.

    Returns:
        (B, P+K+v, D).
    """
    count, rows = states.shape[:2]
    ends = torch.arange(rows, device=states.device).expand(count, -1)
    index = torch.cat([ends[:, :num_prefix], keep + num_prefix, ends[:, num_prefix + num_patches :]], 1)
    return states[torch.arange(count, device=states.device)[:, None], index]


class WrappedTower(nn.Module):
    """Refers to a tower without changing it: the tower's weights are in neither `state_dict()` nor `parameters()`.

    `to()`, `train()` and their like reach the tower too. Install one with `clip.visual = wrapped`.

    Args:
        tower: the tower.
        layer: p, 0 to L-1.

    Raises:
        ValueError: `layer` is out of range.
    """

    def __init__(self, tower: Tower, layer: int) -> None:
        super().__init__()
        if not 0 <= layer < tower.depth:
            raise ValueError(f"layer is {layer}, and the tower has blocks 0 to {tower.depth - 1}")
        self.tower = tower
        self.layer = layer
        self.num_patches = tower.grid[0] * tower.grid[1]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.tower.module._apply(fn, recurse)
        found: Self = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return found

    def train(self, mode: bool = True) -> Self:
        """Set the mode of the tower too."""
        self.tower.module.train(mode)
        return super().train(mode)

    def refuse_dropout(self) -> None:
        """Raise ValueError if the tower itself is dropping tokens."""
        if self.tower.drops_tokens:
            raise ValueError("the tower's patch dropout and the pruning would both remove tokens; set patch_dropout 0")


class PrunedVision(WrappedTower):
    """An image tower that keeps K of its patches from block p on; its state is that of the selector and the prompts.

    Args:
        tower: the tower.
        layer: p, 0 to L-1.
        num_keep: K, 1 to N. With K = N and without prompts the tower's own forward pass runs.
        selector: chooses the patches.
        prompts: learnable tokens, never dropped.
        dropped: what becomes of the other patches; see `dropped`.
        diversity: how much the kept patches shall stand for the others too; see `diverse_indices`.

    Raises:
        ValueError: `layer`, `num_keep` or `diversity` is out of range.
    """

    def __init__(
        self,
        tower: Tower,
        *,
        layer: int,
        num_keep: int,
        selector: Selector,
        prompts: VisualPrompts | CoupledPrompts | None = None,
        dropped: Dropped = "discard",
        diversity: float = 0.0,
    ) -> None:
        super().__init__(tower, layer)
        if not 1 <= num_keep <= self.num_patches:
            raise ValueError(f"num_keep is {num_keep}, and the tower has {self.num_patches} patches")
        check_diversity(diversity)
        self.num_keep = num_keep
        self.selector = selector
        self.prompts = prompts
        self.dropped: Dropped = getattr(selector, "dropped", dropped)
        self.diversity = diversity

    def forward(self, images: Tensor, ids: Tensor | None = None, *, return_keep: bool = False) -> Any:
        """Embed images.

        Args:
            images: (B, 3, H, W).
            ids: (B,) int64 numbers of the samples; some selectors need them.
            return_keep: also return the ids of the kept patches.

        Returns:
            What the tower returns: (B, E), or with `output_tokens` a pair whose second item has a row for each of the
            K kept patches only, and so has no grid. With `return_keep` a pair of that and (B, K) int64.

        Raises:
            NonFiniteError: scores that are NaN or infinite.
            ValueError: the tower itself is dropping tokens (patch dropout).
        """
        if self.num_keep == self.num_patches and self.prompts is None:
            output, keep = self.tower.module(images), None
        else:
            previous, states = self._enter(images)
            scores = self.scores(states, ids, previous)
            keep = None if scores is None else self._chosen(states, scores)
            output = self.from_states(states, keep, scores)
        if not return_keep:
            return output
        return output, self._all_patches(images) if keep is None else keep

    def states(self, images: Tensor) -> Tensor:
        """Token states entering block p: (B, P+N, D), followed by v prompt rows if prompts start before p."""
        return self._enter(images)[1]

    def select(self, states: Tensor, ids: Tensor | None = None) -> Tensor | None:
        """Ids of the kept patches, (B, K) int64 ascending; None when all are kept. `states` from `states()`."""
        scores = self.scores(states, ids)
        return None if scores is None else self._chosen(states, scores)

    def _chosen(self, states: Tensor, scores: Tensor) -> Tensor:
        """Ids of the kept patches (B, K), from states (B, P+N+v, D) and scores (B, N)."""
        if not self.diversity:
            return keep_indices(scores, self.num_keep)
        first, last = self.tower.num_prefix, self.tower.num_prefix + self.num_patches
        # by their states, as what is dropped goes to the most similar kept one
        return diverse_indices(scores, states[:, first:last], self.num_keep, self.diversity)

    def from_states(self, states: Tensor, keep: Tensor | None, scores: Tensor | None = None) -> Any:
        """Run blocks p to L-1 on the kept patches.

        Args:
            states: from `states()`; may be cached.
            keep: (B, K) ids from `select()`, or None for all patches.
            scores: (B, N) of the patches, needed where they weigh what is dropped.
        """
        size, place = None, None
        if keep is not None:
            states, size, place = self._drop(states, keep, scores)
        for index in range(self.layer, self.tower.depth):
            states = self._block(index, states, size)
        if self.prompts is not None:
            states = states[:, : -self.prompts.num_tokens]
        if place is not None and not self.tower.pools_prefix_only:  # a token counts as often as it has patches
            states = states.gather(1, place[..., None].expand(-1, -1, states.shape[2]))
        return self.tower.head(states)

    def _enter(self, images: Tensor) -> tuple[Tensor | None, Tensor]:
        """States (B, P+N, D) entering block p-1 (None at p = 0) and block p."""
        self.refuse_dropout()
        previous, states = None, self.tower.embed(images)
        for index in range(self.layer):
            previous, states = states, self._block(index, states)
        return previous, states

    def scores(self, states: Tensor, ids: Tensor | None = None, previous: Tensor | None = None) -> Tensor | None:
        """(B, N) finite scores; None when all are kept. `states` from `states()`, `previous` one block earlier."""
        if self.num_keep == self.num_patches:
            return None
        rows = self.tower.num_prefix + self.num_patches
        own = next(self.tower.module.parameters()).dtype  # autocast may have changed the type of the states
        before = None if previous is None else previous[:, :rows].to(own)
        with torch.autocast(states.device.type, enabled=False):
            scores = self.selector.score(states[:, :rows].to(own), Context(self.tower, self.layer, ids, before))
        if not torch.compiler.is_exporting():
            require_finite(scores, ids)
        return scores

    def _drop(self, states: Tensor, keep: Tensor, scores: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Leave the patches in `keep` (B, K), and what the others become.

        Returns:
            States (B, P+K+e+v, D); the sizes of the tokens (B, P+K), for `merge`; and the row of each of the P+N tokens
            (B, P+N), where they were averaged.
        """
        first, last = self.tower.num_prefix, self.tower.num_prefix + self.num_patches
        kept = gather_patches(states, keep, first, self.num_patches)
        if self.dropped == "discard":
            return kept, None, None
        patches, place = states[:, first:last], first + keep.shape[1]
        with torch.autocast(states.device.type, enabled=False):
            if self.dropped == "fuse":
                weights = scores if getattr(self.selector, "weighs", False) else None
                weights = torch.ones(patches.shape[:2], device=states.device) if weights is None else weights
                one = fused(patches, keep, weights).to(kept.dtype)
                return torch.cat([kept[:, :place], one, kept[:, place:]], 1), None, None
            target = nearest_kept(patches, keep)
            single = torch.ones(patches.shape[:2], device=states.device)
            means, sizes = merge(patches, single, target, self.num_patches - keep.shape[1])
        kept = torch.cat([kept[:, :first], means.to(kept.dtype), kept[:, place:]], 1)
        prefix = torch.arange(first, device=states.device).expand(states.shape[0], -1)
        size = torch.cat([sizes.new_ones(states.shape[0], first), sizes], 1) if self.dropped == "merge" else None
        return kept, size, torch.cat([prefix, first + target], 1)

    def _block(self, index: int, states: Tensor, size: Tensor | None = None) -> Tensor:
        """One block, with its own prompts, (B, n, D) to the same or with v more rows."""
        if self.prompts is not None:
            states = self.prompts.insert(index, states, self.tower)
        return self.tower.block(index, states) if size is None else sized_block(self.tower, index, states, size)

    def _all_patches(self, images: Tensor) -> Tensor:
        """(B, N) ids of all patches."""
        return torch.arange(self.num_patches, device=images.device).expand(images.shape[0], -1)


def mean_states(vision: PrunedVision, images: Tensor, *, start: int, depth: int) -> Tensor:
    """Mean state of the patches that are there at the input of blocks `start` to `start + depth - 1`.

    Args:
        vision: the pruned tower, without prompts.
        images: (B, 3, H, W).
        start: first block.
        depth: number of blocks; those beyond the tower's last are left out.

    Returns:
        (min(depth, L - start), D) float32: where prompts may begin.
    """
    tower, layer, num_prefix = vision.tower, vision.layer, vision.tower.num_prefix
    with torch.no_grad():
        before = mean_patch_states(tower, tower.embed(images), num_prefix=num_prefix, start=0, depth=layer)
        states = vision.states(images)
        keep = vision.select(states)
        if keep is not None:
            states = vision._drop(states, keep, None)[0]
    after = mean_patch_states(tower, states, num_prefix=num_prefix, start=layer, depth=tower.depth)
    return torch.cat([before, after])[start : start + depth]
