"""Does a module add to its input? A probe with all parameters at zero says so, and a graph may contradict it.

Ours; the identity shortcut is that of He et al., arXiv 1512.03385, eq. 1, and arXiv 1603.05027.
"""

import copy
from collections.abc import Callable, Iterable
from inspect import BoundArguments
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from .unit import Shortcut

Finding = Shortcut | Literal["probe-nan", "fx-disagrees"]

# Names of functions, methods and classes.
_ADDITIONS = {"add", "add_", "iadd"}
_CARRIERS = {  # pass the values of their first argument on: they move them, or do nothing in evaluation mode
    *(
        "addcmul",
        "cat",
        "chunk",
        "clone",
        "contiguous",
        "expand",
        "flatten",
        "getitem",
        "moveaxis",
        "movedim",
        "narrow",
    ),
    *("pad", "permute", "pixel_shuffle", "pixel_unshuffle", "reshape", "roll", "select", "split", "squeeze", "stack"),
    *("swapaxes", "swapdims", "to", "transpose", "type_as", "unbind", "unflatten", "unsqueeze", "view"),
    *("Dropout", "Dropout1d", "Dropout2d", "DropPath", "Flatten", "Identity", "StochasticDepth", "Unflatten"),
    *("drop_path", "dropout", "stochastic_depth"),
}
_RELUS = {"ReLU", "relu", "relu_"}
_SPREAD = 8.0  # so that an activation which is a ReLU only near zero (ReLU6, say) does not pass for one


def find_shortcut(unit: nn.Module, call: BoundArguments, name: str, like: Tensor) -> Finding:
    """What a module in evaluation mode does to its input besides adding something computed from its parameters.

    With every weight, bias, norm and layer scale at zero a residual branch is exactly zero, and so is a projection in
    the shortcut: only a true identity lets noise through, bit for bit.

    Args:
        unit: maps one tensor to one of the same shape; left as it is.
        call: what it is called with.
        name: of the argument that is the tensor.
        like: has the shape, type and device of that tensor.
    """
    unit = copy.deepcopy(unit)
    noise = torch.randn(like.shape, generator=torch.Generator().manual_seed(0)).mul_(_SPREAD).to(like)
    call.arguments[name] = noise.clone()  # the first operation may be in place
    with torch.no_grad():
        for parameter in unit.parameters():
            parameter.zero_()
        output = unit(*call.args, **call.kwargs)
    if output.isnan().any():
        return "probe-nan"
    found: Shortcut = "none"
    if torch.equal(output, noise):
        found = "identity"
    elif torch.equal(output, noise.relu()):
        found = "identity+relu"
    others = {key: value for key, value in call.arguments.items() if key != name}
    if found != "none" and not _graph_allows(unit, others, found):
        return "fx-disagrees"
    return found


def _graph_allows(unit: nn.Module, others: dict[str, Any], shortcut: Shortcut) -> bool:
    """Whether the input reaches the output through nothing but additions and carriers, or fx cannot trace the module.

    A gate that happens to be open at zero, x * 2 sigmoid(f(x)), passes the probe but not this.
    """
    try:
        graph = fx.Tracer().trace(unit, concrete_args=others)
    except Exception:  # control flow on values, foreign code, ..: fx is free to fail
        return True
    carriers = _CARRIERS | (_RELUS if shortcut == "identity+relu" else set())
    carry: set[fx.Node] = set()
    for node in graph.nodes:  # each comes after its inputs
        name = _name(node, unit)
        if (
            (node.op == "placeholder" and not carry)
            or (name in _ADDITIONS and _reached(node.all_input_nodes, carry, any))
            or (name in carriers | {"output"} and _reached(_sources(node), carry, all))
        ):
            carry.add(node)
    return node in carry


def _reached(sources: list[fx.Node], carry: set[fx.Node], how: Callable[[Iterable[bool]], bool]) -> bool:
    return bool(sources) and how(source in carry for source in sources)


def _sources(node: fx.Node) -> list[fx.Node]:
    """Nodes of its first argument, the tensor or tensors; the further ones are sizes."""
    first = node.args[0] if node.args else node.all_input_nodes
    return [n for n in (first if isinstance(first, list | tuple) else [first]) if isinstance(n, fx.Node)]


def _name(node: fx.Node, unit: nn.Module) -> str:
    if node.op == "call_module":
        return type(unit.get_submodule(str(node.target))).__name__
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
