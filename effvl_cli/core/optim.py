"""Optimizers with their parameter groups, and the learning-rate schedule."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

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

    def set_rate(self, factor: float) -> None:
        """Learning rate of every group = its peak * factor."""
        for group in self.groups():
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
        """Forget the gradients."""
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """Plain containers and tensors."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict()`."""
        for part, saved in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(saved)


def build(
    module: nn.Module,
    name: Literal["adam", "adamw", "sgd", "muon"],
    *,
    lr: float,
    weight_decay: float,
    momentum: float = 0.9,
    decay_all: bool = False,
) -> Optimizers:
    """Optimizer of a module's trainable parameters.

    Weight decay falls on matrices only, unless `decay_all`. `muon` orthogonalises the updates of the matrices inside
    transformer blocks (torch.optim.Muon, rate matched to AdamW's) and leaves the rest to AdamW at the same rate.
    """
    named = [(key, value) for key, value in module.named_parameters() if value.requires_grad]
    blocks = [p for key, p in named if name == "muon" and p.ndim == 2 and _BLOCK.search(key)]
    taken = {id(p) for p in blocks}
    rest = [p for _, p in named if id(p) not in taken]
    groups = [{"params": rest, "weight_decay": weight_decay}] if decay_all else _decay_groups(rest, weight_decay)
    if name == "sgd":
        return Optimizers([torch.optim.SGD(groups, lr=lr, momentum=momentum)])
    if name == "adam":  # L2 penalty on everything, as torch.optim.Adam has it
        return Optimizers([torch.optim.Adam(rest, lr=lr, weight_decay=weight_decay)])
    parts: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=lr)] if rest else []
    if blocks:
        parts.append(
            torch.optim.Muon(
                blocks, lr=lr, weight_decay=weight_decay, momentum=momentum, adjust_lr_fn="match_rms_adamw"
            )
        )
    return Optimizers(parts)


def _decay_groups(parameters: Sequence[Tensor], weight_decay: float) -> list[dict[str, Any]]:
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def cosine(step: int, steps: int, *, warmup: int = 0, floor: float = 0.0) -> float:
    """Share of the peak rate at `step`: linear rise over `warmup` steps, then half a cosine down to `floor`."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


Decay = Literal["cosine", "poly", "poly-concave", "step"]


@dataclass(frozen=True)
class RateCurve:
    """Share of the peak rate at t, the share of the training that is done.

    Attributes:
        decay: over u, what follows the warm-up: half a cosine, (1-u)^power, 1-u^power, or a factor `gamma` at each
            milestone of t.
        warmup: share over which the rate rises from 0.
        floor: where cosine and poly end.
        power: of poly.
        milestones: of step.
        gamma: of step.
    """

    decay: Decay = "cosine"
    warmup: float = 0.0
    floor: float = 0.0
    power: float = 2.0
    milestones: tuple[float, ...] = ()
    gamma: float = 0.1

    def __call__(self, t: float) -> float:
        """The share at t."""
        if t < self.warmup:
            return t / self.warmup
        if self.decay == "step":
            return self.gamma ** sum(t >= milestone for milestone in self.milestones)
        u = min(1.0, (t - self.warmup) / (1 - self.warmup))
        shapes = {
            "cosine": 0.5 * (1 + math.cos(math.pi * u)),
            "poly": (1 - u) ** self.power,
            "poly-concave": 1 - u**self.power,
        }
        return self.floor + (1 - self.floor) * shapes[self.decay]
