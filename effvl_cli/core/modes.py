"""A module's mode and buffers are state: code that changes them temporarily restores them."""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn


class Buffers:
    """A copy of the buffers of modules, to be restored.

    Args:
        modules: owners of the buffers; buffers that no state dict holds are included, those of parts that say
            `steady_buffers` are not: no forward pass moves them, and they may be as large as the network.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        steady = {
            id(buffer)
            for module in modules
            for part in module.modules()
            if getattr(part, "steady_buffers", False)
            for buffer in part.buffers(recurse=False)
        }
        self.live = [buffer for module in modules for buffer in module.buffers() if id(buffer) not in steady]
        self.kept = [buffer.detach().clone() for buffer in self.live]

    @torch.no_grad()
    def keep(self) -> None:
        """Copy the current values."""
        _copy(self.kept, self.live)

    @torch.no_grad()
    def put_back(self) -> None:
        """Give them back."""
        _copy(self.live, self.kept)


def _copy(targets: list[Tensor], sources: list[Tensor]) -> None:
    if targets:
        torch._foreach_copy_(targets, sources)


@contextlib.contextmanager
def as_found(*modules: nn.Module, training: bool | None = None, buffers: bool = True) -> Iterator[None]:
    """Run the body; afterwards every part of the modules is in the mode that it was in, with the buffers that it had.

    Args:
        modules: what the body works with.
        training: mode for the body; None: leave each part in its own.
        buffers: whether to restore them too; False for a body that is meant to change them.
    """
    parts = [part for module in modules for part in module.modules()]
    modes = [part.training for part in parts]
    saved = Buffers(modules) if buffers else None
    try:
        if training is not None:
            for module in modules:
                module.train(training)
        yield
    finally:
        for part, mode in zip(parts, modes, strict=True):
            part.training = mode
        if saved is not None:
            saved.put_back()
