"""Augmented clips: one draw holds for all frames of a clip and for all of its views, so that they stay registered.

Each clip has a seed of its own, from which all of its draws follow; so batch size, processes and resumption do not
change it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from effvl_cli.data.official_clips import OfficialClips
from effvl_cli.data.video_views import is_motion

Recipe = Literal["shapes", "cpr"]

NOISE = 11  # random numbers that a clip takes
_LEFT, _TOP, _GRAY, _GAIN, _OFFSET, _FLOW_GAIN, _STATIC = 0, 1, 2, slice(3, 6), slice(6, 9), 9, 10
_GRAY_WEIGHTS = (0.2989, 0.587, 0.114)


def clip_noise(seeds: Tensor) -> Tensor:
    """(B, NOISE) float64 numbers in [0, 1), each row from its seed (B,) int64."""
    rows = [
        torch.rand(NOISE, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) for seed in seeds.tolist()
    ]
    return torch.stack(rows)


class ClipAugment:
    """Augmentation of clips for training.

    Args:
        size: side of the crop in px.
        recipe: `shapes`: crop, gain and offset, for moving shapes, whose left and right are labels; `cpr`: that of the
            official code.
        turn_motion: whether a mirror changes the sign of the motion to the right.
    """

    def __init__(self, size: int, recipe: Recipe = "shapes", *, turn_motion: bool = True) -> None:
        self.recipe = recipe
        self.small, self.official = SmallClips(size), OfficialClips(size, turn_motion)

    def __call__(self, views: Mapping[str, Tensor], seeds: Tensor, strong: Tensor | None = None) -> dict[str, Tensor]:
        """Augment the views of B clips.

        Args:
            views: (B, C, T, H, W) by the name of the view.
            seeds: (B,) int64 of the draws.
            strong: (B,) bool: with `cpr`, which clips are augmented strongly; None: all.

        Returns:
            (B, C, T, S, S) by the name of the view.
        """
        if self.recipe == "shapes":
            return self.small(views, clip_noise(seeds))
        return self.official(views, seeds, strong)


@dataclass(frozen=True)
class SmallClips:
    """Crop, gain and offset, for tiny generated videos whose left and right are labels.

    Attributes:
        size: S, side of the crop.
        gain: of colours, each channel 1 -+ this.
        offset: standard deviation of what is added to each channel.
        gray_share: share of the clips that become grey.
        flow_gain: of motion, 1 -+ this.
        flow_noise: standard deviation of what is added to each value of motion.
    """

    size: int = 20
    gain: float = 0.3
    offset: float = 0.1
    gray_share: float = 0.2
    flow_gain: float = 0.2
    flow_noise: float = 0.05

    def __call__(self, views: Mapping[str, Tensor], noise: Tensor) -> dict[str, Tensor]:
        """Augment views (B, C, T, H, W) by rows of noise (B, NOISE): (B, C, T, S, S) of each view."""
        made = {}
        for name, clips in views.items():
            clips = self._crop(clips, noise)
            made[name] = self._moved(clips, noise) if is_motion(name) else self._coloured(clips, noise)
        return made

    def _crop(self, clips: Tensor, noise: Tensor) -> Tensor:
        room = torch.tensor([clips.shape[4] - self.size + 1, clips.shape[3] - self.size + 1])
        corners = (noise[:, [_LEFT, _TOP]] * room).long().tolist()
        parts = [
            clip[..., top : top + self.size, left : left + self.size]
            for clip, (left, top) in zip(clips, corners, strict=True)
        ]
        return torch.stack(parts)

    def _coloured(self, clips: Tensor, noise: Tensor) -> Tensor:
        gain = 1 + self.gain * (2 * noise[:, _GAIN] - 1)
        offset = self.offset * normal(noise[:, _OFFSET])
        clips = clips * per_clip(gain, clips) + per_clip(offset, clips)
        weights = torch.tensor(_GRAY_WEIGHTS, device=clips.device).view(1, 3, 1, 1, 1)
        grayed = (noise[:, _GRAY] < self.gray_share).to(clips.device)[:, None, None, None, None]
        return torch.where(grayed, (clips * weights).sum(1, keepdim=True), clips)

    def _moved(self, clips: Tensor, noise: Tensor) -> Tensor:
        gain = 1 + self.flow_gain * (2 * noise[:, [_FLOW_GAIN]] - 1)
        return clips * per_clip(gain, clips) + self.flow_noise * static(clips, noise[:, _STATIC])


def static(clips: Tensor, draws: Tensor) -> Tensor:
    """Standard normal values in the shape of (B, ...) clips, each clip's from its own draw (B,) in [0, 1)."""
    made = torch.empty_like(clips)
    for clip, draw in zip(made, draws.tolist(), strict=True):
        clip.normal_(generator=torch.Generator(clips.device).manual_seed(int(draw * 2**53)))
    return made


def normal(draws: Tensor) -> Tensor:
    """Uniform draws in [0, 1) to standard normal ones."""
    found: Tensor = torch.special.ndtri(draws.clamp(min=2**-50, max=1 - 2**-50))
    return found


def per_clip(values: Tensor, clips: Tensor) -> Tensor:
    """(B, C) to (B, C, 1, 1, 1), on the device and in the type of the clips."""
    return values.to(clips.device, clips.dtype)[:, :, None, None, None]
