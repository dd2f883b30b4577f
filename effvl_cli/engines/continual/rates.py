"""Courses of the learning rate of a phase, over the share of it that is done or over its validation figures."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from effvl_cli.config.continual_learn import TaskOptions
from effvl_cli.core.optim import RateCurve

Curve = Callable[[float], float]
"""Share of the peak rate at a share of the phase."""
FALLS = 3  # that end a training under --schedule plateau


def constant(t: float) -> float:
    """The peak rate throughout."""
    return 1.0


def learning(config: TaskOptions) -> Curve:
    """Of the weights while a task is learned; constant under --schedule plateau, whose falls come on top."""
    if config.schedule == "plateau":
        return RateCurve("step", warmup=config.warmup)
    if config.schedule == "cosine":
        return RateCurve("cosine", warmup=config.warmup)
    return RateCurve("step", warmup=config.warmup, milestones=config.milestones, gamma=config.gamma)


def pruning(config: TaskOptions) -> Curve:
    """Of the weights in a stage of the compaction."""
    return RateCurve("cosine") if config.prune_schedule == "cosine" else constant


def picking(config: TaskOptions, *, has_own: bool) -> Curve:
    """Of the scores while a task is learned: one fall, then 0 where the task has weights of its own."""
    return partial(
        _picking,
        decay_at=config.pick_decay_at,
        decay=config.pick_decay,
        stop_at=config.pick_stop_at if has_own else 1.0,
    )


def _picking(t: float, *, decay_at: float, decay: float, stop_at: float) -> float:
    if t >= stop_at:
        return 0.0
    return decay if t >= decay_at else 1.0


def falls(history: Sequence[Mapping[str, float]], figure: str, count: int) -> int:
    """How often the rate has fallen: after every `count` evaluations in a row without a better figure.

    Args:
        history: figures of all evaluations so far.
        figure: higher is better.
        count: at least 1.
    """
    best, waited, fallen = -float("inf"), 0, 0
    for figures in history:
        if figures[figure] > best:
            best, waited = figures[figure], 0
            continue
        waited += 1
        if waited == count:
            fallen, waited = fallen + 1, 0
    return fallen
