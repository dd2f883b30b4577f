"""Detects collapse of all embeddings to one; ours, after the measure of SimSiam (arXiv 2011.10566)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

COLLAPSED = 0.1  # share of the spread of embeddings that fill their sphere
COLLAPSED_FOR = 0.05  # share of the budget


def embedding_std(embeddings: Tensor) -> Tensor:
    """Mean standard deviation over dimensions of unit embeddings (B, E), over 1 / sqrt(E): near 1 unless collapsed."""
    unit = F.normalize(embeddings.float(), dim=1)
    return unit.std(0).mean() * unit.shape[1] ** 0.5 if len(unit) > 1 else torch.ones(())


@dataclass
class CollapseWatch:
    """Reports embeddings that have been nearly equal for a twentieth of the budget, and again after each further one.

    Attributes:
        low_since: share of the budget since which they are, or since the last report; -1: they are not.
    """

    low_since: float = -1.0

    def since(self, t: float, spread: float) -> float | None:
        """When they became nearly equal, if a report is due.

        Args:
            t: share of the budget that is spent.
            spread: `embedding_std` of a step.
        """
        if spread >= COLLAPSED:
            self.low_since = -1.0
        elif self.low_since < 0:
            self.low_since = t
        elif t - self.low_since >= COLLAPSED_FOR:
            began, self.low_since = self.low_since, t
            return began
        return None
