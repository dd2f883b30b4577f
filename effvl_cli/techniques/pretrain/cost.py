"""Multiply-adds of a ViT and of a training step, in units of one forward pass of the uncompressed backbone.

The unit is that of arXiv 2410.22364, fig. 1; the counting is ours.
"""

from dataclasses import dataclass

from .tokens import count_kept
from .vit import ViTShape

BACKWARD = 2  # backward passes cost twice the forward pass


def vit_macs(shape: ViTShape, tokens: int, embedded: int, patch: int) -> int:
    """Multiply-adds of one forward pass; norms, softmax, biases and heads are left out.

    Args:
        shape: sizes of the ViT.
        tokens: L, with CLS.
        embedded: patches that are embedded.
        patch: side of a patch, px.
    """
    width = shape.width
    blocks = shape.depth * (12 * width * width * tokens + 2 * width * tokens * tokens)
    return blocks + embedded * 3 * patch * patch * width


def forward_macs(shape: ViTShape, *, patch: int | None = None, keep: float = 1.0, image_size: int | None = None) -> int:
    """Multiply-adds of a forward pass at a patch size and a keep rate; only the kept patches are embedded."""
    patch = patch or shape.patch
    count = count_kept(((image_size or shape.image_size) // patch) ** 2, keep)
    return vit_macs(shape, count + 1, count, patch)


@dataclass(frozen=True)
class Passes:
    """How many passes of each kind one image takes in one step.

    Attributes:
        query: forward passes with gradient, at keep rate keep_q.
        key: forward passes of the key view, at keep rate keep_k.
        key_gradient: whether the key passes have a gradient.
        local: forward passes of local crops, with gradient.
    """

    query: int
    key: int
    key_gradient: bool = False
    local: int = 0


def units_per_sample(passes: Passes, query: float, key: float, local: float = 0.0) -> float:
    """Cost of an image in a step: arguments are the costs of one forward pass of each kind, in units."""
    with_gradient = 1 + BACKWARD
    key_weight = with_gradient if passes.key_gradient else 1
    return with_gradient * (passes.query * query + passes.local * local) + key_weight * passes.key * key
