"""Which modules a network calls, in what order, and how their outputs are used.

Ours, for the scoring of arXiv 2312.16904.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .containers import evaluating
from .stand_ins import ACTIVATIONS
from .unit import Unit

Forward = Callable[..., Any]


@contextmanager
def patched(forwards: Mapping[nn.Module, Forward]) -> Iterator[None]:
    """Replace the forward methods of modules while the context is open."""
    own = {module: module.__dict__["forward"] for module in forwards if "forward" in module.__dict__}
    try:
        for module, forward in forwards.items():
            module.forward = forward
        yield
    finally:
        for module in forwards:
            module.__dict__.pop("forward", None)
        for module, forward in own.items():
            module.forward = forward


def first_input(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The first argument of a unit's call."""
    return args[0] if args else next(iter(kwargs.values()))


def passing_on(unit: Unit) -> Forward:
    """The forward that replaces a removed unit: its input, or an activation of it where one is needed."""
    activation = "relu" if unit.relu else unit.activation
    after = ACTIVATIONS[activation]() if activation else nn.Identity()

    def stand_in(*args: Any, **kwargs: Any) -> Any:
        x = after(first_input(args, kwargs))
        return (x,) if unit.wrapped else x

    return stand_in


def parts(network: nn.Module, units: Sequence[Unit]) -> list[nn.Module]:
    """The units and all siblings of them or of their containers: the stem, other blocks, the head.

    Parts are not nested, and every weighted module of the network is in a part.
    """
    containers = {""}
    for unit in units:
        names = unit.path.split(".")
        containers |= {".".join(names[:depth]) for depth in range(1, len(names))}
    found = []
    for path, module in network.named_modules():
        if path not in containers and path.rpartition(".")[0] in containers:
            found.append(module)
    return found


@dataclass
class Call:
    """One call of a part.

    Attributes:
        module: the part.
        args: of the call.
        kwargs: of the call.
        output: what it returned.
        version: how often the output's storage had been written in place when it was returned.
    """

    module: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any
    version: int

    @property
    def overwritten(self) -> bool:
        """Whether the output was changed in place after it had been returned."""
        return isinstance(self.output, Tensor) and self.output._version != self.version

    def continues(self, before: "Call") -> bool:
        """Whether the output of the previous call is the only tensor that this one sees."""
        others = [*self.args[1:], *self.kwargs.values()]
        plain = all(value is None or isinstance(value, (bool, int, float, str)) for value in others)
        return plain and bool(self.args) and self.args[0] is before.output


def calls(network: nn.Module, units: Sequence[Unit], images: Tensor) -> list[Call]:
    """Run a network in evaluation mode on images (B, 3, H, W) and write down the calls of its parts, in order.

    The network is not changed.
    """
    found: list[Call] = []

    def note(module: nn.Module, forward: Forward, *args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        found.append(Call(module, args, kwargs, output, output._version if isinstance(output, Tensor) else 0))
        return output

    forwards = {module: partial(note, module, module.forward) for module in parts(network, units)}
    # Tensors made in inference mode do not count in-place writes.
    with torch.inference_mode(False), evaluating(network), patched(forwards):
        network(images)
    return found


def positions(network: nn.Module, units: Sequence[Unit], found: Sequence[Call]) -> list[int]:
    """Number of the call of each unit.

    Raises:
        ValueError: a unit that is not called once.
    """
    numbers = []
    for unit in units:
        module = network.get_submodule(unit.path)
        own = [number for number, call in enumerate(found) if call.module is module]
        if len(own) != 1:
            raise ValueError(f"unit {unit.path} is called {len(own)} times, not once")
        numbers.append(own[0])
    return numbers


@dataclass(frozen=True)
class Trace:
    """How a network runs, as far as sharing computations depends on it.

    Attributes:
        modules: part called by each call.
        positions: number of the call of each unit.
        chain_from: first call from which on, up to the last unit's, each sees the output of the call before and no
            other tensor: the network is a chain there.
        overwritten: calls whose output is later changed in place, by a later call or by code between calls.
    """

    modules: tuple[nn.Module, ...]
    positions: tuple[int, ...]
    chain_from: int
    overwritten: frozenset[int]

    @classmethod
    def of(cls, network: nn.Module, units: Sequence[Unit], images: Tensor) -> "Trace":
        """Run a network in evaluation mode on images (B, 3, H, W).

        Raises:
            ValueError: a unit that is not called once.
        """
        found = calls(network, units, images)
        numbers = positions(network, units, found)
        start = max(numbers)
        while start > 0 and found[start].continues(found[start - 1]):
            start -= 1
        return cls(
            tuple(call.module for call in found),
            tuple(numbers),
            start,
            frozenset(number for number, call in enumerate(found) if call.overwritten),
        )

    @property
    def is_chain(self) -> bool:
        """Whether the part with all units is a chain."""
        return self.chain_from <= min(self.positions)
