"""Multiply-adds of a tower, dense and pruned, as exact integers.

Counted: the patch embedding, the matrix products of the blocks and the projection. Norms, biases, softmax, activations
and any attentional pooler are not. FLOPs are twice the MACs. N patches, P prefix tokens, D width, E embedding width.

Ours. The formula of a block is held against torch's FlopCounterMode; merging is counted for arXiv 2210.09461.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from .dropped import Dropped
from .tower import Tower


@dataclass(frozen=True)
class TowerShape:
    """The sizes of a tower that its cost depends on.

    Attributes:
        num_patches: N.
        num_prefix: P.
        patch_dim: numbers in a patch, 3 * height * width.
        width: D.
        depth: blocks.
        mlp_width: hidden width of a block's MLP.
        embed_dim: E.
    """

    num_patches: int
    num_prefix: int
    patch_dim: int
    width: int
    depth: int
    mlp_width: int
    embed_dim: int

    @classmethod
    def of(cls, tower: Tower) -> Self:
        """Read them from a tower."""
        return cls(
            num_patches=tower.grid[0] * tower.grid[1],
            num_prefix=tower.num_prefix,
            patch_dim=3 * tower.patch_size[0] * tower.patch_size[1],
            width=tower.width,
            depth=tower.depth,
            mlp_width=tower.mlp_width,
            embed_dim=tower.embed_dim,
        )

    @property
    def embed(self) -> int:
        """Patch embedding."""
        return self.num_patches * self.patch_dim * self.width

    @property
    def projection(self) -> int:
        """Last projection of one row."""
        return self.width * self.embed_dim

    def block(self, rows: int) -> int:
        """One block over `rows` tokens: its four projections, MLP, and the two products of attention."""
        per_row = 4 * self.width**2 + 2 * self.width * self.mlp_width
        return rows * per_row + 2 * rows**2 * self.width

    def dense(self) -> int:
        """The whole tower."""
        return self.pruned(self.num_patches, 0)

    def pruned(self, num_keep: int, layer: int, num_prompts: int = 0, prompt_start: int | None = None) -> int:
        """The tower with K patches from block `layer` on; without the selector.

        Args:
            num_keep: K.
            layer: p.
            num_prompts: further rows.
            prompt_start: first block that has them; default p.
        """
        start = layer if prompt_start is None else prompt_start
        patches = [self.num_patches if index < layer else num_keep for index in range(self.depth)]
        further = [num_prompts if index >= start else 0 for index in range(self.depth)]
        blocks = sum(self.block(self.num_prefix + n + v) for n, v in zip(patches, further, strict=True))
        return self.embed + blocks + self.projection

    def merged(self, schedule: Sequence[int], layer: int, num_heads: int) -> int:
        """The tower with `schedule[i]` tokens merged in block `layer + i`, the matching included.

        A block that merges has its output projection and MLP over the merged rows.
        """
        rows, width = self.num_prefix + self.num_patches, self.width
        total = self.embed + layer * self.block(rows) + self.projection
        for count in schedule:
            first, second = -(-rows // 2) - -(-self.num_prefix // 2), rows // 2 - self.num_prefix // 2
            matching = first * second * (width // num_heads) if count else 0
            saved = count * (width**2 + 2 * width * self.mlp_width)
            total += self.block(rows) - saved + matching
            rows -= count
        return total

    def mixer(self, width: int) -> int:
        """MixerPredictor of that width."""
        rows = self.num_prefix + self.num_patches
        return 2 * rows * width * max(1, width // 2) + 2 * rows * width * 4 * width + self.num_patches * width

    def cls_attention(self) -> int:
        """ClsAttentionSelector: one query, all keys, one row of weights."""
        rows = self.num_prefix + self.num_patches
        return (1 + rows) * self.width**2 + rows * self.width

    def compared(self, num_keep: int) -> int:
        """Each patch with each other, and the weighted sums by which each kept one is chosen."""
        return self.num_patches**2 * (self.width + num_keep)

    def kept_of_dropped(self, num_keep: int, dropped: Dropped) -> int:
        """What is done with the patches that are not kept; the row of `fuse` in the blocks is not here."""
        if dropped == "discard":
            return 0
        similar = (self.num_patches - num_keep) * num_keep if dropped in ("average", "merge") else 0
        return (similar + self.num_patches) * self.width

    def taylor(self, layer: int, probes: int) -> int:
        """TaylorSelector with the feature scorer: two forward passes of blocks p to L-1, and 1 + probes backward ones.

        A backward pass has a product for each linear map and two for each product of two activations. The first block's
        input and what comes of it alone, its projections, need no gradient.
        """
        rows, width, blocks = self.num_prefix + self.num_patches, self.width, self.depth - layer
        forward = blocks * self.block(rows) + self.projection
        backward = forward + blocks * 2 * rows**2 * width - 3 * rows * width**2 - 3 * rows**2 * width
        return 2 * forward + (1 + probes) * backward

    def candidate(self, num_keep: int, layer: int) -> int:
        """One candidate of the golden-ranking search by its exact fast paths, for a tower that pools CLS.

        Block `layer` lacks the three input projections, which are the image's; the last block has queries, output
        projection and MLP of CLS only.
        """
        rows, width = self.num_prefix + num_keep, self.width
        per_query = 2 * width**2 + 2 * width * self.mlp_width + 2 * rows * width
        last = 2 * rows * width**2 + per_query
        if layer == self.depth - 1:
            return per_query - width**2 + self.projection
        first = self.block(rows) - 3 * rows * width**2
        return first + (self.depth - layer - 2) * self.block(rows) + last + self.projection
