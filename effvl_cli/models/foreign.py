"""Weights from files of any origin: nested, wrapped, prefixed, or with other networks in the same file.

A file is read as one flat table of tensors, `student.module.backbone.norm.weight` say. A network's state dict stands
in it behind some prefix: the one behind which most of the network's own names are found.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from effvl_cli.core import checkpoint
from effvl_cli.core.errors import ModelError

COUNTER = "num_batches_tracked"  # of batch norm; files from before torch 0.4.1 have none
_DEEPEST = 8
_ENOUGH = 0.5  # share of a network's names that must follow a prefix for it to be the network's
_ALIKE = 0.9  # share of the best prefix's names: another prefix with as many holds another network
_WRAPPERS = ("state_dict", "model_state_dict", "model", "module", "net", "network")
_TRAINED = ("base_encoder", "encoder_q")  # MoCo's network, as opposed to the moving average that only helps to train it


@dataclass(frozen=True)
class Weights:
    """One network of a file.

    Attributes:
        state: its tensors, by their names in the network.
        prefix: what preceded these names.
        beside: tensors without this prefix, by their full names.
    """

    state: dict[str, Tensor]
    prefix: str
    beside: dict[str, Tensor]

    def add_head(self, head: Mapping[str, Tensor]) -> None:
        """Take a last layer with these names and shapes that lies beside the network, as in wrappers of a backbone."""
        parent = self.prefix.rstrip(".").rpartition(".")[0]
        around = f"{parent}." if parent else ""
        if not self.prefix or any(name in self.state for name in head):
            return
        for place in {n.removesuffix("weight") for n in self.beside if n.startswith(around) and n.endswith(".weight")}:
            theirs = {name: self.beside.get(f"{place}{name.rpartition('.')[2]}") for name in head}
            if all(value is not None and value.shape == head[name].shape for name, value in theirs.items()):
                for name in head:
                    self.state[name] = self.beside.pop(f"{place}{name.rpartition('.')[2]}")

    @property
    def note(self) -> str:
        """What was removed from the names; empty when nothing was."""
        if not self.prefix:
            return ""
        left = f", {len(self.beside)} tensors beside it are left out" if self.beside else ""
        return f"the prefix {self.prefix!r} is taken off{left}"


def read(path: Path, expected: Collection[str], key: str | None = None) -> Weights:
    """The network of a file.

    Args:
        path: safetensors, or of `torch.save`.
        expected: names of the tensors of the network that is wanted.
        key: part of the prefix, where the file holds several networks.

    Raises:
        ModelError: unreadable, without tensors, with several networks, or with none of that key.
    """
    tensors = dict(_flat(checkpoint.read_any(path)))
    if not tensors:
        raise ModelError(f"{path} holds no tensors", "Save the state dict itself: torch.save(m.state_dict(), FILE)")
    expected = {name for name in expected if not name.endswith(COUNTER)}
    prefixes = _networks(tensors, expected)
    if key is not None:
        prefixes = _of_key(tensors, prefixes, key, path)
    elif len(prefixes) > 1:
        trained = [p for p in prefixes if p.rstrip(".").rpartition(".")[2] in _TRAINED]
        if len(trained) != 1:
            raise ModelError(
                f"{path} holds {len(prefixes)} networks: {', '.join(_keys(prefixes))}",
                f"Choose one with --weights-key {_keys(prefixes)[0]}",
            )
        prefixes = trained
    prefix = prefixes[0] if prefixes else _wrapping(tensors, expected)
    state = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    return Weights(state, prefix, {name: value for name, value in tensors.items() if not name.startswith(prefix)})


def _flat(loaded: Any, prefix: str = "", depth: int = 0) -> Iterable[tuple[str, Tensor]]:
    """Tensors of nested mappings, by dotted path."""
    if isinstance(loaded, Mapping) and depth < _DEEPEST:
        for name, value in loaded.items():
            if isinstance(value, Tensor):
                yield f"{prefix}{name}", value
            elif isinstance(name, str):  # numbers are an optimizer's
                yield from _flat(value, f"{prefix}{name}.", depth + 1)


def _networks(tensors: Mapping[str, Tensor], expected: Collection[str]) -> list[str]:
    """Prefixes behind which the network may stand, in the order of the file."""
    found: dict[str, int] = {}
    for name in tensors:
        for prefix in _prefixes(name):
            if name[len(prefix) :] in expected:
                found[prefix] = found.get(prefix, 0) + 1
    most = max(found.values(), default=0)
    return [prefix for prefix, count in found.items() if count >= max(_ENOUGH * len(expected), _ALIKE * most)]


def _prefixes(name: str) -> Iterable[str]:
    place = 0
    while place >= 0:
        yield name[:place]
        dot = name.find(".", place)
        place = dot + 1 if dot >= 0 else -1


def _keys(prefixes: list[str]) -> list[str]:
    """The shortest part of each prefix that no other one has, else all of it."""
    parts = [[part for part in prefix.split(".") if part] for prefix in prefixes]
    keys = []
    for prefix, own in zip(prefixes, parts, strict=True):
        alone = [part for part in own if sum(part in other for other in parts) == 1]
        keys.append(alone[0] if alone else prefix.rstrip(".") or "''")
    return keys


def _of_key(tensors: Mapping[str, Tensor], prefixes: list[str], key: str, path: Path) -> list[str]:
    """The prefixes that hold a key, or all before and with it where the network's names are not found.

    Raises:
        ModelError: none holds it, or several do.
    """
    inside = _holds(key)
    chosen = [prefix for prefix in prefixes if inside(prefix)]
    if not chosen:  # the network's own names may differ: its `adapt` knows
        tops = dict.fromkeys(p for name in tensors for p in _prefixes(name) if p.endswith(f"{key}.") and inside(p))
        chosen = [top + _uniform([n.removeprefix(top) for n in tensors if n.startswith(top)], ()) for top in tops]
    if len(chosen) != 1:
        known = _keys(chosen or prefixes) or list(dict.fromkeys(name.partition(".")[0] for name in tensors))
        what = f"fits {len(chosen)} networks in" if chosen else "names no network in"
        raise ModelError(f"--weights-key {key} {what} {path}", f"Give one of: {', '.join(known[:8])}")
    return chosen


def _holds(key: str) -> Callable[[str], bool]:
    return lambda prefix: f".{key}." in f".{prefix}"


def _wrapping(tensors: Mapping[str, Tensor], expected: Collection[str]) -> str:
    """The prefix of a network whose names are not the expected ones: known wrappers, then what all names begin with."""
    prefix, names = "", list(tensors)
    while wrapper := next((w for w in _WRAPPERS if any(n.startswith(f"{w}.") for n in names)), None):
        names = [name.removeprefix(f"{wrapper}.") for name in names if name.startswith(f"{wrapper}.")]
        prefix += f"{wrapper}."
    return prefix + _uniform(names, {name.partition(".")[0] for name in expected})


def _uniform(names: list[str], own: Collection[str]) -> str:
    """What all names begin with, in whole parts that are none of the network's `own`."""
    prefix = ""
    while names:
        first = names[0].partition(".")[0]
        if first in own or not all(name.startswith(f"{first}.") for name in names):
            break
        names = [name.removeprefix(f"{first}.") for name in names]
        prefix += f"{first}."
    return prefix
