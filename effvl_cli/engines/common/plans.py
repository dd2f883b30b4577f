"""From the shared training options to a plan of the loop and its optimizers."""

import math
from collections.abc import Callable
from typing import Any

from torch import nn

from effvl_cli.config.options import TrainOptions
from effvl_cli.core import optim
from effvl_cli.core.loop import Plan


def plan_of(
    config: TrainOptions, steps: int, *, t: Callable[[int], float] | None = None, precision: str, **more: Any
) -> Plan:
    """The plan that the options ask for.

    Args:
        config: options.
        steps: length.
        t: share of the training done before a step; None: the share of the steps.
        precision: autocast type.
        more: further fields of the plan, which take precedence.
    """
    share = t or (lambda step: step / steps)
    curve = optim.RateCurve(
        config.lr_decay, config.warmup, config.lr_floor, config.lr_power, config.lr_milestones, config.lr_gamma
    )
    fields = {
        "rate": lambda step: curve(share(step)),
        "decay": _decay(config, share),
        "accumulate": config.accumulate,
        "clip_grad": config.clip_grad,
        "clip_mode": config.clip_mode,
        "eval_every": config.eval_every,
        "save_every": config.save_every,
        "log_every": config.log_every,
    }
    return Plan(steps=steps, precision=precision, **(fields | more))


def optimizers_of(config: TrainOptions, module: nn.Module) -> optim.Optimizers:
    """The optimizer that the options ask for, over the trainable parameters."""
    return optim.build(
        module,
        config.optimizer,
        lr=config.lr,
        weight_decay=config.weight_decay,
        momentum=config.momentum,
        decays=optim.everything if config.decay_all else optim.matrices,
    )


def _decay(config: TrainOptions, t: Callable[[int], float]) -> Callable[[int], float] | None:
    """Weight decay at a step as a factor of --weight-decay, along half a cosine; None where it is constant."""
    end, start = config.weight_decay_end, config.weight_decay
    if end is None or end == start or not start:
        return None
    last = end / start
    return lambda step: last + (1 - last) * 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, t(step)))))
