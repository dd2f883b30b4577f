"""Results for every image without each candidate: the table that direct scoring fills (arXiv 2312.16904).

N images, n candidates. Row 0 of every table is the network itself, row 1 + k the network without the k-th candidate.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Outcomes:
    """Results for every image.

    Attributes:
        order: (N,) position in the split of each column.
        correct: (1 + n, N) uint8; columns from a row's `used` on are 0.
        loss: (1 + n, N) float64.
        nan: (1 + n,) uint8.
        used: (1 + n,) int64 columns that were scored.
        sharing: how.
        reason: why not otherwise.
        seconds_before: that earlier attempts spent.
    """

    order: Tensor
    correct: Tensor
    loss: Tensor
    nan: Tensor
    used: Tensor
    sharing: str = ""
    reason: str = ""
    seconds_before: float = 0.0

    @classmethod
    def empty(cls, order: Tensor, rows: int) -> "Outcomes":
        """A table without scores."""
        size = (rows, len(order))
        return cls(
            order,
            torch.zeros(size, dtype=torch.uint8),
            torch.zeros(size, dtype=torch.float64),
            torch.zeros(rows, dtype=torch.uint8),
            torch.zeros(rows, dtype=torch.int64),
        )

    def tensors(self) -> dict[str, Tensor]:
        """For a file."""
        return {name: getattr(self, name) for name in ("order", "correct", "loss", "nan", "used")}
