"""What a prompt needs of a text tower, and the plain way through it (Zhou et al., arXiv 2109.01134).

The tower is CLIP's (Radford et al., arXiv 2103.00020), with learned rows among its token embeddings as in CoOp (Zhou et
al., arXiv 2109.01134). Shapes: B texts, T tokens of each, d width of the tower, E embedding width.
"""

from typing import Protocol

import torch
from torch import Tensor


class TextTower(Protocol):
    """A text tower that takes token embeddings instead of token ids.

    Attributes:
        width: d.
        depth: number of blocks.
        num_heads: attention heads of a block.
        mlp_width: hidden width of a block's MLP.
        embed_dim: E.
        context_length: most tokens of a text.
        causal: a token sees itself and those before it, so that what follows the token that is read can be left out.
        reads_end: the embedding is read from the end token of a text, else from the last position.
        splits: `qkv` and `attend` are there, with one mask that is causal and nothing else between them.
    """

    width: int
    depth: int
    num_heads: int
    mlp_width: int
    embed_dim: int
    context_length: int
    causal: bool
    reads_end: bool
    splits: bool

    def embed(self, ids: Tensor) -> Tensor:
        """Token embeddings without positions, (...) int64 to (..., d)."""

    def positions(self, first: int, last: int) -> Tensor:
        """(last - first, d): the positional embedding of these places."""

    def blocks(self, states: Tensor) -> Tensor:
        """All blocks, (B, T, d) to the same, under the tower's own mask."""

    def head(self, states: Tensor) -> Tensor:
        """Final norm and projection, (B, d) to (B, E), not normalised."""

    def qkv(self, index: int, states: Tensor, parts: str = "qkv") -> tuple[Tensor, ...]:
        """The named projections of block `index`, each (B, heads, T, d / heads), after its first norm.

        `parts` is a piece of "qkv". The attention is softmax(q k^T / sqrt(d / heads)) v under a causal mask.
        """

    def attend(self, index: int, states: Tensor, attended: Tensor) -> Tensor:
        """The rest of block `index` for some of its rows: (B, T, d), given the attention's (B, heads, T, d / heads)."""


def encode(tower: TextTower, rows: Tensor, read: Tensor) -> Tensor:
    """Embed texts that are given as token embeddings: the reference of every faster way.

    Args:
        tower: the tower.
        rows: (B, T, d) token embeddings without positions.
        read: (B,) int64, the position that the embedding of each text is read from.

    Returns:
        (B, E), not normalised.
    """
    states = tower.blocks(rows + tower.positions(0, rows.shape[1]))
    return tower.head(states[torch.arange(len(states), device=states.device), read])
