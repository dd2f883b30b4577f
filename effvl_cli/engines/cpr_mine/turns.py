"""One training of one view's encoder: what it begins with, what it mines with, how long it is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from effvl_cli.engines.cpr_mine.cascades import Stages
from effvl_cli.engines.cpr_mine.encoders import Encoder


@dataclass(frozen=True)
class Turn:
    """One training of one view.

    Attributes:
        phase: its name, unique in the run.
        start: the encoder that the trained one and its moving average begin as; it stays as it is.
        partners: the frozen encoders, by view.
        stages_of: cascade of an epoch; empty: no mining.
        epochs: how many, where --steps does not say.
        lr: peak learning rate.
        listed: (M, k) fixed positives of each clip, or None.
    """

    phase: str
    start: Encoder
    partners: Mapping[str, Encoder]
    stages_of: Callable[[int], Stages]
    epochs: int | None
    lr: float
    listed: Tensor | None = None


def no_stages(epoch: int) -> Stages:
    """Nothing is mined."""
    return ()


def steps_of(epochs: int | None, steps: int | None, per_epoch: int) -> int:
    """Optimizer steps of a training whose length is given one way or the other."""
    if epochs is not None:
        return epochs * per_epoch
    assert steps is not None
    return steps


def epochs_of(epochs: int | None, steps: int | None, per_epoch: int) -> int:
    """Epochs, also begun ones."""
    return -(-steps_of(epochs, steps, per_epoch) // per_epoch)
