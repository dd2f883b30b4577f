"""Learnable visual tokens: shallow and deep prompts (Jia et al., arXiv 2203.12119, sec. 3.2), independent or
mapped from text prompts (MaPLe: Khattak et al., arXiv 2210.03117).

Shapes: B images, n tokens, D width, v visual prompt tokens, Dt width of the text tower.
"""

from typing import Protocol

import torch
from torch import Tensor, nn

from .text_prompts import TextPrompts


class _Blocks(Protocol):
    depth: int

    def prompt_norm(self, rows: Tensor) -> Tensor:
        """The tower's pre-norm, (..., D) to the same."""

    def block(self, index: int, states: Tensor) -> Tensor:
        """One block, (B, n, D) to the same."""


class _Inserted(nn.Module):
    """Rows after the patches: appended before block `start`, replaced by new ones before each later block.

    Attributes:
        num_tokens: v.
        depth: blocks with their own rows; later blocks get the outputs for the last ones.
        start: first block with prompts.
        pre_norm: pass rows that enter block 0 through the tower's pre-norm, as if they were patch embeddings (MaPLe's
            placement).
    """

    num_tokens: int
    depth: int
    start: int
    pre_norm: bool = False

    def rows(self, level: int) -> Tensor:
        """(v, D): the prompts of block `start + level`."""
        raise NotImplementedError

    def insert(self, index: int, states: Tensor, tower: _Blocks) -> Tensor:
        """The input of block `index`, (B, n, D), with its prompts appended, or in place of the last v rows."""
        level = index - self.start
        if not 0 <= level < self.depth:
            return states
        rows = self.rows(level).to(states.dtype)
        if index == 0 and self.pre_norm:
            rows = tower.prompt_norm(rows)
        kept = states if level == 0 else states[:, : -self.num_tokens]
        return torch.cat([kept, rows.expand(states.shape[0], -1, -1)], 1)


class VisualPrompts(_Inserted):
    """v visual tokens per block, as independent parameters.

    Args:
        init: (depth, D), initial state of the prompts of each block.
        num_tokens: v.
        start: first block with prompts.
        generator: of the noise that makes the v tokens of a block differ: equal ones get equal gradients and stay equal
            for ever. None: no noise, for prompts whose values are loaded.
        noise: its size, relative to the root mean square of the state.
        pre_norm: see `_Inserted`; without it the prompts are token states like those of `init`.
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
        self.depth, width = init.shape
        tokens = init.float()[:, None].repeat(1, num_tokens, 1)
        if generator is not None:
            drawn = torch.randn(self.depth, num_tokens, width, generator=generator, device=generator.device)
            tokens += noise * _size(init.float())[:, None, None] * drawn.to(init.device)
        self.tokens = nn.Parameter(tokens)
        self.num_tokens = num_tokens
        self.start = start
        self.pre_norm = pre_norm

    def rows(self, level: int) -> Tensor:
        """See `_Inserted`."""
        return self.tokens[level]


class CoupledPrompts(_Inserted):
    """Visual prompts that are a linear map of the text prompts, with bias, one map per block: block `start + i` gets
    M_i of text prompt i (MaPLe, sec. 3.2).

    The maps start so that the visual prompts equal those of `VisualPrompts` with this `init`: the bias is the state,
    the weight adds the noise.

    Args:
        text: the text prompts; their number of tokens is v.
        init: (text.depth, D), see `VisualPrompts`.
        start: first block with prompts.
        generator: of the weights. None: zeros, for maps whose values are loaded.
        noise: see `VisualPrompts`.
        pre_norm: see `_Inserted`.

    Raises:
        ValueError: `init` and `text` have different depths.
    """

    def __init__(
        self,
        text: TextPrompts,
        init: Tensor,
        *,
        start: int,
        generator: torch.Generator | None = None,
        noise: float = 0.02,
        pre_norm: bool = False,
    ) -> None:
        super().__init__()
        self.depth, width = init.shape
        if self.depth != text.depth:
            raise ValueError(f"{text.depth} blocks of text prompts cannot be mapped to {self.depth} of visual ones")
        weight = torch.zeros(self.depth, width, text.width, device=init.device)
        if generator is not None:
            drawn = torch.randn(weight.shape, generator=generator, device=generator.device).to(init.device)
            texts = text.tokens.detach().square().sum(2).mean(1).sqrt()
            weight += noise * (_size(init.float()) / texts)[:, None, None] * drawn
        self.text = text
        self.weight = nn.Parameter(weight)
        self.bias = nn.Parameter(init.float().clone())
        self.num_tokens = text.num_tokens
        self.start = start
        self.pre_norm = pre_norm

    def rows(self, level: int) -> Tensor:
        """See `_Inserted`."""
        return nn.functional.linear(self.text.tokens[level], self.weight[level], self.bias[level])


class Prompts(nn.Module):
    """What is tuned: visual prompts, text prompts, or both.

    Args:
        visual: for the pruned tower; None: text prompts alone.
        text: None: visual prompts alone. Coupled prompts contain theirs.

    Raises:
        ValueError: neither is given.
    """

    def __init__(self, visual: VisualPrompts | CoupledPrompts | None, text: TextPrompts | None = None) -> None:
        super().__init__()
        if visual is None and text is None:
            raise ValueError("no prompts for either tower")
        self.visual = visual
        self.own_text = None if isinstance(visual, CoupledPrompts) else text

    @property
    def text(self) -> TextPrompts | None:
        """The text prompts."""
        return self.visual.text if isinstance(self.visual, CoupledPrompts) else self.own_text

    @property
    def num_rows(self) -> int:
        """v: rows that the image tower carries besides its own."""
        return 0 if self.visual is None else self.visual.num_tokens

    @property
    def start(self) -> int | None:
        """First block of the image tower with these rows."""
        return None if self.visual is None else self.visual.start


def _size(states: Tensor) -> Tensor:
    """Root mean square of each row, (..., D) to (..., 1)."""
    return states.square().mean(1).sqrt()


def mean_patch_states(tower: _Blocks, states: Tensor, *, num_prefix: int, start: int, depth: int) -> Tensor:
    """Mean state of the patches at the input of blocks `start` to `start + depth - 1`: initial values for prompts.

    Args:
        tower: the tower.
        states: (B, P+K, D) entering block `start`, dropped patches left out.
        num_prefix: P.
        start: first block.
        depth: number of blocks; those beyond the tower's last are left out.

    Returns:
        (min(depth, L - start), D) float32.
    """
    means = [states.new_empty(0, states.shape[2], dtype=torch.float32)]
    with torch.no_grad():
        for index in range(start, min(start + depth, tower.depth)):
            means.append(states[:, num_prefix:].float().mean((0, 1))[None])
            states = tower.block(index, states)
    return torch.cat(means)
