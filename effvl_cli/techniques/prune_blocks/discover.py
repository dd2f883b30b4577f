"""Finds the modules that can be removed from a network by running it, without knowing its architecture.

Ours. Blocks can be removed where the rest can run on their input (Veit et al., arXiv 1605.06431); arXiv 2312.16904
removes them from known architectures.
"""

import fnmatch
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn

from .containers import evaluating, runs_children
from .shortcut import find_shortcut, unwrapped
from .surgery import SurgeryError, take_out
from .trace import Forward, first_input, patched
from .unit import Unit

Valid = Literal["identity", "shape"]


@dataclass(frozen=True)
class Rejected:
    """A module that is a candidate but not a unit, and the reason."""

    path: str
    reason: str


@dataclass(frozen=True)
class Discovery:
    """Result of the search in a network.

    Attributes:
        units: in the order of their calls; their positions are the indices of units everywhere.
        rejected: in the order of registration, without what lies inside a unit.
        stages: from the path of each stage with units to the number of blocks in it, removable or not.
    """

    units: tuple[Unit, ...]
    rejected: tuple[Rejected, ...]
    stages: dict[str, int]


@dataclass
class _Call:
    """One call of a candidate: arguments (None for tensors), and the names of tensor or non-default arguments."""

    arguments: inspect.BoundArguments
    tensors: list[str]
    special: list[str]
    order: int
    source: Tensor | None = None  # without storage
    result: Tensor | None = None  # likewise
    negative: bool = False
    wrapped: bool = False  # the result is a tuple of one tensor


def discover(network: nn.Module, images: Tensor, *, valid: Valid = "identity", stages: bool = False) -> Discovery:
    """Find the units of a network with one forward pass and one of each candidate alone.

    A candidate has parameters and children and is itself the child of a module that runs its children one after
    another, or one of several attributes of one class. It is a unit if it is called once with one tensor (besides
    numbers and the like), returns one of the same shape and type, alone or in a tuple, shares no parameter with other
    modules, and with all parameters zero returns its input, perhaps after an activation.

    Args:
        network: not changed.
        images: (2, 3, H, W).
        valid: "shape" drops the last condition.
        stages: of nested units the outer ones count, else the inner ones.
    """
    blocks = _candidates(network)
    with evaluating(network):
        with _recorded(blocks) as calls:
            network(images)
        owners = _owners(network)
        found: dict[str, Unit | str] = {
            path: _judge(path, module, calls[path], owners, valid) for path, module in blocks.items()
        }
        for path in _apart(blocks, calls):
            if isinstance(found[path], Unit):
                found[path] = "its parent does not run its children one after another"
        for path, unit in found.items():
            if isinstance(unit, Unit) and len(calls[path][0].special) > 1 and not _can_go(network, unit, images):
                found[path] = "it has further inputs, which no stand-in can take"
    found = _without_attributes_inside(network, found)
    levels = _Stages(found, blocks, calls)
    found = {path: replace(u, stage=levels.of(path)) if isinstance(u, Unit) else u for path, u in found.items()}
    units = [unit for unit in found.values() if isinstance(unit, Unit)]
    proved = [unit for unit in units if unit.shortcut != "none"]
    units = [unit for unit in units if unit in proved or not any(_inside(unit.path, p.path) for p in proved)]
    for unit in units:
        if any(_inside(unit.path, other.path) if stages else _inside(other.path, unit.path) for other in units):
            found[unit.path] = "inside a unit" if stages else "contains units"
    kept = [unit for unit in units if isinstance(found[unit.path], Unit)]
    kept.sort(key=lambda unit: calls[unit.path][0].order)
    rejected = [
        Rejected(path, reason)
        for path, reason in found.items()
        if isinstance(reason, str) and not any(_inside(path, unit.path) for unit in kept)
    ]
    return Discovery(tuple(kept), tuple(rejected), levels.sizes(kept))


def _candidates(network: nn.Module) -> dict[str, nn.Module]:
    """Modules with parameters and children: those in a container, and attributes of the same class as others."""
    found = {}
    for path, module in network.named_modules():
        kinds = [type(child) for child in module.children()]
        runs = runs_children(module)
        for name, child in module.named_children():
            several = kinds.count(type(child)) > 1 and not runs_children(child)
            owns = any(True for _ in child.parameters()) and any(True for _ in child.children())
            if owns and (runs or several):
                found[f"{path}.{name}".lstrip(".")] = child
    return found


def _without_attributes_inside(network: nn.Module, found: Mapping[str, Unit | str]) -> dict[str, Unit | str]:
    """Leave out attributes inside a block, unless the module around them is not a unit."""

    def in_container(path: str) -> bool:
        return runs_children(network.get_submodule(path.rpartition(".")[0]))

    proved = [
        path
        for path, unit in found.items()
        if isinstance(unit, Unit) and unit.shortcut != "none" and in_container(path)
        if not runs_children(network.get_submodule(path))
    ]
    return {p: u for p, u in found.items() if in_container(p) or not any(_inside(p, outer) for outer in proved)}


