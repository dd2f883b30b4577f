"""Patch sizes other than the trained one: kernels and positions resized on the fly (FlexiViT, arXiv 2212.08013)."""

from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .precision import full

PatchResize = Literal["pi", "bilinear"]
_FREQUENCY_BASE = 10000.0


@lru_cache(maxsize=64)
def resize_matrix(old: int, new: int) -> Tensor:
    """The matrix R of the bilinear resize (no antialias) of an old x old patch to new x new.

    Returns:
        (new^2, old^2) float64 with `resize(z) = R z` for a flattened patch z.
    """
    units = torch.eye(old * old, dtype=torch.float64).reshape(old * old, 1, old, old)
    resized = F.interpolate(units, size=(new, new), mode="bilinear", align_corners=False, antialias=False)
    return resized.reshape(old * old, new * new).T.contiguous()


@lru_cache(maxsize=64)
def pseudo_inverse(old: int, new: int) -> Tensor:
    """pinv(R^T), so that `w_new = pseudo_inverse(old, new) @ w_old` (arXiv 2212.08013).

    Returns:
        (new^2, old^2) float64.
    """
    found: Tensor = torch.linalg.pinv(resize_matrix(old, new).T)
    return found


@lru_cache(maxsize=64)
def _cached_matrix(old: int, new: int, mode: PatchResize, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(new^2, old^2) matrix that resizes a flattened kernel, made once for each device and type."""
    with torch.inference_mode(False):  # the first use may be an evaluation, the next a training step
        matrix = pseudo_inverse(old, new) if mode == "pi" else resize_matrix(old, new) * (old / new) ** 2
        return matrix.to(device, dtype)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # a compiled step would invert the matrix
def _kernel_matrix(old: int, new: int, mode: PatchResize, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The same, (new^2, old^2), as a constant."""
    return _cached_matrix(old, new, mode, device, dtype)


def resize_kernel(weight: Tensor, patch: int, mode: PatchResize = "pi") -> Tensor:
    """A patch-embedding kernel for another patch size, differentiable in `weight`.

    `pi` solves <w_new, R z> = <w, z> for every patch z: exactly when the patch grows, by least squares when it shrinks.
    `bilinear` resizes the kernel as an image, scaled so that constant patches keep their response.

    Args:
        weight: (D, 3, p0, p0).
        patch: the new side, px.
        mode: see above.

    Returns:
        (D, 3, patch, patch); `weight` itself when the side stays.
    """
    old = weight.shape[-1]
    if patch == old:
        return weight
    with torch.autocast(weight.device.type, enabled=False):  # never in half precision
        flat = full(weight).reshape(-1, old * old)
        resized = flat @ _kernel_matrix(old, patch, mode, flat.device, flat.dtype).T
    found: Tensor = resized.reshape(*weight.shape[:2], patch, patch)
    return found


def grid_coordinates(grid: int, base_grid: int) -> Tensor:
    """Centres of the cells of a grid, in cells of the base grid: 0, 1, .. for the base grid itself; float64 (grid,)."""
    return (torch.arange(grid, dtype=torch.float64) + 0.5) * (base_grid / grid) - 0.5


def sincos_positions(grid: int, base_grid: int, width: int, *, rows_first: bool = False) -> Tensor:
    """Fixed two-dimensional sine-cosine positions (MoCo-v3, arXiv 2104.02057), for any grid over the same picture.

    Args:
        grid: cells per side.
        base_grid: cells per side of the grid whose coordinates are 0, 1, ...
        width: D, a multiple of 4.
        rows_first: the first half encodes rows, as in the code that MoCo-v3's authors released; else columns.

    Returns:
        (grid^2, D) float32, row by row.
    """
    steps = torch.arange(width // 4, dtype=torch.float64) / (width // 4)
    angles = grid_coordinates(grid, base_grid)[:, None] / _FREQUENCY_BASE**steps
    column = angles.repeat(grid, 1)
    row = angles.repeat_interleave(grid, 0)
    first, second = (row, column) if rows_first else (column, row)
    return torch.cat([first.sin(), first.cos(), second.sin(), second.cos()], 1).float()


def sincos_order(table: Tensor, grid: int) -> bool | None:
    """Whether positions (grid^2, D) are `sincos_positions` with the rows first; None: they are no such table.

    Other code computes it in float32 and in another order, so equality is to within 1e-4.
    """
    if len(table) != grid * grid or table.shape[1] % 4:
        return None
    for rows_first in (False, True):
        ours = sincos_positions(grid, grid, table.shape[1], rows_first=rows_first).to(table.device)
        if torch.allclose(table.float(), ours, rtol=0, atol=1e-4):
            return rows_first
    return None


def resample_positions(table: Tensor, grid: int) -> Tensor:
    """Learned positions for another grid, by antialiased bicubic interpolation.

    Args:
        table: (g0^2, D).
        grid: cells per side.

    Returns:
        (grid^2, D).
    """
    base = int(len(table) ** 0.5)
    image = table.T.reshape(1, -1, base, base)
    resized = F.interpolate(image, size=(grid, grid), mode="bicubic", align_corners=False, antialias=True)
    return resized.reshape(-1, grid * grid).T
