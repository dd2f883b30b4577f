"""Augmentation of the official code of CPR (github.com/necla-ml/CPR), which is that of CoCLR (arXiv 2010.09709).

A clip is cropped and mirrored, and a strongly augmented one changes its colours and is blurred as well; one draw holds
for all frames of a clip and all of its views.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as tf

from effvl_cli.core import seeds as core_seeds
from effvl_cli.data.clip_crops import resized
from effvl_cli.data.clip_tuning import TRAIN_JITTER, jittered
from effvl_cli.data.video_views import is_motion
from effvl_cli.data.views import RATIO

AREA = (0.2, 1.0)
P_JITTER, P_GREY, P_BLUR, P_MIRROR = 0.8, 0.2, 0.5, 0.5
SIGMA = (0.1, 2.0)  # of the blur, px
MOTION_NOISE = 0.01  # added to motion in place of other colours
P_ONE_CLIP, P_STRONG = 0.5, 0.3


@dataclass(frozen=True)
class PairPlan:
    """How the two clips of a video become the two that are compared.

    Attributes:
        source: (2, B) int64: which of the two temporal clips each side shows.
        strong: (2, B) bool: whether a side's colours are changed too.
    """

    source: Tensor
    strong: Tensor


def plan_pairs(seeds: Tensor) -> PairPlan:
    """Draw the plan of each pair (official code).

    With probability 1/2 both temporal clips are used, each changed in colour with probability 0.3; else one of them is
    used on both sides, and exactly one side is changed in colour.

    Args:
        seeds: (B,) int64, one for each pair.
    """
    draws = torch.stack([torch.rand(5, generator=core_seeds.generator(seed, "pair")) for seed in seeds.tolist()], 1)
    one_clip = draws[0] < P_ONE_CLIP
    chosen, changed = (draws[1] < 0.5).long(), draws[2] < 0.5
    both = draws[3:] < P_STRONG
    source = torch.where(one_clip, chosen, torch.arange(2)[:, None])
    strong = torch.where(one_clip, torch.stack([changed, ~changed]), both)
    return PairPlan(source, strong)


@dataclass(frozen=True)
class OfficialClips:
    """Random resized crop and mirror; strongly augmented clips also get colour jitter, grey and blur.

    Attributes:
        size: side of the result, px.
        turn_motion: whether a mirror changes the sign of the motion to the right; the official code leaves it.
    """

    size: int
    turn_motion: bool = True

    def __call__(self, views: Mapping[str, Tensor], seeds: Tensor, strong: Tensor | None = None) -> dict[str, Tensor]:
        """Augment.

        Args:
            views: (B, C, T, H, W) of the same frames, by name.
            seeds: (B,) int64, one for each clip.
            strong: (B,) bool: which clips are augmented strongly; None: all.

        Returns:
            (B, C, T, size, size) by name.
        """
        rows = [
            self._one({name: clips[row] for name, clips in views.items()}, seed, strong is None or bool(strong[row]))
            for row, seed in enumerate(seeds.tolist())
        ]
        return {name: torch.stack([row[name] for row in rows]) for name in views}

    def _one(self, views: Mapping[str, Tensor], seed: int, strong: bool) -> dict[str, Tensor]:
        """The views (C, T, H, W) of one clip."""
        with core_seeds.global_stream(seed, "clip"):
            first = next(iter(views.values()))
            top, left, height, width = RandomResizedCrop.get_params(first, list(AREA), list(RATIO))
            mirrored = bool(torch.rand(()) < P_MIRROR)
        found = {}
        for name, clip in views.items():
            cut = resized(clip[None, ..., top : top + height, left : left + width], self.size)[0]
            if mirrored:
                cut = cut.flip(-1)
                if is_motion(name) and self.turn_motion:
                    cut = torch.cat([-cut[:1], cut[1:]])
            if name == "rgb":
                cut = cut.clamp(0, 1)  # cubic interpolation overshoots
            if strong:
                with core_seeds.global_stream(seed, f"colour of {name}"):
                    cut = _changed(cut, name)
            found[name] = cut
        return found


def _changed(clip: Tensor, name: str) -> Tensor:
    """A strongly augmented view (C, T, H, W): other colours, or noise on motion."""
    if is_motion(name):
        return clip + MOTION_NOISE * torch.randn(clip.shape).to(clip.device)
    return _recoloured(clip) if name == "rgb" else clip


def _recoloured(clip: Tensor) -> Tensor:
    """(3, T, H, W) in [0, 1] with other colours, perhaps grey, perhaps blurred; the same for all frames."""
    frames = jittered(clip, TRAIN_JITTER, P_JITTER).transpose(0, 1)
    if torch.rand(()) < P_GREY:
        frames = tf.rgb_to_grayscale(frames, num_output_channels=3)
    if torch.rand(()) < P_BLUR:
        sigma = float(torch.empty(()).uniform_(*SIGMA))
        side = min(2 * round(3 * sigma) + 1, 2 * ((min(frames.shape[-2:]) - 1) // 2) + 1)
        frames = tf.gaussian_blur(frames, [side, side], [sigma, sigma])
    found: Tensor = frames.transpose(0, 1)
    return found
