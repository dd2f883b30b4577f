"""Removes units from a network, checked against the network with the units bypassed.

Ours, for the removal of arXiv 2312.16904.
"""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from .containers import delete_child, evaluating, runs_children, split_path
from .depth import drop_rates, respace
from .stand_ins import FURTHER_INPUTS, STAND_INS, WRAPPED
from .trace import passing_on, patched
from .unit import Unit

Mode = str
"""`delete`, or the name of what takes the unit's place."""
MODES = ("delete", *STAND_INS)
ORIGINAL = "original"  # name of a network before any removal
FAILURES = (AttributeError, LookupError, RuntimeError, TypeError, ValueError)  # of a forward whose child is missing


class SurgeryError(ValueError):
    """The network without the units fails a check; the message begins with the name of the check."""


@dataclass(frozen=True)
class Removal:
    """One removed unit, as in the manifest of a checkpoint.

    Attributes:
        original_path: in the network as built.
        path_at_step: at the moment of its removal.
        mode: "delete", where its successors were renamed, or the name of the module that took its place.
        step: number of the pruning step, from 1.
    """

    original_path: str
    path_at_step: str
    mode: Mode
    step: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """From JSON.

        Raises:
            ValueError: other keys, or values of other types.
        """
        types: dict[str, type] = {"original_path": str, "path_at_step": str, "mode": str, "step": int}
        if set(values) != {field.name for field in fields(cls)}:
            raise ValueError(f"a removal has the keys {', '.join(sorted(types))}, not {', '.join(sorted(values))}")
        for key, kind in types.items():
            if type(values[key]) is not kind:
                raise ValueError(f"{key} of a removal is {values[key]!r}, not of type {kind.__name__}")
        return cls(**values)


@dataclass(frozen=True)
class Pruned:
    """A network without some units.

    Attributes:
        network: a new one.
        removals: in order.
        originals: from the path of each remaining module to its path in the network as built.
    """

    network: nn.Module
    removals: tuple[Removal, ...]
    originals: dict[str, str]


@contextmanager
def bypassed(network: nn.Module, units: Sequence[Unit]) -> Iterator[None]:
    """Let units return their input, or the output of their stand-in where they need one."""

    with patched({network.get_submodule(unit.path): passing_on(unit) for unit in units}):
        yield


def remove(network: nn.Module, path: str, mode: Mode) -> dict[str, str]:
    """Remove a module from a network, in place; stochastic depth is spread over the remaining blocks.

    Args:
        network: is changed.
        path: of the module.
        mode: "delete" deletes the child from its container and renumbers later ones; else the name of a stand-in.

    Returns:
        From the path of each remaining module to its former path.

    Raises:
        ValueError: no such mode or module.
    """
    if mode not in MODES:
        raise ValueError(f"a unit is removed by {', '.join(MODES)}, not {mode!r}")
    parent, name = split_path(network, path)
    unit = network.get_submodule(path)
    places = {module: place for place, module in network.named_modules()}
    rates = drop_rates(network)
    if mode == "delete":
        delete_child(parent, name)
    else:
        parent.add_module(name, STAND_INS[mode]().train(unit.training))
    respace(network, rates, drop_rates(unit))
    return {place: places[module] for place, module in network.named_modules() if module in places}


def apply_removals(network: nn.Module, removals: Sequence[Removal]) -> nn.Module:
    """Repeat removals on a freshly built network, in place, before its weights are loaded.

    Raises:
        ValueError: no such mode or module.
    """
    for removal in removals:
        remove(network, removal.path_at_step, removal.mode)
    return network


def original_paths(base: nn.Module, removals: Sequence[Removal] = ()) -> dict[str, str]:
    """From the path of each module that these removals leave to its path in the network as built.

    Args:
        base: the network as built; not changed.
        removals: made so far.
    """
    network = copy.deepcopy(base)
    originals = {path: path for path, _ in network.named_modules()}
    for removal in removals:
        originals = _renamed(originals, remove(network, removal.path_at_step, removal.mode))
    return originals


def _renamed(originals: Mapping[str, str], moves: Mapping[str, str]) -> dict[str, str]:
    return {new: originals[old] for new, old in moves.items() if old in originals}


