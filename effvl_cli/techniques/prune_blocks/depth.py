"""Stochastic depth (arXiv 1603.09382) of a network that has lost blocks: the rates grow linearly over those left."""

from collections.abc import Iterator

from torch import nn

_RATES = {"DropPath": "drop_prob", "StochasticDepth": "p"}  # class (timm, torchvision) to attribute


def drop_rates(network: nn.Module) -> set[float]:
    """The distinct rates of a network's branches."""
    return {float(getattr(module, name) or 0) for module, name in _drops(network)}


def respace(network: nn.Module, before: set[float], removed: set[float]) -> None:
    """Give the remaining blocks the rates of a shallower network, from zero to the same highest rate.

    Each block has its own rate; that of the first is zero, often without a module for it.

    Args:
        network: after the removal.
        before: its rates before.
        removed: rates of what was removed.
    """
    if not any(before):
        return
    kept = drop_rates(network)
    if any(removed):
        kept.add(0.0)
    levels = sorted(kept)
    step = max(before) / max(1, len(levels) - 1)
    rates = {level: index * step for index, level in enumerate(levels)}
    for module, name in _drops(network):
        setattr(module, name, rates[float(getattr(module, name) or 0)])


def _drops(network: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    for module in network.modules():
        if type(module).__name__ in _RATES:
            yield module, _RATES[type(module).__name__]