def _apart(blocks: Mapping[str, nn.Module], calls: Mapping[str, Sequence[_Call]]) -> list[str]:
    """Candidates of containers in which no candidate can take the output of another, by their shapes."""
    found = []
    families = _families(blocks)
    for container, paths in families.items():
        own = [calls[path][0] for path in paths if calls[path]]
        given = [call.result.shape for call in own if call.result is not None]
        taken = [call.source.shape for call in own if call.source is not None]
        if container and len(own) > 1 and not any(a in taken[:n] + taken[n + 1 :] for n, a in enumerate(given)):
            found += [path for path in paths if path not in families]
    return found


def _families(blocks: Iterable[str]) -> dict[str, list[str]]:
    """Candidates by the path of their container."""
    found: dict[str, list[str]] = {}
    for path in blocks:
        found.setdefault(path.rpartition(".")[0], []).append(path)
    return found


class _Stages:
    """Assigns each candidate to its stage, a series of blocks.

    It is the candidate's container, unless that is itself in a series of modules that keep the shape, e.g. pairs of
    blocks or blocks with further layers: then the outer series is the stage, and blocks of all of them may be removed.
    """

    def __init__(
        self, found: Iterable[str], blocks: Mapping[str, nn.Module], calls: Mapping[str, Sequence[_Call]]
    ) -> None:
        self._blocks = {path: blocks[path] for path in found}
        self._shapes = {path: _kept_shape(calls[path]) for path in self._blocks}

    def of(self, path: str) -> str:
        """Path of the stage."""
        stage = path.rpartition(".")[0]
        while self._is_one_of_several(stage):
            stage = stage.rpartition(".")[0]
        return stage

    def _is_one_of_several(self, group: str) -> bool:
        """Whether a container stands in a series with others of its class that keep the same shape."""
        if self._shapes.get(group) is None:
            return False
        kind, around = type(self._blocks[group]), group.rpartition(".")[0]
        return any(
            other != group and other.rpartition(".")[0] == around and type(self._blocks[other]) is kind
            for other, shape in self._shapes.items()
            if shape == self._shapes[group]
        )

    def sizes(self, units: Sequence[Unit]) -> dict[str, int]:
        """Number of blocks, removable or not, in each stage of these units."""
        inner = [self.of(path) for path in self._blocks if not self._climbed(path, units)]
        return {unit.stage: inner.count(unit.stage) for unit in units}

    def _climbed(self, group: str, units: Sequence[Unit]) -> bool:
        return any(_inside(unit.path, group) and unit.stage != group and _inside(group, unit.stage) for unit in units)


def _kept_shape(calls: Sequence[_Call]) -> Any:
    """Shape of the input and output of a candidate that is called once; None where they differ."""
    if len(calls) != 1 or calls[0].source is None or calls[0].result is None:
        return None
    return calls[0].source.shape if calls[0].source.shape == calls[0].result.shape else None


def _can_go(network: nn.Module, unit: Unit, images: Tensor) -> bool:
    """Whether a unit with further arguments can be skipped, as no stand-in could take them; images (B, 3, H, W)."""
    try:
        take_out(network, unit, images)
    except SurgeryError:
        return False
    return True


def _inside(path: str, outer: str) -> bool:
    return path.startswith(f"{outer}.")


