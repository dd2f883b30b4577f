"""Parameters and multiply-adds."""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from effvl_cli.core.modes import as_found


def count_parameters(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in module.parameters())


def count_macs(module: nn.Module, *inputs: Tensor | Sequence[Tensor]) -> int:
    """Multiply-adds of a forward pass in evaluation mode: half of torch's FLOP count; the module stays as it is.

    The counter does not see fused attention, in some versions of torch not even in training: it is computed by
    plain products while counting.
    """
    plain = sdpa_kernel(SDPBackend.MATH)
    quiet = as_found(module, training=False)
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = _Untracked()  # type: ignore[assignment]
    with quiet, unfused_attention(), plain, torch.enable_grad(), counter:
        module(*inputs)
    found: int = counter.get_total_flops() // 2
    return found


class _Untracked(contextlib.nullcontext[None]):
    """Counts of the whole alone: the hooks that give them by modules take a third of the time."""

    parents = ("Global",)


@contextlib.contextmanager
def unfused_attention() -> Iterator[None]:
    """Run the body without the fused inference path of `nn.MultiheadAttention`."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
