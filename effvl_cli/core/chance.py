"""A network that does not know its classes: figures of it, and choices by them, mean nothing."""

from effvl_cli.core.errors import ModelError
from effvl_cli.core.run import Run

HALF_AGAIN, POINTS = 0.5, 0.05


def least_top1(num_classes: int) -> float:
    """Top-1 that is hardly better than chance: half again of it, and at most five points more."""
    chance = 1 / num_classes
    return chance + min(HALF_AGAIN * chance, POINTS)


def refuse_chance(run: Run, name: str, top1: float, num_classes: int, *, images: str, force: bool) -> None:
    """Refuse a network whose accuracy on labelled images says that weights and classes do not belong together.

    Args:
        run: warned where the guard is off.
        name: of the network.
        top1: its accuracy.
        num_classes: that it chooses from; with a single one there is nothing to know.
        images: which ones, for the message.
        force: go on with a warning.

    Raises:
        ModelError: hardly better than chance.
    """
    if num_classes < 2 or top1 > least_top1(num_classes):
        return
    text = f"{name} has {top1:.1%} top-1 on {images}, and chance is {1 / num_classes:.1%}"
    if not force:
        raise ModelError(text, "Check that weights and class names belong together, or give --force")
    run.warn(text)
