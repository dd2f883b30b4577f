"""RoIAlign (He et al., arXiv 1703.06870) as torchvision computes it, with a gradient that is faster on a CPU.

torchvision's goes through the samples of every channel one by one. The weights are those of places, the same for all
channels, so that the gradient of a level is a sparse matrix (places x cells) times the gradients of the cells.
"""

from typing import Any

import torch
from torch import Tensor
from torchvision.ops import roi_align


def pooled_from(level: Tensor, rois: Tensor, cells: tuple[int, int], scale: float, ratio: int, aligned: bool) -> Tensor:
    """torchvision's `roi_align`, bit for bit.

    Args:
        level: (B, channels, H, W).
        rois: (R, 5) number of the image and box in its pixels.
        cells: height and width of what is pooled.
        scale: places of the level for a pixel.
        ratio: samples along each side of a cell, from 1.
        aligned: whether coordinates are shifted by half a pixel.

    Returns:
        (R, channels, *cells).
    """
    traced = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    if level.device.type == "cpu" and level.requires_grad and torch.is_grad_enabled() and not traced:
        found: Tensor = _Pooled.apply(level, rois, cells, scale, ratio, aligned)
    else:
        found = roi_align(level, rois, cells, scale, ratio, aligned)
    return found


class _Pooled(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, level: Tensor, rois: Tensor, cells: tuple[int, int], scale: float, ratio: int, aligned: bool
    ) -> Tensor:
        ctx.save_for_backward(rois)
        ctx.shape, ctx.how = level.shape, (scale, ratio, aligned)
        found: Tensor = roi_align(level, rois, cells, scale, ratio, aligned)
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (rois,) = gradients, ctx.saved_tensors
        batch, channels, height, width = ctx.shape
        scale, ratio, aligned = ctx.how
        cells = gradient.shape[2:]
        corners = rois[:, 1:] * scale - 0.5 * aligned
        sides = corners[:, 2:] - corners[:, :2]
        if not aligned:
            sides = sides.clamp(min=1)
        columns, across = _samples(corners[:, 0], sides[:, 0], cells[1], ratio, width)
        rows, down = _samples(corners[:, 1], sides[:, 1], cells[0], ratio, height)
        first = rois[:, 0].long()[:, None, None] * height
        places = ((first + rows)[:, :, None, :, None] * width + columns[:, None, :, None, :]).flatten()
        weights = (down[:, :, None, :, None] * across[:, None, :, None, :]).flatten()
        number = len(rois) * cells[0] * cells[1]
        sources = torch.arange(number).repeat_interleave(len(places) // max(1, number))
        matrix = torch.sparse_coo_tensor(
            torch.stack([places, sources]), weights, (batch * height * width, number), check_invariants=False
        )
        found = matrix @ gradient.permute(0, 2, 3, 1).reshape(number, channels)
        return found.view(batch, height, width, channels).permute(0, 3, 1, 2).contiguous(), *[None] * 5


def _samples(start: Tensor, side: Tensor, cells: int, ratio: int, size: int) -> tuple[Tensor, Tensor]:
    """Where the samples of each cell lie along one axis, and their shares of the mean of the cell.

    Args:
        start: (R,) of the boxes, in places.
        side: (R,) of the boxes.
        cells: of a box.
        ratio: samples of a cell.
        size: places.

    Returns:
        (R, cells, 2 * ratio) int64 places, (R, cells, 2 * ratio) weights of the two places beside each sample.
    """
    steps = (torch.arange(cells * ratio, dtype=start.dtype) + 0.5) / (cells * ratio)
    at = start[:, None] + side[:, None] * steps
    inside = (at >= -1) & (at <= size)
    at = at.clamp(0, size - 1)
    low = at.floor()
    share = at - low
    places = torch.stack([low, (low + 1).clamp(max=size - 1)], -1).long()
    weights = torch.stack([1 - share, share], -1) * (inside / ratio)[..., None]
    shape = (len(start), cells, 2 * ratio)
    return places.view(shape), weights.view(shape)
