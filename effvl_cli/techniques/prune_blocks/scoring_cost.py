"""Cost of scoring, in multiply-adds of one image.

A network is a stem, chain units (removable or not) and a head. Leaving out each removable unit in turn takes

    naive    F + sum_i (F - u_i)
    cached   F + sum_i (h + sum of the u_k after i)

with F = s + h + sum of the u_k. For many equal units that are all removable the ratio tends to 2.

Sets of units are leaves of a tree of decisions, to keep or skip each unit in turn. Shared scoring computes a unit
once for each series of decisions before it that some set makes, and the head once for each set.

Ours, for the scoring of arXiv 2312.16904.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

from .containers import evaluating
from .trace import calls, positions
from .unit import Unit


@dataclass(frozen=True)
class Cost:
    """Multiply-adds of scoring one image, the network itself included.

    Attributes:
        naive: a full pass for each candidate.
        cached: what precedes a unit is computed once for all candidates.
    """

    naive: int
    cached: int

    @property
    def ratio(self) -> float:
        """How many times cheaper sharing is."""
        return self.naive / self.cached


class PartMacs(NamedTuple):
    """Multiply-adds of a network's parts; arguments of `cost_model`.

    Attributes:
        stem: of all parts before the first unit.
        head: of all parts after the last unit, and of computations outside of parts: every candidate repeats them.
        units: of each part from the first unit to the last.
        removable: index of each unit in `units`.
    """

    stem: int
    head: int
    units: tuple[int, ...]
    removable: tuple[int, ...]

    @property
    def saved(self) -> list[int]:
        """Multiply-adds that the removal of each unit saves."""
        return [self.units[index] for index in self.removable]


def cost_model(
    stem: int,
    head: int,
    unit_macs: Sequence[int],
    removable: Sequence[int],
    sets: Sequence[Sequence[int]] | None = None,
) -> Cost:
    """Cost of scoring each removable unit once, or each of some sets of them.

    Args:
        stem: s.
        head: h.
        unit_macs: u_j of the chain, in order.
        removable: indices into it.
        sets: indices into `removable` of each candidate, all different; default each alone.
    """
    singles = [(place,) for place in range(len(removable))]
    paths = [tuple(sorted(removable[place] for place in chosen)) for chosen in (singles if sets is None else sets)]
    total = stem + head + sum(unit_macs)
    naive = total + sum(total - sum(unit_macs[index] for index in path) for path in paths)
    ends: dict[tuple[int, ...], int] = {path: len(unit_macs) for path in [(), *paths]}
    for path in paths:  # what its beginnings compute up to the unit where it leaves them
        for depth, index in enumerate(path):
            ends[path[:depth]] = max(ends.get(path[:depth], 0), index)
    computed = sum(sum(unit_macs[(path[-1] + 1 if path else 0) : end]) for path, end in ends.items())
    return Cost(naive, stem + computed + head * (1 + len(paths)))


class _Again(nn.Module):
    """A module with the recorded arguments of a call."""

    def __init__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.module, self.args, self.kwargs = module, args, kwargs

    def forward(self) -> Any:
        """Call it again."""
        return self.module(*self.args, **self.kwargs)


def measure_costs(network: nn.Module, units: Sequence[Unit], image: Tensor, count_macs: Callable[..., int]) -> PartMacs:
    """Count the multiply-adds of a network's parts.

    Args:
        network: to measure, in evaluation mode.
        units: at least one.
        image: (1, 3, H, W).
        count_macs: `count_macs(module, *inputs)`.

    Raises:
        ValueError: a unit that is not called once.
    """
    with evaluating(network):
        found = calls(network, units, image)
        numbers = positions(network, units, found)
        macs = [count_macs(_Again(call.module, call.args, call.kwargs)) for call in found]
        total = count_macs(network, image)
    first, last = min(numbers), max(numbers)
    stem, between = sum(macs[:first]), tuple(macs[first : last + 1])
    head = total - stem - sum(between)
    return PartMacs(stem, head, between, tuple(number - first for number in numbers))
