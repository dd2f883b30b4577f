"""Learning rate and weight decay over a training, from the options."""

from collections.abc import Callable

from effvl_cli.config.pretrain import TrainOptions
from effvl_cli.core.optim import RateCurve
from effvl_cli.techniques.pretrain.momentum import half_cosine


def rate_curve(config: TrainOptions) -> RateCurve:
    """Share of the peak rate, as a function of t."""
    return RateCurve(
        config.lr_decay, config.warmup, config.lr_floor, config.lr_power, config.lr_milestones, config.lr_gamma
    )


def decay_curve(config: TrainOptions, t: Callable[[int], float]) -> Callable[[int], float] | None:
    """Weight decay at a step over --weight-decay, or None where it is constant."""
    end, start = config.weight_decay_end, config.weight_decay
    if end is None or end == start or not start:
        return None
    return lambda step: half_cosine(t(step), 1.0, end / start)
