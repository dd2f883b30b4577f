"""Batches that several processes share: what each asks the others, so that their mean loss is that of one process.

Ours; the sums are over the global batch of gradient averaging (Li et al., arXiv 2006.15704).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


def _own(rows: Tensor) -> Tensor:
    return rows


@dataclass(frozen=True)
class Group:
    """The processes of a training step; as it is, one alone.

    Attributes:
        size: how many.
        total: elementwise sum over them, without gradient.
        largest: the largest of a whole number over them.
    """

    size: int = 1
    total: Callable[[Tensor], Tensor] = _own
    largest: Callable[[int], int] = int

    def weight(self, count: int, like: Tensor) -> Tensor:
        """Factor of a mean over this process's `count` rows, so that the mean over processes is that over all rows.

        Args:
            count: may differ between the processes.
            like: of the device of the result.

        Returns:
            () float32: 1 for one process, 0 where no process has any.
        """
        own = torch.tensor(float(count), device=like.device)
        return self.size * own / self.total(own).clamp(min=1)


ALONE = Group()


def use_group(network: nn.Module, group: Group) -> None:
    """Let every part of a network that depends on the whole batch ask these processes."""
    for part in network.modules():
        if isinstance(getattr(part, "group", None), Group):
            part.group = group  # type: ignore[assignment]


def use_generators(network: nn.Module, generators: list[torch.Generator] | None) -> None:
    """Let every part of a network that draws do so from a generator for each image; None: the device's stream."""
    for part in network.modules():
        drawing: Any
        for drawing in (part, getattr(part, "fg_bg_sampler", None)):
            if hasattr(drawing, "generators"):
                drawing.generators = generators
