"""The guard against networks that do not know their classes: their figures, and choices by them, mean nothing."""

from effvl_cli.core.errors import ModelError
from effvl_cli.core.run import Run

HALF_AGAIN, POINTS = 0.5, 0.05


def least_top1(num_classes: int) -> float:
    """Top-1 that is hardly better than chance: 1.5 times chance, but at most five points above it."""
    chance = 1 / num_classes
    return chance + min(HALF_AGAIN * chance, POINTS)


def refuse_chance(run: Run, name: str, top1: float, num_classes: int, *, images: str, force: bool) -> None:
    """Refuse a network whose accuracy on labelled images shows that weights and classes do not belong together.

    Args:
        run: gets a warning instead where the guard is off.
        name: of the network.
        top1: its accuracy.
        num_classes: how many it chooses from; a single one needs no guard.
        images: which images, for the message.
        force: continue with a warning.

    Raises:
        ModelError: the accuracy is hardly better than chance.
    """
    if num_classes < 2 or top1 > least_top1(num_classes):
        return
    text = f"{name} has {top1:.1%} top-1 on {images}, and chance is {1 / num_classes:.1%}"
    if not force:
        raise ModelError(text, "Check that weights and class names belong together, or give --force")
    run.warn(text)
