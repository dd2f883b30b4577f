"""From the frames of two clips to what the encoders of several views see of them."""

from collections.abc import Mapping

import torch
from torch import Tensor

from effvl_cli.data.video_transforms import SmallClips
from effvl_cli.data.video_views import make_view
from effvl_cli.engines.cpr_mine.clip_batches import ClipBatch
from effvl_cli.engines.cpr_mine.encoders import Encoder
from effvl_cli.techniques.cpr_mine.cascade_moco import ClipViews


class PairViews:
    """Augments the clips of a batch on the device and makes their views.

    Args:
        encoders: that see them, by view.
        trained: view of the one that is trained; it sees both clips, the others the second.
        groups: (M,) of all videos.
        labels: (M,).
        device: of the encoders.
    """

    def __init__(
        self, encoders: Mapping[str, Encoder], trained: str, groups: Tensor, labels: Tensor, device: torch.device
    ) -> None:
        self.encoders, self.trained, self.device = encoders, trained, device
        self.groups, self.labels = groups, labels
        self.views = {view: make_view(view, **encoder.clips.options) for view, encoder in encoders.items()}
        self.augment = SmallClips(encoders[trained].clips.size)

    def __call__(self, batch: ClipBatch) -> ClipViews:
        """Views of a batch."""
        first = self._views(batch.clips[0], batch.noise[0], [self.trained])
        second = self._views(batch.clips[1], batch.noise[1], list(self.views))
        rows = batch.indices
        return ClipViews(
            query=first[self.trained],
            key=second[self.trained],
            partners={view: clips for view, clips in second.items() if view != self.trained},
            clips=rows.to(self.device),
            groups=self.groups[rows].to(self.device),
            labels=self.labels[rows].to(self.device),
        )

    def _views(self, frames: Tensor, noise: Tensor, views: list[str]) -> dict[str, Tensor]:
        frames = frames.to(self.device, non_blocking=True)
        length = self.encoders[self.trained].clips.frames
        made = {view: self.views[view](frames)[:, :, :length] for view in views}
        found: dict[str, Tensor] = self.augment(made, noise, [view for view in views if self.views[view].motion])
        return found
