"""Does a module add to its input? Decided by a probe with all parameters at zero, which a traced graph may contradict.

Ours; the identity shortcut is that of He et al., arXiv 1512.03385, eq. 1, and arXiv 1603.05027.
"""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from inspect import BoundArguments
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from .containers import evaluating
from .stand_ins import ACTIVATIONS
from .unit import Shortcut as Kind

Finding = Kind | Literal["probe-nan", "fx-disagrees"]

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
_FAR = 512.0  # input at which every activation is the identity, whatever a branch subtracts
_ROUNDING = 1e-3  # of float32 at that size, after a few operations
_SPREAD = 8.0  # large enough that an activation that is a ReLU only near zero (ReLU6) is not taken for one


@dataclass(frozen=True)
class Shortcut:
    """What a module does to its input besides adding to it.

    Attributes:
        finding: what was found, or why nothing was found.
        activation: name of the activation after the addition, where it is not a ReLU.
    """

    finding: Finding
    activation: str = ""


def find_shortcut(unit: nn.Module, call: BoundArguments, name: str, like: Tensor) -> Shortcut:
    """What a module, in evaluation mode, does to its input besides adding something computed from its parameters.

    With every weight, bias, norm and layer scale at zero a residual branch is exactly zero, and so is a projection in
    the shortcut: only a true identity lets noise through, bit for bit (an activation after it, to rounding).

    Args:
        unit: maps one tensor to one of the same shape, perhaps in a tuple; not changed.
        call: the arguments of its call.
        name: of the argument that is the tensor.
        like: has the shape, type and device of that tensor.
    """
    noise = torch.randn(like.shape, generator=torch.Generator().manual_seed(0)).mul_(_SPREAD).to(like)

    zeros = {key: torch.zeros_like(parameter) for key, parameter in unit.named_parameters()}

    def run(module: Callable[..., Any], x: Tensor) -> Tensor:
        call.arguments[name] = x.clone()  # the first operation may be in place
        output: Tensor = unwrapped(module(*call.args, **call.kwargs))
        return output

    with evaluating(unit):
        output = run(lambda *args, **kwargs: torch.func.functional_call(unit, zeros, args, kwargs), noise)
    if output.isnan().any():
        return Shortcut("probe-nan")
    found = _compare(noise, output)
    if found.finding == "none":
        return found
    unit = copy.deepcopy(unit).eval()  # takes longer than the probe, and is spared where that has decided
    others = {key: value for key, value in call.arguments.items() if key != name}
    activation = found.activation or ("relu" if found.finding == "identity+relu" else "")
    if not _graph_allows(unit, others, found.finding) and not _adds(unit, partial(run, unit), noise, activation):
        return Shortcut("fx-disagrees")
    return found


def unwrapped(output: Any) -> Any:
    """The tensor of a module that returns a tuple or list of one; anything else as it is."""
    return output[0] if isinstance(output, tuple | list) and len(output) == 1 else output


def _compare(noise: Tensor, output: Tensor) -> Shortcut:
    """What turned `noise` into `output`, tensors of any equal shape."""
    if torch.equal(output, noise):
        return Shortcut("identity")
    if torch.equal(output, noise.relu()):
        return Shortcut("identity+relu")
    for name, kind in ACTIVATIONS.items():
        if name != "relu" and torch.allclose(output, kind()(noise), rtol=1e-5, atol=1e-6):
            return Shortcut("identity+activation", name)
    return Shortcut("none")


def _adds(unit: nn.Module, run: Callable[[Tensor], Tensor], noise: Tensor, activation: str) -> bool:
    """Whether the output (any shape) is the input plus a term independent of it, once all layers return constants.

    However the addition is written, the output then follows the input one to one; a gate's does not. `unit` is changed.
    """
    generator = torch.Generator().manual_seed(1)
    draw = partial(_noise_like, generator)
    constants: dict[tuple[nn.Module, int], Any] = {}
    calls: dict[nn.Module, int] = {}

    def answer(module: nn.Module, args: Any, output: Any) -> Any:
        calls[module] = calls.get(module, 0) + 1
        known = constants.setdefault((module, calls[module]), _mapped(output, draw))
        return _mapped(known, torch.clone)  # in-place additions must not change the stored constant

    def again(x: Tensor) -> Tensor:
        calls.clear()
        return run(x).double()

    with torch.no_grad():
        for parameter in unit.parameters():
            parameter.copy_(draw(parameter))
        handles = [m.register_forward_hook(answer) for m in _layers(unit)]
        try:
            far = torch.full_like(noise, _FAR)  # where every activation is the identity
            added = again(far) - far.double()
            after = ACTIVATIONS[activation]() if activation else nn.Identity()
            return torch.allclose(again(noise), after(noise.double() + added), rtol=0, atol=_ROUNDING)
        finally:
            for handle in handles:
                handle.remove()


def _layers(unit: nn.Module) -> list[nn.Module]:
    """The outermost modules inside that own parameters."""
    found: list[str] = []
    for path, module in unit.named_modules():
        inside = any(path.startswith(f"{other}.") for other in found)
        if path and not inside and any(True for _ in module.parameters(recurse=False)):
            found.append(path)
    return [unit.get_submodule(path) for path in found]


def _noise_like(generator: torch.Generator, value: Tensor) -> Tensor:
    """Normal noise with the type of `value`, of any shape."""
    return torch.randn(value.shape, generator=generator).to(value) if value.is_floating_point() else value


def _mapped(output: Any, draw: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(output, Tensor):
        return draw(output)
    return type(output)(_mapped(part, draw) for part in output) if isinstance(output, tuple | list) else output


def _graph_allows(unit: nn.Module, others: dict[str, Any], shortcut: Finding) -> bool:
    """Whether the input reaches the output through nothing but additions and carriers, or fx cannot trace the module.

    A gate that happens to be open at zero, x * 2 sigmoid(f(x)), passes the probe but not this.
    """
    try:
        graph = fx.Tracer().trace(unit, concrete_args=others)
    except Exception:  # control flow on values, foreign code, ..: fx may fail
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
    """Nodes of the first argument, the tensor or tensors; further arguments are sizes."""
    first = node.args[0] if node.args else node.all_input_nodes
    return [n for n in (first if isinstance(first, list | tuple) else [first]) if isinstance(n, fx.Node)]


def _name(node: fx.Node, unit: nn.Module) -> str:
    if node.op == "call_module":
        return type(unit.get_submodule(str(node.target))).__name__
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
