"""Teachers that follow a student by an exponential moving average, and quantities that follow a cosine in t.

Momentum encoder: He et al., arXiv 1911.05722, eq. 2; its rate along half a cosine: Grill et al., arXiv 2006.07733.
"""

import math

import torch
from torch import nn


def half_cosine(t: float, start: float, end: float) -> float:
    """From `start` at t = 0 to `end` at t = 1 along half a cosine."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, t))))


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """teacher <- momentum * teacher + (1 - momentum) * student, over the parameters; buffers stay each one's own."""
    torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 1 - momentum)


def freeze(module: nn.Module) -> nn.Module:
    """The module, with its gradients switched off."""
    return module.requires_grad_(False)
