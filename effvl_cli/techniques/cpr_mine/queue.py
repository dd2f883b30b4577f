"""Queues of embeddings, one for each view, whose rows belong to the same clips.

He et al., arXiv 1911.05722 (the queue); Han et al., arXiv 2010.09709 (one for each view, written together).
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EMPTY = -1


class Queues(nn.Module):
    """N slots, each with the embedding of one clip in every view; buffers, so a checkpoint holds them.

    Args:
        dims: width D of the embeddings of each view.
        size: N.
        generator: draws what the slots begin with, random unit vectors.
    """

    clips: Tensor
    groups: Tensor
    labels: Tensor
    place: Tensor
    written: Tensor

    def __init__(self, dims: Mapping[str, int], size: int, generator: torch.Generator) -> None:
        super().__init__()
        self.size, self.views = size, tuple(dims)
        for number, dim in enumerate(dims.values()):
            rows = F.normalize(torch.randn(size, dim, generator=generator), dim=1)
            self.register_buffer(f"bank_{number}", rows)
        for name in ("clips", "groups", "labels"):
            self.register_buffer(name, torch.full((size,), EMPTY, dtype=torch.int64))
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))
        self.register_buffer("written", torch.zeros((), dtype=torch.int64))

    @property
    def banks(self) -> dict[str, Tensor]:
        """(N, D) of each view."""
        return {view: self.get_buffer(f"bank_{number}") for number, view in enumerate(self.views)}

    @property
    def full(self) -> bool:
        """Whether every slot has been written."""
        return int(self.written) >= self.size

    @property
    def fill(self) -> Tensor:
        """Share of the slots that have been written, a scalar."""
        return self.written.clamp(max=self.size) / self.size

    @torch.no_grad()
    def enqueue(self, rows: Mapping[str, Tensor], clips: Tensor, groups: Tensor, labels: Tensor) -> None:
        """Write B clips over the oldest slots, from slot N - 1 on to slot 0; of more than N clips the last N stay.

        Args:
            rows: (B, D) of each view.
            clips: (B,) numbers of the clips.
            groups: (B,) numbers of the videos that they were cut from.
            labels: (B,) classes, -1 where unknown.
        """
        count, last = len(clips), slice(max(0, len(clips) - self.size), None)
        slots = (self.place + torch.arange(count, device=self.place.device))[last] % self.size
        for view, bank in self.banks.items():
            bank[slots] = rows[view][last].to(bank.dtype)
        for own, given in ((self.clips, clips), (self.groups, groups), (self.labels, labels)):
            own[slots] = given[last]
        self.place.add_(count).remainder_(self.size)
        self.written.add_(count)
