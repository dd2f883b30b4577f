"""Pictures of what a pruned tower keeps: dropped patches are dim and hatched, merged ones outlined.

Pictures are (H, W, 3) uint8; the patch grid has `grid` rows and columns, N patches in raster order.
"""

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]

SHOWN_SIDE = 192  # pixels that a picture is enlarged to, so that hatching and outlines are finer than its patches
DIM = 0.35  # brightness that a dropped patch keeps, without its colour
HATCH = 120  # gray of the lines over it, and
STEP = 3  # of them across a patch
OUTLINE = (255, 255, 255)


def enlarged(pixels: Picture) -> Picture:
    """The picture with whole pixels repeated until it is `SHOWN_SIDE` high or more."""
    factor = max(1, -(-SHOWN_SIDE // pixels.shape[0]))
    return pixels.repeat(factor, 0).repeat(factor, 1)


def dropped(pixels: Picture, kept: NDArray[np.int64], grid: tuple[int, int]) -> Picture:
    """Patches that are not in `kept` (K,) become dark, grey and hatched, unlike any natural patch."""
    mask = np.ones(grid[0] * grid[1], bool)
    mask[kept] = False
    out = enlarged(pixels)
    where = _by_pixel(mask.astype(np.int64), grid, out.shape[:2]) == 1
    rows, columns = np.indices(out.shape[:2])
    period = max(3, out.shape[0] // grid[0] // STEP)
    lines = (rows + columns) % period < max(1, period // 8)
    gray = (DIM * out.mean(2)).astype(np.uint8)
    hatched = np.where(lines, np.uint8(HATCH), gray)
    return np.where(where[..., None], hatched[..., None], out)


def merged(pixels: Picture, groups: NDArray[np.int64], grid: tuple[int, int]) -> Picture:
    """Patches of one token, (N,) equal numbers in `groups`, get their mean colour and an outline.

    A patch that is a token by itself stays unchanged.
    """
    out = enlarged(pixels)
    groups = np.unique(groups, return_inverse=True)[1].reshape(-1)
    token = _by_pixel(groups, grid, out.shape[:2])
    sizes = np.bincount(groups)
    inside = token >= 0
    counts = np.bincount(token[inside], minlength=len(sizes)).clip(1)
    means = np.stack([np.bincount(token[inside], out[..., c][inside], len(sizes)) / counts for c in range(3)], 1)
    joined = inside & (sizes[token] > 1)
    out = np.where(joined[..., None], means[token].astype(np.uint8), out)
    edges = np.zeros(token.shape, bool)
    edges[1:] |= token[1:] != token[:-1]
    edges[:, 1:] |= token[:, 1:] != token[:, :-1]
    return np.where(edges[..., None], np.array(OUTLINE, np.uint8), out)


def _by_pixel(values: NDArray[np.int64], grid: tuple[int, int], size: tuple[int, ...]) -> NDArray[np.int64]:
    """(H, W) of each patch's value (N,); -1 where the last rows and columns of a picture belong to no patch."""
    height, width = size[0] // grid[0], size[1] // grid[1]
    full = np.kron(values.reshape(grid), np.ones((height, width), np.int64))
    return np.pad(full, ((0, size[0] - full.shape[0]), (0, size[1] - full.shape[1])), constant_values=-1)
