"""Blocks of a vision transformer as two residual units each: x + attention(x), then x + mlp(x).

Ours; a transformer's block is two residual units (arXiv 2010.11929, eqs. 2 and 3).
"""

import copy
from itertools import chain

import torch
from torch import Tensor, nn

from .containers import set_children
from .surgery import FAILURES

HALVED = 1e-4  # tolerance, of the largest logit: halves may add in another order
PROBED = 0.05  # standard deviation of the noise

# Children of a block (torchvision's EncoderBlock, timm's Block), in the order in which each branch calls them.
_LAYOUTS = (
    (("ln_1", "self_attention", "dropout"), ("ln_2", "mlp")),
    (("norm1", "attn", "ls1", "drop_path1"), ("norm2", "mlp", "ls2", "drop_path2")),
)


class Half(nn.Module):
    """x + the parts, one after another, of x; the parts keep their names and their modes."""

    def __init__(self, parts: dict[str, nn.Module], *, training: bool) -> None:
        super().__init__()
        self.training = training
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) to (B, N, D)."""
        y = x
        for part in self.children():
            y = part(y, y, y, need_weights=False)[0] if isinstance(part, nn.MultiheadAttention) else part(y)
        return x + y


def split_halves(network: nn.Module) -> int:
    """Replace each block NAME, in place, by two halves, NAME_attention and NAME_mlp.

    The caller must check that the network still computes the same: blocks are recognised by their children only.

    Returns:
        Number of blocks that were split.
    """
    containers = [module for module in network.modules() if any(map(_layout, module.children()))]
    count = 0
    for container in containers:
        children: dict[str, nn.Module] = {}
        for name, child in container.named_children():
            layout = _layout(child)
            count += layout is not None
            children |= _halves(name, child, layout) if layout else {name: child}
        set_children(container, children)
    return count


def _halves(name: str, block: nn.Module, layout: tuple[tuple[str, ...], ...]) -> dict[str, nn.Module]:
    attention, mlp = (Half({part: getattr(block, part) for part in parts}, training=block.training) for parts in layout)
    return {f"{name}_attention": attention, f"{name}_mlp": mlp}


def _layout(block: nn.Module) -> tuple[tuple[str, ...], ...] | None:
    names = {name for name, _ in block.named_children()}
    owned = any(True for _ in block.parameters(recurse=False))
    return next((layout for layout in _LAYOUTS if set(chain(*layout)) == names and not owned), None)


def unlike_halves(network: nn.Module, images: Tensor, generator: torch.Generator) -> str:
    """Why the halves of a network's blocks do not compute the same; empty where they do.

    A copy with noise added to its weights is tested: at initialisation some heads are zero and some branches nearly so.

    Args:
        network: whole blocks.
        images: (B, 3, H, W) that it takes.
        generator: draws the noise; on the CPU.
    """
    probe = copy.deepcopy(network).eval()
    with torch.no_grad():
        for parameter in probe.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter), alpha=PROBED)
        expected = probe(images)
        if not split_halves(probe):
            return "it has none"
        try:
            found = probe(images)
        except torch.OutOfMemoryError:
            raise
        except FAILURES as error:
            return f"their halves cannot be run: {error}".splitlines()[0]
    limit = HALVED * float(expected.abs().max())
    return "" if bool(((found - expected).abs() <= limit).all()) else "their halves give different logits"
