"""Augmentation of the official code of CPR (github.com/necla-ml/CPR), which is that of CoCLR (arXiv 2010.09709).

A clip is cropped and mirrored, and a strongly augmented one changes its colours and is blurred as well; one draw holds
for all frames of a clip and all of its views.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as ops

from effvl_cli.data.video_views import is_motion
from effvl_cli.data.views import ATTEMPTS, RATIO

AREA = (0.2, 1.0)
JITTER, JITTER_HUE, P_JITTER = 0.4, 0.1, 0.8
P_GREY, P_BLUR, P_MIRROR = 0.2, 0.5, 0.5
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
    draws = torch.stack([torch.rand(5, generator=_stream(seed, "pair")) for seed in seeds.tolist()], 1)
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
        draw = _Draws(seed)
        box = _random_box(draw, *next(iter(views.values())).shape[-2:])
        mirrored = draw.chance(P_MIRROR)
        found = {}
        for name, clip in views.items():
            top, left, height, width = box
            cut = _resized(clip[..., top : top + height, left : left + width], self.size)
            if mirrored:
                cut = cut.flip(-1)
                if is_motion(name) and self.turn_motion:
                    cut = torch.cat([-cut[:1], cut[1:]])
            if name == "rgb":
                cut = cut.clamp(0, 1)  # cubic interpolation overshoots
            if name == "rgb" and strong:
                cut = _recoloured(cut.transpose(0, 1), _Draws(seed, "colour")).transpose(0, 1)
            elif is_motion(name) and strong:
                cut = cut + MOTION_NOISE * draw.normal(tuple(cut.shape)).to(cut.device)
            found[name] = cut
        return found


class _Draws:
    """Random numbers of one clip."""

    def __init__(self, seed: int, name: str = "clip") -> None:
        self.stream = _stream(seed, name)

    def between(self, low: float, high: float, count: int) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=self.stream)

    def number(self, low: float, high: float) -> float:
        return float(self.between(low, high, 1))

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=self.stream)

    def whole(self, limit: int) -> int:
        return int(torch.randint(limit, (), generator=self.stream))

    def chance(self, share: float) -> bool:
        return self.number(0, 1) < share

    def order(self, count: int) -> list[int]:
        found: list[int] = torch.randperm(count, generator=self.stream).tolist()
        return found


def _stream(seed: int, name: str) -> torch.Generator:
    """A generator for one clip or pair; the names keep the streams of a seed apart."""
    return torch.Generator().manual_seed((seed * 3 + ("pair", "clip", "colour").index(name)) % 2**63)


def _random_box(draw: _Draws, height: int, width: int) -> tuple[int, int, int, int]:
    """Top, left, height and width of a crop: a share of the area and an aspect ratio, else the centre square."""
    for _ in range(ATTEMPTS):
        area = draw.number(*AREA) * height * width
        aspect = math.exp(draw.number(math.log(RATIO[0]), math.log(RATIO[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return draw.whole(height - h + 1), draw.whole(width - w + 1), h, w
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side


def _resized(clip: Tensor, size: int) -> Tensor:
    """(C, T, H, W) to (C, T, size, size), bicubic with antialiasing."""
    if clip.shape[-2:] == (size, size):
        return clip
    return F.interpolate(clip, (size, size), mode="bicubic", align_corners=False, antialias=True)


def _recoloured(frames: Tensor, draw: _Draws) -> Tensor:
    """(T, 3, H, W) in [0, 1] with other colours, perhaps grey, perhaps blurred; the same for all frames."""
    factors = [*draw.between(1 - JITTER, 1 + JITTER, 3).tolist(), draw.number(-JITTER_HUE, JITTER_HUE)]
    changes = (ops.adjust_brightness, _contrast, ops.adjust_saturation, ops.adjust_hue)
    jitter, grey, blur = draw.chance(P_JITTER), draw.chance(P_GREY), draw.chance(P_BLUR)
    sigma = draw.number(*SIGMA)
    for number in draw.order(len(changes)) if jitter else ():
        frames = changes[number](frames, factors[number])
    if grey:
        frames = ops.rgb_to_grayscale(frames, num_output_channels=3)
    if blur:
        side = min(2 * round(3 * sigma) + 1, 2 * ((min(frames.shape[-2:]) - 1) // 2) + 1)
        frames = ops.gaussian_blur(frames, [side, side], [sigma, sigma])
    return frames


def _contrast(frames: Tensor, factor: float) -> Tensor:
    """Contrast about the mean brightness of the whole clip: about each frame's own it would flicker."""
    mean = ops.rgb_to_grayscale(frames).mean()
    found: Tensor = (factor * frames + (1 - factor) * mean).clamp(0, 1)
    return found
