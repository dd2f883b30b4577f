"""Learnable visual tokens: shallow and deep prompts (Jia et al., arXiv 2203.12119, eqs. 4 and 6).

Shapes: B images, n tokens, D width, v prompt tokens.
"""

from typing import Protocol

import torch
from torch import Tensor, nn


class _Blocks(Protocol):
    depth: int

    def prompt_norm(self, rows: Tensor) -> Tensor:
        """The tower's pre-norm."""

    def block(self, index: int, states: Tensor) -> Tensor:
        """One block."""


class VisualPrompts(nn.Module):
    """v tokens behind the patches: appended before block `start`, replaced by fresh ones before the blocks after it.

    Args:
        init: (depth, D), the state that the prompts of each block start from; `depth` blocks get prompts of their own,
            later ones see what the last of them make of it.
        num_tokens: v.
        start: first block with prompts.
        generator: of the noise that tells the v tokens of a block apart: equal ones get equal gradients and stay equal
            for ever. None: no noise, for prompts whose values are loaded.
        noise: its size, relative to the root mean square of the state.
        pre_norm: pass prompts that enter block 0 through the tower's pre-norm, as if they were patch embeddings
            (MaPLe's placement); otherwise they are token states like those of `init`.
    """

    def __init__(
        self,
        init: Tensor,
        num_tokens: int,
        *,
        start: int,
        generator: torch.Generator | None = None,
        noise: float = 0.02,
        pre_norm: bool = False,
    ) -> None:
        super().__init__()
        depth, width = init.shape
        tokens = init.float()[:, None].repeat(1, num_tokens, 1)
        if generator is not None:
            drawn = torch.randn(depth, num_tokens, width, generator=generator, device=generator.device)
            tokens += noise * init.float().square().mean(1).sqrt()[:, None, None] * drawn.to(init.device)
        self.tokens = nn.Parameter(tokens)
        self.num_tokens = num_tokens
        self.depth = depth
        self.start = start
        self.pre_norm = pre_norm

    def insert(self, index: int, states: Tensor, tower: _Blocks) -> Tensor:
        """The input of block `index`, (B, n, D), with its prompts appended or put in the place of the last v rows."""
        level = index - self.start
        if not 0 <= level < self.depth:
            return states
        rows = self.tokens[level].to(states.dtype)
        if index == 0 and self.pre_norm:
            rows = tower.prompt_norm(rows)
        kept = states if level == 0 else states[:, : -self.num_tokens]
        return torch.cat([kept, rows.expand(len(states), -1, -1)], 1)


def mean_patch_states(tower: _Blocks, states: Tensor, *, num_prefix: int, start: int, depth: int) -> Tensor:
    """Mean state of the patches at the input of blocks `start` to `start + depth - 1`: where prompts may begin.

    Args:
        tower: the tower.
        states: (B, P+K, D) entering block `start`, dropped patches left out.
        num_prefix: P.
        start: first block.
        depth: number of blocks; those beyond the tower's last are left out.

    Returns:
        (min(depth, L - start), D) float32.
    """
    means = []
    with torch.no_grad():
        for index in range(start, min(start + depth, tower.depth)):
            means.append(states[:, num_prefix:].float().mean((0, 1)))
            states = tower.block(index, states)
    return torch.stack(means)
