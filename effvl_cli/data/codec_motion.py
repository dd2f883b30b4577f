"""Motion that the codec of a video has stored for its own use, on a grid of cells of 8 px."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from effvl_cli.data.clips import MOTION_BLOCK, Motion
from effvl_cli.data.video import VideoReader


def read_motion(reader: VideoReader, numbers: NDArray[np.int64]) -> Motion:
    """(T, H / 8, W / 8, 2) motion from each of T frames to the next one of the video, px to the right and down.

    It is what frame n + 1 says of frame n. Blocks without a vector keep the motion of the frame before; what is before
    the last key frame up to the first of the frames counts as still, so that it does not matter where decoding begins.
    After the last frame of the video comes its own motion once more. Codecs do not say how far away the frame is that
    they predict from: with B-frames, motion may be over several frames.

    Args:
        reader: of the video.
        numbers: (T,) of the frames, ascending.

    Raises:
        BadClipError: the video cannot be read.
    """
    index = reader.index
    first, last = int(numbers[0]), min(int(numbers[-1]) + 1, index.frames - 1)
    begin = max((key.number for key in index.keys if key.number <= first), default=0)
    grid = _still(reader)
    found = np.zeros((len(numbers), *_upright(grid, index.rotation).shape), dtype=np.float32)
    for number, frame in reader.numbered(begin, last, motion=True):
        if number > begin:
            _write(grid, frame)
        places = (numbers + 1).clip(max=index.frames - 1) == number
        if places.any():
            found[places] = _upright(grid, index.rotation)
    return found * np.float32(reader.scale)


def _still(reader: VideoReader) -> Motion:
    """(h, w, 2) zeros for the stored, not yet rotated picture."""
    height, width = reader.index.height, reader.index.width
    if reader.index.rotation // 90 % 2:
        height, width = width, height
    return np.zeros((-(-height // MOTION_BLOCK), -(-width // MOTION_BLOCK), 2), dtype=np.float32)


def _write(grid: Motion, frame: Any) -> None:
    """Put a frame's vectors into the cells that its blocks cover.

    A vector points from a block to where it came from (source < 0), or to where it goes (source > 0).
    """
    data = frame.side_data.get("MOTION_VECTORS")
    if data is None:
        return
    vectors = data.to_ndarray()
    scale = np.where(vectors["source"] < 0, -1.0, 1.0) / np.maximum(vectors["motion_scale"], 1)
    moved = np.stack([vectors["motion_x"] * scale, vectors["motion_y"] * scale], 1).astype(np.float32)
    corners = [
        (vectors[f"dst_{axis}"].astype(int), vectors[side].astype(int)) for axis, side in (("y", "h"), ("x", "w"))
    ]
    (top, bottom), (left, right) = (
        ((centre - size // 2) // MOTION_BLOCK, -(-(centre + size // 2) // MOTION_BLOCK)) for centre, size in corners
    )
    for row in range(int((bottom - top).max(initial=0))):
        for column in range(int((right - left).max(initial=0))):
            y, x = top + row, left + column
            inside = (y < bottom) & (x < right) & (y >= 0) & (x >= 0) & (y < grid.shape[0]) & (x < grid.shape[1])
            grid[y[inside], x[inside]] = moved[inside]


def _upright(grid: Motion, rotation: int) -> Motion:
    """A grid rotated as the picture is, and its vectors with it."""
    turned = grid
    for _ in range(rotation // 90 % 4):  # a quarter to the left: what went right goes up
        turned = np.rot90(turned)
        turned = np.stack([turned[..., 1], -turned[..., 0]], -1)
    return turned