@contextmanager
def _recorded(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, list[_Call]]]:
    """Record the calls of modules, by path."""
    calls: dict[str, list[_Call]] = {path: [] for path in modules}

    def before(path: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        signature = inspect.signature(module.forward)
        bound = signature.bind(*args, **kwargs)
        names = [name for name, value in bound.arguments.items() if _holds_tensor(value)]
        special = [n for n, value in bound.arguments.items() if value is not signature.parameters[n].default]
        bound.apply_defaults()
        call = _Call(bound, names, special, sum(map(len, calls.values())))
        for name in names:
            value, bound.arguments[name] = bound.arguments[name], None
            if isinstance(value, Tensor):
                call.source, call.negative = _outline(value), bool((value < 0).any())
        calls[path].append(call)

    def after(path: str, module: nn.Module, args: Any, output: Any) -> None:
        result = unwrapped(output)
        calls[path][-1].result = _outline(result) if isinstance(result, Tensor) else None
        calls[path][-1].wrapped = result is not output

    handles = []
    try:
        for path, module in modules.items():
            handles.append(module.register_forward_pre_hook(partial(before, path), with_kwargs=True))
            handles.append(module.register_forward_hook(partial(after, path)))
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _holds_tensor(value: Any) -> bool:
    if isinstance(value, Mapping):
        return any(map(_holds_tensor, value.values()))
    return isinstance(value, Tensor) or (isinstance(value, list | tuple) and any(map(_holds_tensor, value)))


def _outline(tensor: Tensor) -> Tensor:
    """A tensor with the shape, type and device of another (any shape), in the memory of one number."""
    return tensor.new_empty(()).expand(tensor.shape)


def _owners(network: nn.Module) -> dict[nn.Parameter, list[str]]:
    """Paths of the modules that own each parameter."""
    owners: dict[nn.Parameter, list[str]] = {}
    for path, module in network.named_modules(remove_duplicate=False):
        for parameter in module.parameters(recurse=False):
            owners.setdefault(parameter, []).append(path)
    return owners


def _judge(
    path: str, module: nn.Module, calls: Sequence[_Call], owners: Mapping[nn.Parameter, list[str]], valid: Valid
) -> Unit | str:
    """The unit, or the reason why it is not one."""
    reason = _misfit(calls)
    if reason:
        return reason
    homes = {home for parameter in module.parameters() for home in owners[parameter]}
    if any(home != path and not _inside(home, path) for home in homes):
        return "shares parameters with another module"
    call, stage = calls[0], path.rpartition(".")[0]
    assert call.source is not None
    shortcut = find_shortcut(module, call.arguments, call.tensors[0], call.source)
    kind = shortcut.finding
    if kind in ("identity", "identity+relu", "identity+activation"):
        relu = kind == "identity+relu" and call.negative
        return Unit(path, stage, kind, relu=relu, activation=shortcut.activation, wrapped=call.wrapped)
    if valid == "shape":
        return Unit(path, stage, "none", wrapped=call.wrapped)
    return "no identity shortcut" if kind == "none" else kind


def _misfit(calls: Sequence[_Call]) -> str:
    """Why the calls of a candidate rule it out, or an empty string."""
    if len(calls) != 1:
        return "calls≠1"
    call = calls[0]
    if len(call.tensors) != 1:
        return "inputs≠1"
    if call.source is None or call.result is None:
        return "non-tensor"
    if call.source.shape != call.result.shape:
        return "shape"
    if call.source.dtype != call.result.dtype or not call.source.is_floating_point():
        return "dtype"
    return ""


def with_relus(network: nn.Module, units: Sequence[Unit], images: Tensor) -> tuple[Unit, ...]:
    """The units, with a ReLU as stand-in for those that end in one and get a negative input.

    Discovery has seen only the inputs of its own images; other images may give negative ones.

    Args:
        network: owner of the units.
        units: found in it.
        images: (B, 3, H, W), real images.
    """
    negative: set[str] = set()

    def look(unit: Unit, forward: Forward, *args: Any, **kwargs: Any) -> Any:
        if bool((first_input(args, kwargs) < 0).any()):
            negative.add(unit.path)
        return forward(*args, **kwargs)

    open_ones = [unit for unit in units if unit.shortcut == "identity+relu" and not unit.relu]
    modules = {unit: network.get_submodule(unit.path) for unit in open_ones}
    if open_ones:
        with evaluating(network), patched({m: partial(look, unit, m.forward) for unit, m in modules.items()}):
            network(images)
    return tuple(replace(unit, relu=True) if unit.path in negative else unit for unit in units)


def narrow(units: Sequence[Unit], protect: Sequence[str], only: Sequence[str]) -> tuple[Unit, ...]:
    """Units whose path matches a pattern of `only` (if there are any) and none of `protect`; shell patterns.

    Raises:
        ValueError: a pattern matches no unit.
    """
    for pattern in [*protect, *only]:
        if not any(fnmatch.fnmatchcase(unit.path, pattern) for unit in units):
            raise ValueError(f"the pattern {pattern!r} matches no unit")

    def matches(unit: Unit, patterns: Sequence[str]) -> bool:
        return any(fnmatch.fnmatchcase(unit.path, pattern) for pattern in patterns)

    return tuple(unit for unit in units if not matches(unit, protect) and (not only or matches(unit, only)))


def spare(stages: Mapping[str, int], units: Sequence[Unit], min_per_stage: int) -> tuple[Unit, ...]:
    """Units whose removal leaves at least `min_per_stage` blocks in their stage."""
    return tuple(unit for unit in units if stages[unit.stage] > min_per_stage)


def most_removable(stages: Mapping[str, int], units: Sequence[Unit], min_per_stage: int) -> dict[str, int]:
    """How many of the units can be removed from each stage in all."""
    valid: dict[str, int] = {}
    for unit in units:
        valid[unit.stage] = valid.get(unit.stage, 0) + 1
    return {stage: min(count, max(0, stages[stage] - min_per_stage)) for stage, count in valid.items()}
