"""Prompts as token ids, put together from their pieces: `[start] v_1 ... v_M NAME . [end]` (Zhou et al., arXiv
2109.01134, sec. 3.2).

A name's tokens are those of the name alone: byte pair encoding joins runs of punctuation, so that the joined text of a
name that ends in ")" would have fewer tokens than its pieces, and the places would shift.

Shapes: K classes, M context tokens, T tokens of a prompt.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

Position = Literal["end", "middle", "front"]
"""Place of the class name: after the context tokens, between their halves (the shorter first), or before them."""


@dataclass(frozen=True)
class Pieces:
    """Token ids of class names and of what stands around them.

    Attributes:
        names: of the classes.
        ids: tokens of each name.
        start: what every text begins with.
        period: tokens of the "." after a name.
        end: what every text ends with.
        pad: fills a text up to the context.
        context_length: most tokens of a text.
    """

    names: tuple[str, ...]
    ids: tuple[tuple[int, ...], ...]
    start: tuple[int, ...]
    period: tuple[int, ...]
    end: tuple[int, ...]
    pad: int
    context_length: int

    @property
    def special(self) -> tuple[int, ...]:
        """Start, period, end, and one pad."""
        return (*self.start, *self.period, *self.end, self.pad)

    def room(self, index: int) -> int:
        """Context tokens that fit beside the name of a class; below zero where the name alone is too long."""
        return self.context_length - len(self.ids[index]) - len(self.start) - len(self.period) - len(self.end)

    def too_long(self, num_context: int) -> list[str]:
        """Names that do not fit beside so many context tokens."""
        return [name for index, name in enumerate(self.names) if self.room(index) < num_context]

    @property
    def max_context(self) -> int:
        """Context tokens that fit beside every name."""
        return min(map(self.room, range(len(self.names))))


@dataclass(frozen=True)
class Layout:
    """Where each token of each prompt comes from.

    The sources are rows of one table: context tokens ((M) of all classes, or (K * M) of each), tokens of the names one
    after the other, and `Pieces.special`.

    Attributes:
        index: (K, T) int64, rows of the table.
        read: (K,) int64, position that the embedding is read from.
        shared: leading tokens that all prompts have in common, at most up to the first that is read.
    """

    index: Tensor
    read: Tensor
    shared: int


def layout(
    pieces: Pieces,
    num_context: int,
    position: Position = "end",
    *,
    per_class: bool = False,
    truncate: bool = True,
    reads_end: bool = True,
) -> Layout:
    """The prompts of all classes.

    Args:
        pieces: K names.
        num_context: M.
        position: of the name.
        per_class: whether each class has context tokens of its own.
        truncate: leave out what follows the longest prompt, else T is the whole context.
        reads_end: whether the last token of `Pieces.end` is read, else the last position.

    Raises:
        ValueError: unknown position, or a name that does not fit.
    """
    if position not in get_args(Position):
        raise ValueError(f"unknown position {position!r} of a class name")
    if pieces.too_long(num_context):
        raise ValueError(f"{num_context} context tokens leave no room for {pieces.too_long(num_context)}")
    names, special = _offsets(pieces, num_context * (len(pieces.names) if per_class else 1))
    start, period, end, pad = special
    before = {"end": num_context, "middle": num_context // 2, "front": 0}[position]
    rows = []
    for index, name in enumerate(names):
        own = index * num_context if per_class else 0
        context = range(own, own + num_context)
        rows.append([*start, *context[:before], *name, *context[before:], *period, *end])
    ends = torch.tensor([len(row) - 1 for row in rows])
    length = int(ends.max()) + 1 if truncate else pieces.context_length
    table = torch.tensor([row + [pad] * (length - len(row)) for row in rows])
    read = ends if reads_end else torch.full_like(ends, length - 1)
    return Layout(table, read, _shared(table, int(read.min())))


def _offsets(pieces: Pieces, num_context: int) -> tuple[list[range], tuple[range, range, range, int]]:
    """Rows of the table of each name, and of start, period, end and pad."""
    lengths = [*map(len, pieces.ids), len(pieces.start), len(pieces.period), len(pieces.end)]
    ranges, row = [], num_context
    for length in lengths:
        ranges.append(range(row, row + length))
        row += length
    return ranges[:-3], (ranges[-3], ranges[-2], ranges[-1], row)


def _shared(index: Tensor, most: int) -> int:
    """Leading columns that are the same in all rows, at most so many."""
    same = (index == index[:1]).all(0)[:most]
    return int(same.long().cumprod(0).sum())


def flat_ids(pieces: Pieces) -> list[int]:
    """Tokens of all names, one after the other."""
    return [token for ids in pieces.ids for token in ids]
