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


_BITS = {torch.float32: torch.int32, torch.float64: torch.int64}


def bits_of(values: Tensor) -> Tensor:
    """The same memory as whole numbers of the same size, on which masks cost a tenth of what they cost on floats."""
    return values.view(_BITS[values.dtype])


def mask_of(where: Tensor, values: Tensor) -> Tensor:
    """All bits set where `where` is True, none elsewhere: whole numbers for `bits_of(values)`."""
    return where.to(_BITS[values.dtype]).neg_()


class _Composed(torch.autograd.Function):
    """Own values beside old ones, as bits: nothing is rounded, and what is masked is exactly zero, whatever it was."""

    @staticmethod
    def forward(ctx: Any, delta: Tensor, fixed: Tensor, own: Tensor) -> Tensor:
        ctx.save_for_backward(own)
        return (bits_of(delta) & own).bitwise_or_(bits_of(fixed)).view(delta.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (own,) = ctx.saved_tensors
        return (bits_of(gradients[0]) & own).view(gradients[0].dtype), None, None


class _Picked(torch.autograd.Function):
    """The same with the old values whose score is above the threshold; the gradient passes the threshold unchanged."""

    @staticmethod
    def forward(
        ctx: Any, delta: Tensor, score: Tensor, base: Tensor, own: Tensor, old: Tensor, threshold: float
    ) -> Tensor:
        ctx.save_for_backward(base, own, old)
        sign = bits_of(threshold - score)
        picked = sign.bitwise_right_shift_(8 * sign.element_size() - 1)  # all bits where the difference is negative
        return picked.bitwise_and_(bits_of(base)).bitwise_or_(bits_of(delta) & own).view(delta.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        base, own, old = ctx.saved_tensors
        (gradient,) = gradients
        of_delta = (bits_of(gradient) & own).view(gradient.dtype) if ctx.needs_input_grad[0] else None
        of_score = None
        if ctx.needs_input_grad[1]:
            of_score = gradient * base
            bits_of(of_score).bitwise_and_(old)
        return of_delta, of_score, None, None, None, None


def composed(delta: Tensor, fixed: Tensor, own: Tensor) -> Tensor:
    """The effective weight of a task whose picks stand: `where(own, delta, fixed)`.

    Args:
        delta: values of the task's own weights, any shape.
        fixed: old values that it uses; zero elsewhere.
        own: `mask_of` the own weights. The gradient of `delta` is exactly zero elsewhere, NaN included.
    """
    found: Tensor = _Composed.apply(delta, fixed, own)
    return found


def picked(delta: Tensor, score: Tensor, base: Tensor, own: Tensor, old: Tensor, threshold: float) -> Tensor:
    """The effective weight of a task that picks: `where(own, delta, where(score > threshold, base, 0))`.

    The gradient passes the threshold unchanged (straight through), so that of a score is `dL/dW * base`; it is exactly
    zero off the old weights, and that of `delta` off the own ones, whatever arrives from above, NaN included.

    Args:
        delta: values of the task's own weights, any shape.
        score: of the same shape.
        base: values of the old weights; zero elsewhere.
        own: `mask_of` the own weights.
        old: `mask_of` the old ones.
        threshold: of the scores.
    """
    found: Tensor = _Picked.apply(delta, score, base, own, old, threshold)
    return found
