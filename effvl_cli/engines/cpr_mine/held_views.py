"""Views of small data sets, made once for whole videos in place of once for every clip."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from effvl_cli.data.clips import Frames
from effvl_cli.data.video_views import View

HELD_BYTES = 2**28  # of the frames of a view that are kept in memory
AT_ONCE = 64  # videos


class HeldViews:
    """Frames of views of all videos; of views that are dear to make and whose clips are parts of them.

    Args:
        frames: all of each video, or None where they are not in memory.
    """

    def __init__(self, frames: Sequence[Frames] | None) -> None:
        alike = frames is not None and len({video.shape for video in frames}) == 1
        self.frames = frames if alike else None
        self.made: dict[str, Tensor] = {}

    def has(self, view: View) -> bool:
        """Whether clips of a view can be taken from here."""
        if self.frames is None or not view.local or not view.context:
            return False
        count, height, width, _ = self.frames[0].shape
        size: int = 4 * len(self.frames) * view.channels * count * height * width
        return size <= HELD_BYTES

    def clips(self, view: View, indices: Tensor, starts: Tensor, length: int) -> Tensor:
        """(B, C, T, H, W) of B videos, each from its own first frame on."""
        whole = self._whole(view)
        rows = [whole[index, :, start : start + length] for index, start in zip(indices, starts.tolist(), strict=True)]
        return torch.stack(rows)

    def _whole(self, view: View) -> Tensor:
        """(M, C, n - context, H, W)."""
        if view.name not in self.made:
            assert self.frames is not None
            parts = [
                view(torch.from_numpy(np.stack(self.frames[start : start + AT_ONCE])))
                for start in range(0, len(self.frames), AT_ONCE)
            ]
            self.made[view.name] = torch.cat(parts)
        return self.made[view.name]
