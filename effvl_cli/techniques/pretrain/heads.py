"""Projection heads."""

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def projector(widths: Sequence[int], *, last_norm: bool = True, last_affine: bool = False) -> nn.Sequential:
    """Linear layers without bias, each with batch norm, ReLU between them (MoCo-v3, arXiv 2104.02057; SimCLR).

    Args:
        widths: input, hidden and output widths.
        last_norm: batch norm after the last layer.
        last_affine: whether that batch norm has a gain and an offset.
    """
    layers: list[nn.Module] = []
    pairs = list(itertools.pairwise(widths))
    for index, (before, after) in enumerate(pairs):
        layers.append(nn.Linear(before, after, bias=False))
        if index < len(pairs) - 1:
            layers += [nn.BatchNorm1d(after), nn.ReLU()]
        elif last_norm:
            layers.append(nn.BatchNorm1d(after, affine=last_affine))
    return nn.Sequential(*layers)


class DinoHead(nn.Module):
    """Three layers with GELU, a normalised bottleneck, and prototypes of unit norm (arXiv 2104.14294).

    Args:
        width: width of the features.
        hidden: width of the MLP's hidden layers.
        bottleneck: width of the normalised embedding.
        prototypes: K, number of outputs.
    """

    def __init__(self, width: int, hidden: int, bottleneck: int, prototypes: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, bottleneck)
        )
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.prototypes = nn.Parameter(torch.empty(prototypes, bottleneck))
        nn.init.trunc_normal_(self.prototypes, std=0.02)

    def forward(self, features: Tensor) -> Tensor:
        """(B, D) to (B, K) cosines with the prototypes."""
        return F.linear(self.embed(features), F.normalize(self.prototypes, dim=1))

    def embed(self, features: Tensor) -> Tensor:
        """(B, D) to the normalised bottleneck (B, E)."""
        return F.normalize(self.mlp(features), dim=1)


class LinearHeads(nn.Module):
    """G linear classifiers of the same features, trained side by side at several rates; ours.

    Args:
        count: G.
        width: D of the features.
        classes: C.
    """

    def __init__(self, count: int, width: int, classes: int) -> None:
        super().__init__()
        layers = [nn.Linear(width, classes) for _ in range(count)]
        for head in layers:
            nn.init.normal_(head.weight, std=0.01)
            nn.init.zeros_(head.bias)
        self.heads = nn.ModuleList(layers)

    def forward(self, features: Tensor) -> Tensor:
        """(B, D) to (G, B, C)."""
        return torch.stack([head(features) for head in self.heads])
