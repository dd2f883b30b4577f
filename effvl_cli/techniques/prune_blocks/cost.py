"""What scoring costs, in multiply-adds of one image.

A network is a stem, chain units (removable or not) and a head. Leaving out each removable unit in turn takes

    naive    F + sum_i (F - u_i)
    cached   F + sum_i (h + sum of the u_k after i)

with F = s + h + sum of the u_k. For many equal units that are all removable the ratio tends to 2.
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
        naive: a whole pass for each candidate.
        cached: what lies before a unit is computed once for all candidates.
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
        head: of all parts after the last unit, and of what is computed outside of parts: every candidate repeats it.
        units: of each part from the first unit to the last.
        removable: index of each unit in `units`.
    """

    stem: int
    head: int
    units: tuple[int, ...]
    removable: tuple[int, ...]

    @property
    def saved(self) -> list[int]:
        """What the removal of each unit saves."""
        return [self.units[index] for index in self.removable]


def cost_model(stem: int, head: int, unit_macs: Sequence[int], removable: Sequence[int]) -> Cost:
    """Cost of scoring each removable unit once.

    Args:
        stem: s.
        head: h.
        unit_macs: u_j of the chain, in order.
        removable: indices into it.
    """
    total = stem + head + sum(unit_macs)
    naive = total + sum(total - unit_macs[index] for index in removable)
    cached = total + sum(head + sum(unit_macs[index + 1 :]) for index in removable)
    return Cost(naive, cached)


class _Again(nn.Module):
    """A module with the arguments of a call."""

    def __init__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.module, self.args, self.kwargs = module, args, kwargs

    def forward(self) -> Any:
        """Call it again."""
        return self.module(*self.args, **self.kwargs)


def measure_costs(network: nn.Module, units: Sequence[Unit], image: Tensor, count_macs: Callable[..., int]) -> PartMacs:
    """Count the multiply-adds of a network's parts.

    Args:
        network: what is measured, in evaluation mode.
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
