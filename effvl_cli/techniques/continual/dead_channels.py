"""Channels that cannot change a network's output are removed: a smaller dense network from an unstructured sparse one.

A channel between two layers has no influence if every weight that reads it is 0, or if its activation is the constant 0
in evaluation mode. Removing one may leave others without influence, so it is repeated until none is found. Channels of
residual streams, which several layers write or read, stay. Ours. C channels, K outputs of the next layer.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
_ACTIVATIONS: tuple[tuple[type[nn.Module], Callable[..., Any]], ...] = (
    *((nn.ReLU, F.relu), (nn.GELU, F.gelu), (nn.SiLU, F.silu), (nn.Tanh, torch.tanh)),
)
_KEEPING = (nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Dropout, nn.Dropout2d, nn.Identity)
"""A constant comes out as it went in; so it does of flattening, which only moves it."""
_FUNCTIONS: dict[Callable[..., Any], Callable[[Tensor], Tensor] | None] = {
    **{F.relu: torch.relu, torch.relu: torch.relu, F.gelu: F.gelu, F.silu: F.silu, torch.tanh: torch.tanh},
    **dict.fromkeys((F.max_pool2d, F.adaptive_avg_pool2d, F.dropout), None),
}
_METHODS: dict[str, Callable[[Tensor], Tensor] | None] = {"relu": torch.relu}


@dataclass(frozen=True)
class _Chain:
    """A layer, what its channels go through, and the only layer that reads them."""

    writer: nn.Conv2d | nn.Linear
    between: tuple[Any, ...]  # norms, activations as functions, None for what keeps constants
    reader: nn.Conv2d | nn.Linear


def without_dead_channels(module: nn.Module) -> tuple[nn.Module, int]:
    """A copy of the network without channels that cannot change its output in evaluation mode.

    Args:
        module: a network that torch.fx can trace; not changed.

    Returns:
        The copy, and how many channels it lacks; its outputs differ by rounding alone.

    Raises:
        ValueError: torch.fx cannot trace the network.
    """
    smaller = copy.deepcopy(module).eval()
    try:
        traced = fx.symbolic_trace(smaller)
    except Exception as error:  # control flow on values raises half a dozen kinds
        raise ValueError(next(iter(str(error).splitlines()), type(error).__name__)) from error
    removed, chains = 0, list(_chains(traced))
    while found := sum(map(_shrink, chains)):
        removed += found
    return smaller, removed


def _shrink(chain: _Chain) -> int:
    """Take out the dead channels of a chain, all but one if it has no others; how many there were."""
    dead = _unread(chain) | _zero(chain)
    if dead.all():
        dead[0] = False
        with torch.no_grad():
            chain.writer.weight[0] = 0  # then it reads nothing either
    keep = (~dead).nonzero().flatten()
    if len(keep) < len(dead):
        _keep_rows(chain.writer, keep)
        for part in chain.between:
            if isinstance(part, nn.Module):
                _keep_features(part, keep)
        _keep_columns(chain.reader, keep, len(dead))
    return len(dead) - len(keep)


def _unread(chain: _Chain) -> Tensor:
    """(C,): every weight of the next layer that reads the channel is 0."""
    weight, count = chain.reader.weight, len(chain.writer.weight)
    return (weight.detach().reshape(len(weight), count, -1) == 0).all(dim=2).all(dim=0)


def _zero(chain: _Chain) -> Tensor:
    """(C,): what the channel gives to the next layer is always 0."""
    weight, bias = chain.writer.weight.detach(), chain.writer.bias
    constant = (weight.flatten(1) == 0).all(dim=1)
    value = torch.zeros_like(weight[..., 0].flatten(1)[:, 0]) if bias is None else bias.detach().clone()
    for part in chain.between:
        if isinstance(part, nn.Module):
            constant, value = _through_norm(part, constant, value)
        elif part is not None:
            value = part(value)
    return constant & (value == 0)


def _through_norm(norm: Any, constant: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    scale, shift = norm.weight, norm.bias
    normalised = (value - norm.running_mean) / torch.sqrt(norm.running_var + norm.eps)
    if scale is None:
        return constant, normalised
    fixed = scale.detach() == 0
    value = torch.where(fixed, shift.detach(), normalised * scale.detach() + shift.detach())
    return constant | fixed, value


# --- the layers and what lies between them ----------------------------------------------------------------------------


def _chains(traced: fx.GraphModule) -> Iterator[_Chain]:
    parts = dict(traced.named_modules())
    calls = [node.target for node in traced.graph.nodes if node.op == "call_module"]
    for node in traced.graph.nodes:
        writer = _layer(node, parts, calls)
        if writer is None:
            continue
        between: list[Any] = []
        following = _only_user(node)
        while following is not None and (passed := _passed(following, parts, calls)) is not _STOP:
            between.append(passed)
            following = _only_user(following)
        reader = _layer(following, parts, calls) if following is not None else None
        if reader is not None and _fits(writer, between, reader):
            yield _Chain(writer, tuple(part for part in between if part is not _FLAT), reader)


_STOP, _FLAT = object(), object()


def _layer(node: fx.Node, parts: dict[str, nn.Module], calls: list[Any]) -> nn.Conv2d | nn.Linear | None:
    """The layer that a node calls, if nothing else calls it and its channels are not in groups."""
    if node.op != "call_module" or calls.count(node.target) > 1:
        return None
    part = parts[str(node.target)]
    if isinstance(part, nn.Conv2d):
        return part if part.groups == 1 else None
    return part if isinstance(part, nn.Linear) else None


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _passed(node: fx.Node, parts: dict[str, nn.Module], calls: list[Any]) -> Any:
    """What a node does to each channel alone: a norm, a function, None, `_FLAT`; `_STOP` where it does more."""
    if node.op == "call_module":
        return _passed_module(parts[str(node.target)]) if calls.count(node.target) == 1 else _STOP
    if (node.op, node.target) in (("call_function", torch.flatten), ("call_method", "flatten")):
        return _FLAT if (*node.args[1:], *node.kwargs.values()) == (1,) else _STOP
    if node.op == "call_method" and node.target == "mean":
        return _FLAT if node.args[1:] in (((2, 3),), ([2, 3],)) and not node.kwargs else _STOP
    if node.op == "call_function":
        return _FUNCTIONS.get(node.target, _STOP) if callable(node.target) else _STOP
    return _METHODS.get(str(node.target), _STOP) if node.op == "call_method" else _STOP


def _passed_module(part: nn.Module) -> Any:
    if isinstance(part, _NORMS):
        return part if part.track_running_stats else _STOP
    if isinstance(part, nn.Flatten):
        return _FLAT if (part.start_dim, part.end_dim) == (1, -1) else _STOP
    if isinstance(part, _KEEPING):
        return None
    return next((function for kind, function in _ACTIVATIONS if type(part) is kind), _STOP)


def _fits(writer: nn.Module, between: list[Any], reader: nn.Module) -> bool:
    """Whether the channels of one are those of the other: images stay images, or are flattened channel by channel."""
    flat = any(part is _FLAT for part in between)
    if isinstance(writer, nn.Conv2d):
        return isinstance(reader, nn.Linear) if flat else isinstance(reader, nn.Conv2d)
    return not flat and isinstance(reader, nn.Linear) and not any(isinstance(part, _NORMS) for part in between)


# --- fewer channels ---------------------------------------------------------------------------------------------------


def _set(part: nn.Module, name: str, value: Tensor) -> None:
    old = getattr(part, name)
    value = value.detach().clone()
    setattr(
        part, name, nn.Parameter(value, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else value
    )


def _keep_rows(layer: nn.Conv2d | nn.Linear, keep: Tensor) -> None:
    _set(layer, "weight", layer.weight[keep])
    if layer.bias is not None:
        _set(layer, "bias", layer.bias[keep])
    setattr(layer, "out_channels" if isinstance(layer, nn.Conv2d) else "out_features", len(keep))


def _keep_features(norm: Any, keep: Tensor) -> None:
    for name in ("weight", "bias", "running_mean", "running_var"):
        if getattr(norm, name) is not None:
            _set(norm, name, getattr(norm, name)[keep])
    norm.num_features = len(keep)


def _keep_columns(layer: nn.Conv2d | nn.Linear, keep: Tensor, count: int) -> None:
    weight = layer.weight
    kept = weight.reshape(len(weight), count, -1)[:, keep]  # columns of a flattened channel lie together
    if isinstance(layer, nn.Conv2d):
        _set(layer, "weight", kept.reshape(len(weight), len(keep), *weight.shape[2:]))
        layer.in_channels = len(keep)
    else:
        _set(layer, "weight", kept.reshape(len(weight), -1))
        layer.in_features = layer.weight.shape[1]
