"""Token dropout for Vision Transformers. B images, N patches, K kept patches, P prefix tokens, D width.

Random patches leave the sequence before the first block (Li et al., FLIP, arXiv 2212.00794).
"""

from typing import Protocol

import torch
from torch import Tensor


class Tower(Protocol):
    """The parts of an image tower that token dropout needs."""

    num_prefix: int
    depth: int

    def embed(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, P+N, D)."""

    def block(self, index: int, states: Tensor) -> Tensor:
        """One block, (B, n, D) to the same."""

    def pool(self, states: Tensor) -> Tensor:
        """(B, n, D) to (B, E)."""


def count_kept(num_patches: int, keep: float) -> int:
    """Patches kept at a keep rate: rounded half up, at least one, the same for every image of a batch."""
    return max(1, int(keep * num_patches + 0.5))


def sequence_length(num_patches: int, keep: float) -> int:
    """Length of the sequence at a keep rate, with CLS."""
    return count_kept(num_patches, keep) + 1


def random_tokens(count: int, num_patches: int, num_keep: int, generator: torch.Generator) -> Tensor:
    """Patch ids kept at random, without replacement, for each of `count` images.

    Returns:
        (count, num_keep) int64 on the generator's device, ascending in each row.
    """
    noise = torch.rand(count, num_patches, generator=generator, device=generator.device)
    return noise.argsort(1)[:, :num_keep].sort(1).values


def encode_kept(tower: Tower, images: Tensor, kept: Tensor) -> Tensor:
    """Embed images from a subset of their patches; dropped ones cost nothing after the patch embedding.

    Args:
        tower: the image tower.
        images: (B, 3, H, W).
        kept: (B, K) patch ids.

    Returns:
        (B, E), not normalised.
    """
    states = tower.embed(images)
    prefix, patches = states[:, : tower.num_prefix], states[:, tower.num_prefix :]
    states = torch.cat([prefix, patches.take_along_dim(kept[..., None], 1)], 1)
    for index in range(tower.depth):
        states = tower.block(index, states)
    return tower.pool(states)
