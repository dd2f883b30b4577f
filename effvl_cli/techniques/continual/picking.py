"""Which old weights a task uses: real-valued scores, a hard threshold, and a gradient that passes it.

The mask is that of Piggyback (Mallya et al., arXiv 1801.06519), which arXiv 1910.06562, section 3, trains per task.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class PickRule:
    """When an old weight is used.

    Attributes:
        init: score of every weight at the start of a task; all are picked then.
        threshold: an old weight is picked where its score is strictly above it.
    """

    init: float = 0.01
    threshold: float = 0.005

    def __post_init__(self) -> None:
        """Raises:
        ValueError: nothing would be picked at the start.
        """
        if self.threshold >= self.init:
            raise ValueError(f"the threshold {self.threshold} is not below the initial score {self.init}")


class _Composed(torch.autograd.Function):
    """Own values, and old ones whose score is above the threshold; zero elsewhere."""

    @staticmethod
    def forward(ctx: Any, delta: Tensor, score: Tensor, base: Tensor, outside: Tensor, threshold: float) -> Tensor:
        ctx.save_for_backward(base, outside)
        kept = torch.where(score > threshold, base, 0.0)
        return torch.where(outside, kept, delta)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        base, outside = ctx.saved_tensors
        (gradient,) = gradients
        of_delta = torch.where(outside, 0.0, gradient) if ctx.needs_input_grad[0] else None
        # Off the old weights base is 0, and 0 * NaN would not be.
        of_score = torch.where(base != 0, gradient * base, 0.0) if ctx.needs_input_grad[1] else None
        return of_delta, of_score, None, None, None


def composed(delta: Tensor, score: Tensor, base: Tensor, outside: Tensor, threshold: float) -> Tensor:
    """The effective weight of a task that picks.

    The gradient passes the threshold unchanged (straight through), so that of a score is `dL/dW * base`; it is exactly
    zero off the old weights, and that of `delta` off the own ones, whatever arrives from above, NaN included.

    Args:
        delta: values of the task's own weights, any shape; zero elsewhere.
        score: of the same shape.
        base: values of the old weights; zero elsewhere.
        outside: True where the weight is not the task's own.
        threshold: of the scores.
    """
    found: Tensor = _Composed.apply(delta, score, base, outside, threshold)
    return found
