"""Batch-norm statistics that a network would have without a unit.

They are means over some training batches (momentum None), for the norms that are called after the unit; those before
it keep their inputs. So candidates still share the computations before their units when they are scored.

Statistics over batches in place of moving averages: Wu and Johnson, "Rethinking Batch in BatchNorm", arXiv
2105.07576.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from .containers import evaluating
from .surgery import bypassed
from .trace import Forward, patched
from .unit import Unit


def recalibrated(network: nn.Module, units: Sequence[Unit], batches: Iterable[Tensor]) -> list[dict[str, Tensor]]:
    """Buffers of the batch norms after each unit, estimated without that unit.

    Args:
        network: put into evaluation mode meanwhile; not changed.
        units: each is left out once.
        batches: at least one, images (B, 3, H, W); iterated once.

    Returns:
        For each unit, from the name of a buffer to its value.

    Raises:
        ValueError: the network has no batch norm with statistics.
    """
    norms = _norms(network)
    behind: list[list[str]] = []
    found: list[dict[str, Tensor]] = []
    for images in batches:
        if not behind:
            behind = _behind(network, units, norms, images)
            found = [_fresh_statistics(norms, paths) for paths in behind]
        for unit, paths, buffers in zip(units, behind, found, strict=True):
            with evaluating(network), bypassed(network, [unit]), _estimating([norms[path] for path in paths]):
                functional_call(network, buffers, (images,))
    return found


def recalibrate(network: nn.Module, batches: Iterable[Tensor]) -> None:
    """Re-estimate the statistics of all batch norms, in place; nothing else is in training mode meanwhile.

    Args:
        network: owner of the norms.
        batches: at least one, images (B, 3, H, W).

    Raises:
        ValueError: the network has no batch norm with statistics.
    """
    norms = list(_norms(network).values())
    with evaluating(network, buffers=False), _estimating(norms):
        for norm in norms:
            norm.reset_running_stats()  # type: ignore[operator]
        for images in batches:
            network(images)


def _norms(network: nn.Module) -> dict[str, nn.Module]:
    found: dict[str, nn.Module] = {
        path: module
        for path, module in network.named_modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats
    }
    if not found:
        raise ValueError("the network has no batch norm with statistics")
    return found


def _behind(network: nn.Module, units: Sequence[Unit], norms: dict[str, nn.Module], images: Tensor) -> list[list[str]]:
    """Paths of the norms called after each unit and not in it, each once; images (B, 3, H, W)."""
    order: list[str] = []

    def note(path: str, forward: Forward, *args: Any, **kwargs: Any) -> Any:
        order.append(path)
        return forward(*args, **kwargs)

    watched = {**{unit.path: network.get_submodule(unit.path) for unit in units}, **norms}
    with evaluating(network), patched({m: partial(note, path, m.forward) for path, m in watched.items()}):
        network(images[:2])
    return [
        list(
            dict.fromkeys(
                path
                for path in order[order.index(unit.path) :]
                if path in norms and not f"{path}.".startswith(f"{unit.path}.")
            )
        )
        for unit in units
    ]


def _fresh_statistics(norms: dict[str, nn.Module], paths: Sequence[str]) -> dict[str, Tensor]:
    """New buffers, as after `reset_running_stats`, for norms of C channels, (C,) each; the network keeps its own."""
    found = {f"{path}.{name}": buffer for path in paths for name, buffer in norms[path].named_buffers()}
    return {name: buffer.new_full(buffer.shape, int(name.endswith("running_var"))) for name, buffer in found.items()}


@contextmanager
def _estimating(norms: Sequence[nn.Module]) -> Iterator[None]:
    """Let norms average the statistics of their batches; `evaluating` ends it."""
    momenta = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.momentum, norm.training = None, True  # type: ignore[assignment]  # torch: a plain mean of batches
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
