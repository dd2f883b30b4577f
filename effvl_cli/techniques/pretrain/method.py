"""What MoCo-v3, SimCLR and DINO have in common: networks, a loss of compressed views, a cost.

Projection heads with batch norm run on features gathered from all processes, so that their statistics, and negatives,
are those of one process with the whole batch. The heads are a small part of the work.

Views whose sequences are shortened: arXiv 2410.22364; the cost of a step and the gathering are ours.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from .cost import Passes
from .vit import VisionTransformer

Gather = Callable[[Tensor], Tensor]
"""Joins the rows of all processes in rank order, with gradient; DDP's mean is then the gradient of the one loss."""


def alone(rows: Tensor) -> Tensor:
    """The gather of a single process: (B, D) to the same."""
    return rows


@dataclass(frozen=True)
class View:
    """One augmented view of a batch, as an encoder takes it.

    Attributes:
        images: (B, 3, S, S), normalised.
        patch: side of a patch, px.
        kept: (B, K) patch ids, or None for all.
        scales: (depth, 2, B) factors of the residual branches, or None.
    """

    images: Tensor
    patch: int
    kept: Tensor | None = None
    scales: Tensor | None = None

    @property
    def length(self) -> tuple[int, int, int]:
        """Sizes by which views may share one forward pass."""
        kept = 0 if self.kept is None else self.kept.shape[1]
        return self.images.shape[-1], self.patch, kept


@dataclass(frozen=True)
class Views:
    """The views of a step.

    Attributes:
        query: with gradient, at keep rate keep_q; DINO's are its global crops, as the student sees them.
        key: the same images at keep rate keep_k.
        local: DINO's local crops.
    """

    query: Sequence[View]
    key: Sequence[View]
    local: Sequence[View] = ()


@dataclass(frozen=True)
class MethodLoss:
    """Loss of a step, figures to log, and a sample of embeddings (B, E) to watch for collapse."""

    loss: Tensor
    embeddings: Tensor
    logs: Mapping[str, Tensor] = field(default_factory=dict)


class Method(nn.Module):
    """Networks of a method; the state dict is all that a resume needs."""

    backbone: VisionTransformer
    key_gradient: ClassVar[bool] = False
    shuffles_views: ClassVar[bool] = False

    @property
    def passes(self) -> Passes:
        """Forward passes for one image in one step."""
        raise NotImplementedError

    @property
    def result(self) -> VisionTransformer:
        """The backbone that users get."""
        return self.backbone

    def loss(self, views: Views, gather: Gather, t: float) -> MethodLoss:
        """Loss of the whole batch, from this process's views."""
        raise NotImplementedError

    def after_backward(self, t: float) -> None:
        """Called once between the backward passes and the update."""

    def after_step(self, t: float, ahead: float) -> None:
        """Called once after the update of a step that began at t; the next one begins at `ahead`."""


def encode(backbone: nn.Module, views: Sequence[View]) -> list[Tensor]:
    """Features (B, D) of each view; views of one length go through the backbone together."""
    features: dict[int, Tensor] = {}
    for length in dict.fromkeys(view.length for view in views):
        same = [index for index, view in enumerate(views) if view.length == length]
        first = views[same[0]]
        joined = backbone(
            torch.cat([views[i].images for i in same]),
            kept=_joined([views[i].kept for i in same], 0),
            patch=first.patch,
            scales=_joined([views[i].scales for i in same], 2),
        )
        features |= dict(zip(same, joined.chunk(len(same)), strict=True))
    return [features[index] for index in range(len(views))]


def _joined(parts: Sequence[Tensor | None], dim: int) -> Tensor | None:
    """Tensors of the views as one along `dim`, e.g. (B, N, D) twice to (2B, N, D); None where they have none."""
    present = [part for part in parts if part is not None]
    return torch.cat(present, dim) if present else None


def dropped_pixels(view: View) -> Tensor:
    """(B, 1, S, S) bool: pixels of patches that are not kept."""
    count, _, side, _ = view.images.shape
    grid = side // view.patch
    hidden = torch.zeros(count, grid * grid, dtype=torch.bool, device=view.images.device)
    if view.kept is not None:
        hidden = torch.ones_like(hidden).scatter_(1, view.kept, False)
    cells = hidden.reshape(count, 1, grid, grid)
    return cells.repeat_interleave(view.patch, 2).repeat_interleave(view.patch, 3)
