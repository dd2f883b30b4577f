"""Optimizers with their parameter groups, and the learning-rate schedule."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

Decays = Callable[[str, Tensor], float]
"""Share of the weight decay that falls on a parameter, by its name and itself."""

_BLOCK = re.compile(r"(^|\.)(resblocks|blocks|layers)\.\d+\.")


class Optimizers:
    """Several optimizers that step as one."""

    def __init__(self, parts: Iterable[torch.optim.Optimizer]) -> None:
        self.parts = list(parts)
        for group in self.groups():
            group["peak_lr"], group["peak_decay"] = group["lr"], group["weight_decay"]

    def groups(self) -> list[dict[str, Any]]:
        """All parameter groups."""
        return [group for part in self.parts for group in part.param_groups]

    def set_rates(self, factors: Sequence[float]) -> None:
        """Learning rate of every group = its peak * the factor of its optimizer; one factor is for all."""
        each = list(factors) * len(self.parts) if len(factors) == 1 else factors
        for part, factor in zip(self.parts, each, strict=True):
            for group in part.param_groups:
                group["lr"] = group["peak_lr"] * factor

    def set_decay(self, factor: float) -> None:
        """Weight decay of every group = the one it was built with * factor."""
        for group in self.groups():
            group["weight_decay"] = group["peak_decay"] * factor

    def step(self) -> None:
        """One update."""
        for part in self.parts:
            part.step()

    def zero_grad(self) -> None:
        """Drop the gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """Plain containers and tensors."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict()`."""
        for part, saved in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(saved)


def matrices(name: str, parameter: Tensor) -> float:
    """Weight decay on matrices and kernels; none on biases, gains and other vectors."""
    return float(parameter.ndim >= 2)


def everything(name: str, parameter: Tensor) -> float:
    """Weight decay on all parameters."""
    return 1.0


def build(
    module: nn.Module,
    name: Literal["adam", "adamw", "sgd", "muon"],
    *,
    lr: float,
    weight_decay: float,
    momentum: float = 0.9,
    nesterov: bool = False,
    decays: Decays = matrices,
) -> Optimizers:
    """Optimizer of a module's trainable parameters.

    Args:
        module: owner of the parameters.
        name: `muon` orthogonalises the updates of the matrices inside transformer blocks (torch.optim.Muon, rate
            matched to AdamW's) and leaves the rest to AdamW at the same rate.
        lr: peak learning rate.
        weight_decay: strength; with adam an L2 penalty on everything, as in torch.optim.Adam.
        momentum: for sgd and muon.
        nesterov: for sgd.
        decays: how much of the weight decay falls on each parameter; parameters with equal shares form one group.
    """
    named = [(key, value) for key, value in module.named_parameters() if value.requires_grad]
    blocks = [p for key, p in named if name == "muon" and p.ndim == 2 and _BLOCK.search(key)]
    taken = {id(p) for p in blocks}
    named = [(key, p) for key, p in named if id(p) not in taken]
    rest = [p for _, p in named]
    groups = _decay_groups(named, weight_decay, decays)
    if name == "sgd":
        return Optimizers([torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov)])
    if name == "adam":
        return Optimizers([torch.optim.Adam(rest, lr=lr, weight_decay=weight_decay)])
    parts: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=lr)] if rest else []
    if blocks:
        parts.append(
            torch.optim.Muon(
                blocks, lr=lr, weight_decay=weight_decay, momentum=momentum, adjust_lr_fn="match_rms_adamw"
            )
        )
    return Optimizers(parts)


def _decay_groups(named: Sequence[tuple[str, Tensor]], weight_decay: float, decays: Decays) -> list[dict[str, Any]]:
    """One group for each share of the weight decay, the largest first."""
    shares = [decays(name, parameter) for name, parameter in named]
    return [
        {
            "params": [parameter for (_, parameter), own in zip(named, shares, strict=True) if own == share],
            "weight_decay": weight_decay * share,
        }
        for share in sorted(set(shares), reverse=True)
    ]


def warm_up(done: float, length: float) -> float | None:
    """Share of the peak rate while it rises in a straight line over `length`; None after that.

    A caller that counts steps counts the current one as done, so that the first one does not get rate 0; a caller that
    measures the share of the training starts at 0.
    """
    return done / length if length and done <= length else None


def cosine(step: int, steps: int, *, warmup: int = 0, floor: float = 0.0) -> float:
    """Share of the peak rate at `step`: linear rise over `warmup` steps, then half a cosine down to `floor`."""
    rising = warm_up(step + 1, warmup)
    if rising is not None:
        return rising
    progress = (step - warmup) / max(1, steps - warmup)
    return floor + (1 - floor) * half_cosine(progress)


def cosine_after(step: int, steps: int, first: int, rate: float) -> float:
    """`cosine` after `first` steps at a constant share of the peak rate; without these where there are no others."""
    if steps <= first:
        return cosine(step, steps)
    return rate if step < first else cosine(step - first, steps - first)


def half_cosine(u: float) -> float:
    """From 1 at u = 0 to 0 at u = 1 and beyond."""
    return 0.5 * (1 + math.cos(math.pi * min(1.0, u)))


Decay = Literal["cosine", "poly", "poly-concave", "step"]


@dataclass(frozen=True)
class RateCurve:
    """Share of the peak rate at t, the share of the training that is done.

    Attributes:
        decay: over u, what follows the warm-up: half a cosine, (1-u)^power, 1-u^power, or a factor `gamma` at each
            milestone of t.
        warmup: share over which the rate rises from 0.
        floor: final share of cosine and poly.
        power: exponent of poly.
        milestones: shares of the training, for step.
        gamma: factor at each milestone, for step.
    """

    decay: Decay = "cosine"
    warmup: float = 0.0
    floor: float = 0.0
    power: float = 2.0
    milestones: tuple[float, ...] = ()
    gamma: float = 0.1

    def __call__(self, t: float) -> float:
        """The share at t."""
        rising = warm_up(t, self.warmup)
        if rising is not None:
            return rising
        if self.decay == "step":
            return self.gamma ** sum(t >= milestone for milestone in self.milestones)
        u = min(1.0, (t - self.warmup) / (1 - self.warmup))
        shapes = {
            "cosine": half_cosine(u),
            "poly": (1 - u) ** self.power,
            "poly-concave": 1 - u**self.power,
        }
        found: float = self.floor + (1 - self.floor) * shapes[self.decay]
        return found
