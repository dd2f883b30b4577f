"""Crops of test clips: the centre, the corners, and the mirror images of all five. B clips, C channels, T frames."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Crops = Literal["center", "five", "ten"]
COUNTS = {"center": 1, "five": 5, "ten": 10}


def crops_of(clips: Tensor, side: int, size: int, crops: Crops, *, flow: bool = False) -> Tensor:
    """Squares cut from clips and resized, as CoCLR tests (in its code `eval/main_classifier.py`).

    Args:
        clips: (B, C, T, H, W) floating point.
        side: of the squares in px; the shorter side of the clips if that is less.
        size: of the result in px.
        crops: the centre, then the corners, then all of them mirrored.
        flow: whether the first channel is a horizontal motion, whose sign changes in a mirror.

    Returns:
        (K, B, C, T, size, size), K = 1, 5 or 10.
    """
    height, width = clips.shape[-2:]
    side = min(side, height, width)
    down, right = height - side, width - side
    places = [(round(down / 2), round(right / 2)), (0, 0), (0, right), (down, 0), (down, right)]
    count = 1 if crops == "center" else 5
    found = torch.stack(
        [resized(clips[..., top : top + side, left : left + side], size) for top, left in places[:count]]
    )
    if crops != "ten":
        return found
    mirrored = found.flip(-1)
    if flow:
        mirrored[:, :, 0] = -mirrored[:, :, 0]
    return torch.cat([found, mirrored])


def resized(clips: Tensor, size: int) -> Tensor:
    """(B, C, T, H, W) to (B, C, T, size, size), bicubic with antialiasing; clips of that size stay as they are."""
    if clips.shape[-2:] == (size, size):
        return clips
    flat = clips.transpose(1, 2).flatten(0, 1)
    small = F.interpolate(flat, (size, size), mode="bicubic", align_corners=False, antialias=True)
    found: Tensor = small.unflatten(0, (clips.shape[0], clips.shape[2])).transpose(1, 2)
    return found
