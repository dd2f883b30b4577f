"""Learnable tokens in place of the words before a class name (Zhou et al., arXiv 2109.01134; in several blocks:
Khattak et al., arXiv 2210.03117).

Shapes: C texts, T their tokens, t text prompt tokens, Dt width of the text tower, E embedding width.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class TextPrompts(nn.Module):
    """t tokens in place of the first words, replaced by fresh ones at the input of each of the first blocks.

    They are states at the input of a block; those of block 0 have the positional embedding in them.

    Args:
        init: (depth, t, Dt), see `context_states`, with which nothing changes before the first step.
        first: position of the first word.
        template: the words around the class name.
    """

    def __init__(self, init: Tensor, *, first: int, template: str) -> None:
        super().__init__()
        self.tokens = nn.Parameter(init.float().clone())
        self.depth, self.num_tokens, self.width = init.shape
        self.first = first
        self.template = template

    def encode(self, encode: Callable[[Tensor], Tensor], blocks: Sequence[nn.Module], texts: Tensor) -> Tensor:
        """Embed texts with the prompts in them.

        Args:
            encode: the text tower, (C, T) int64 to (C, E).
            blocks: its blocks, in order; each gets its states, (C, T, Dt), as first argument.
            texts: (C, T), made from `template`.

        Returns:
            (C, E).
        """
        with _before_blocks(blocks[: self.depth], self.insert):
            return encode(texts)

    def insert(self, index: int, states: Tensor) -> Tensor:
        """The input of block `index`, (C, T, Dt), with its prompts in it."""
        rows = self.tokens[index].to(states.dtype).expand(len(states), -1, -1)
        return torch.cat([states[:, : self.first], rows, states[:, self.first + self.num_tokens :]], 1)


def context_states(
    encode: Callable[[Tensor], Tensor], blocks: Sequence[nn.Module], texts: Tensor, *, first: int, num_tokens: int
) -> Tensor:
    """States of the words before the class name at the input of every block: initial values of text prompts.

    Under a causal mask all texts have the same ones, so that such prompts change nothing; otherwise it is their mean.

    Args:
        encode: as in `TextPrompts.encode`.
        blocks: the blocks that get prompts.
        texts: (C, T).
        first: position of the first word.
        num_tokens: t.

    Returns:
        (len(blocks), t, Dt) float32.
    """
    seen: list[Tensor] = []

    def note(index: int, states: Tensor) -> Tensor:
        seen.append(states[:, first : first + num_tokens].float().mean(0))
        return states

    with torch.no_grad(), _before_blocks(blocks, note):
        encode(texts)
    return torch.stack(seen)


@contextmanager
def _before_blocks(blocks: Sequence[nn.Module], change: Callable[[int, Tensor], Tensor]) -> Iterator[None]:
    """Let `change(index, states)` rewrite what enters each block, (B, n, D), while the tower does all the rest."""

    def hook(index: int) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
        return lambda module, inputs: (change(index, inputs[0]), *inputs[1:])

    handles = [block.register_forward_pre_hook(hook(index)) for index, block in enumerate(blocks)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
