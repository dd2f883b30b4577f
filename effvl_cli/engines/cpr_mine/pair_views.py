"""From the frames of two clips to what the encoders of several views see of them."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from effvl_cli.data.official_clips import plan_pairs
from effvl_cli.data.video_transforms import ClipAugment
from effvl_cli.data.video_views import make_view
from effvl_cli.engines.cpr_mine.clip_batches import ClipBatch, SizeGroup
from effvl_cli.engines.cpr_mine.encoders import Encoder
from effvl_cli.engines.cpr_mine.held_views import HeldViews
from effvl_cli.techniques.cpr_mine.cascade_moco import ClipViews


class PairViews:
    """Augments the clips of a batch on the device and makes their views.

    Args:
        encoders: that see them, by view.
        trained: view of the one that is trained; it sees both clips, the others the second.
        groups: (M,) of all videos.
        labels: (M,).
        device: of the encoders.
        recipe: of the augmentation: "shapes", or "cpr", that of the official code, where with probability 1/2 both
            clips are the same frames.
        turn_motion: whether a mirrored flow has its sign turned.
        held: views that are already made.
    """

    def __init__(
        self,
        encoders: Mapping[str, Encoder],
        trained: str,
        groups: Tensor,
        labels: Tensor,
        device: torch.device,
        *,
        recipe: Literal["shapes", "cpr"],
        turn_motion: bool,
        held: HeldViews,
    ) -> None:
        self.held = held
        self.trained, self.device, self.recipe = trained, device, recipe
        self.groups, self.labels = groups, labels
        self.views = {view: make_view(view, **encoder.clips.options) for view, encoder in encoders.items()}
        self.length, size = encoders[trained].clips.frames, encoders[trained].clips.size
        self.augment = ClipAugment(size, recipe, turn_motion=turn_motion)

    def __call__(self, batch: ClipBatch) -> ClipViews:
        """Views of a batch."""
        first, second = self._side(batch, 0, [self.trained]), self._side(batch, 1, list(self.views))
        rows = batch.indices
        return ClipViews(
            query=first[self.trained],
            key=second[self.trained],
            partners={view: clips for view, clips in second.items() if view != self.trained},
            clips=rows.to(self.device),
            groups=self.groups[rows].to(self.device),
            labels=self.labels[rows].to(self.device),
        )

    def _side(self, batch: ClipBatch, side: int, views: list[str]) -> dict[str, Tensor]:
        """(B, C, T, S, S) of each view of the first or second clips, in the order of the batch."""
        order = torch.cat([group.rows for group in batch.groups]).argsort().to(self.device)
        parts = [self._group(group, batch.seeds[group.rows], side, views) for group in batch.groups]
        return {view: torch.cat([part[view] for part in parts])[order] for view in views}

    def _group(self, group: SizeGroup, seeds: Tensor, side: int, views: list[str]) -> dict[str, Tensor]:
        rows = torch.arange(len(seeds))
        source, strong = torch.full_like(rows, side), None
        if self.recipe == "cpr":
            plan = plan_pairs(seeds)
            source, strong = plan.source[side], plan.strong[side]
        frames = group.clips[source, rows].to(self.device, non_blocking=True)
        made = {name: self._view(name, frames, group.indices, group.starts[source, rows]) for name in views}
        return self.augment(made, seeds + side, strong)

    def _view(self, name: str, frames: Tensor, indices: Tensor, starts: Tensor) -> Tensor:
        view = self.views[name]
        if self.held.has(view) and int(starts.min()) >= 0:
            return self.held.clips(view, indices, starts, self.length).to(self.device)
        return view(frames)[:, :, : self.length]