def prune(
    network: nn.Module,
    units: Sequence[Unit],
    images: Tensor,
    *,
    count_macs: Callable[[nn.Module, Tensor], int],
    originals: Mapping[str, str],
    step: int,
) -> Pruned:
    """Remove units from a copy of a network, one after another, and check the result each time.

    A unit is deleted from its container, which renames later ones, unless the network needs a module there. V1: the
    logits are those of the network with the unit bypassed, bit for bit (the caller turns deterministic algorithms on).
    V2, V3: exactly the unit's parameters and multiply-adds are gone. V5: its container has one block fewer. (V4, a
    rebuild by name, is up to the caller.)

    Args:
        network: not changed.
        units: with paths in this network.
        images: (B, 3, H, W).
        count_macs: multiply-adds of a module for one input.
        originals: from the path of each module to that in the network as built; at first `original_paths(network)`.
        step: number of the pruning step.

    Raises:
        SurgeryError: a check fails.
    """
    removals = []
    places = {unit.path: unit.path for unit in units}
    originals = dict(originals)
    for unit in units:
        path = places[unit.path]
        here = replace(unit, path=path)
        after, mode, moves = take_out(network, here, images)
        _verify(network, after, here, images[:1], count_macs)
        removals.append(Removal(originals[path], path, mode, step))
        originals = _renamed(originals, moves)
        now = {old: new for new, old in moves.items()}
        places = {given: now[place] for given, place in places.items() if place in now}
        network = after
    return Pruned(network, tuple(removals), originals)


def take_out(network: nn.Module, unit: Unit, images: Tensor) -> tuple[nn.Module, Mode, dict[str, str]]:
    """Remove one unit from a copy, by the first mode that gives the logits of the bypassed unit.

    Args:
        network: with the unit; not changed.
        unit: to remove.
        images: (B, 3, H, W), for the logits.

    Returns:
        The copy; the way; path of each module that is left, to its path before.

    Raises:
        SurgeryError: V1 fails.
    """
    with evaluating(network), bypassed(network, [unit]):
        expected = network(images)
    for mode in _modes(network, unit):
        after = copy.deepcopy(network)
        moves = remove(after, unit.path, mode)
        if _answers(after, images, expected):
            return after, mode, moves
    raise SurgeryError(f"V1: without {unit.path} the network's logits differ from those with the unit bypassed")


def _modes(network: nn.Module, unit: Unit) -> tuple[Mode, ...]:
    if unit.relu or unit.activation:
        return (unit.activation or "relu",)
    kept = (WRAPPED,) if unit.wrapped else ("identity", FURTHER_INPUTS)
    return ("delete", *kept) if runs_children(network.get_submodule(unit.container)) else kept


def _answers(network: nn.Module, images: Tensor, expected: Tensor) -> bool:
    """Whether a network gives the expected logits (B, C) for images (B, 3, H, W)."""
    try:
        with evaluating(network):
            return torch.equal(network(images), expected)
    except FAILURES as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        return False


def _verify(
    before: nn.Module,
    after: nn.Module,
    unit: Unit,
    image: Tensor,
    count_macs: Callable[[nn.Module, Tensor], int],
) -> None:
    """Check parameters, multiply-adds and logits of the network without the unit, on an image (1, 3, H, W)."""
    with evaluating(before), evaluating(after):
        macs = count_macs(after, image)
        with bypassed(before, [unit]):
            macs_expected = count_macs(before, image)
    parameters_expected = _parameters(before) - _parameters(before.get_submodule(unit.path))
    blocks_expected = _blocks(before.get_submodule(unit.container)) - 1
    for check, found, expected in (
        ("V2: parameters", _parameters(after), parameters_expected),
        ("V3: multiply-adds", macs, macs_expected),
        ("V5: blocks of its container", _blocks(after.get_submodule(unit.container)), blocks_expected),
    ):
        if found != expected:
            raise SurgeryError(f"{check} without {unit.path} are {found}, not {expected}")


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _blocks(container: nn.Module) -> int:
    return sum(_parameters(child) > 0 for child in container.children())


def along_steps(network: nn.Module, removals: Sequence[Removal]) -> dict[str, nn.Module]:
    """The original network and the one after each step; weights do not affect the times.

    Args:
        network: the original.
        removals: in order.
    """
    networks = {ORIGINAL: network}
    for step in dict.fromkeys(removal.step for removal in removals):
        made = [removal for removal in removals if removal.step <= step]
        networks[f"step {step}"] = apply_removals(copy.deepcopy(network), made).eval()
    return networks
