"""Modules that run their children one after another, how the children are named, and evaluation mode.

Ours: part of the block removal of arXiv 2312.16904, which the paper does by hand for each architecture.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn

_NUMBERED = re.compile(r"(.*?)(\d+)")


def runs_children(module: nn.Module) -> bool:
    """Whether a module is likely to loop over its children, so that one can be left out.

    Torch's containers do, and probably a module that has no own tensors but several children of one class (timm's
    RegNet registers the blocks of a stage as b1, b2, ..).
    """
    if isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict):
        return True
    children = list(module.children())
    owns = any(True for _ in module.parameters(recurse=False)) or any(True for _ in module.buffers(recurse=False))
    return len(children) > 1 and len({type(child) for child in children}) == 1 and not owns


def split_path(network: nn.Module, path: str) -> tuple[nn.Module, str]:
    """Parent of a module, and the module's name in it.

    Raises:
        ValueError: the network has no such module, or it is the network itself.
    """
    parent, _, name = path.rpartition(".")
    try:
        network.get_submodule(path)
    except AttributeError as error:
        raise ValueError(f"the network has no module {path!r}") from error
    if not name:
        raise ValueError("the path names the whole network, not a module in it")
    return network.get_submodule(parent), name


def prefix_of(name: str) -> str | None:
    """A name without the number at its end, e.g. "encoder_layer_" for "encoder_layer_3"; None where it has none."""
    match = _NUMBERED.fullmatch(name)
    return match[1] if match else None


def set_children(container: nn.Module, children: Mapping[str, nn.Module]) -> None:
    """Give a container these children in this order."""
    children = dict(children)  # may be a view of what is cleared
    for name in list(dict(container.named_children())):
        delattr(container, name)
    for name, child in children.items():
        container.add_module(name, child)


def delete_child(container: nn.Module, name: str) -> None:
    """Delete a child; later numbered children with the same prefix are renumbered."""
    children = dict(container.named_children())
    prefix = prefix_of(name)
    run = [other for other in children if prefix is not None and prefix_of(other) == prefix]
    del children[name]
    names = iter(run)
    set_children(container, {next(names) if old in run else old: child for old, child in children.items()})


@contextmanager
def evaluating(network: nn.Module, *, buffers: bool = True) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards each module is in the mode that it was in.

    Args:
        network: to observe.
        buffers: whether to restore buffers that changed (a module may count its calls); False lets them change.
    """
    modes = [(module, module.training) for module in network.modules()]
    live = list(network.buffers()) if buffers else []
    kept = [buffer.detach().clone() for buffer in live]
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
        with torch.no_grad():
            for buffer, value in zip(live, kept, strict=True):
                buffer.copy_(value)
