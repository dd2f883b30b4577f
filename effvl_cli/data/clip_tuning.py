"""Augmentation of clips for training with labels, one draw for all frames of a clip.

It draws from torch's global CPU stream, which the loader sets for each sample.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms import ColorJitter, RandomResizedCrop
from torchvision.transforms import functional as tf

from effvl_cli.data.clip_crops import resized
from effvl_cli.data.views import RATIO

JITTERED = 0.3  # share of the clips whose colours change
TRAIN_JITTER, TEST_JITTER = (0.4, 0.4, 0.4, 0.1), (0.2, 0.2, 0.2, 0.1)
"""Brightness, contrast, saturation and hue, of CoCLR's training and of its tests."""


@dataclass(frozen=True)
class TuneAugment:
    """Random crop, colour jitter and mirror image, as CoCLR fine-tunes (in its code `eval/main_classifier.py`).

    Attributes:
        size: of the result in px.
        area: least share of the frame that a crop keeps; None: squares of `size` px, not resized.
        flip: whether half of the clips are mirrored.
        flow: the first channel is a horizontal motion, which a mirror reverses; there are no colours.
    """

    size: int
    area: float | None
    flip: bool
    flow: bool

    def __call__(self, clip: Tensor) -> Tensor:
        """(C, T, H, W) floating point to (C, T, size, size)."""
        clip = self._cropped(clip)
        if clip.shape[0] == 3 and not self.flow:
            clip = jittered(clip, TRAIN_JITTER)
        if self.flip and torch.rand(()) < 0.5:
            clip = clip.flip(-1)
            if self.flow:
                clip = torch.cat([-clip[:1], clip[1:]])
        return clip

    def _cropped(self, clip: Tensor) -> Tensor:
        if self.area is not None:
            top, left, height, width = RandomResizedCrop.get_params(clip, [self.area, 1.0], list(RATIO))
            return resized(clip[None, ..., top : top + height, left : left + width], self.size)[0]
        down, right = (max(0, side - self.size) for side in clip.shape[-2:])
        top, left = (int(torch.randint(free + 1, ())) for free in (down, right))
        return resized(clip[None, ..., top : top + self.size, left : left + self.size], self.size)[0]


def jittered(clip: Tensor, strength: tuple[float, float, float, float], share: float = JITTERED) -> Tensor:
    """A clip (3, T, H, W) in 0..1 whose colours are changed, in a share of the cases; all frames alike."""
    if torch.rand(()) >= share:
        return clip
    spans = [(1 - part, 1 + part) for part in strength[:3]]
    order, brightness, contrast, saturation, hue = ColorJitter.get_params(*spans, (-strength[3], strength[3]))
    frames = clip.transpose(0, 1).clamp(0, 1)
    changes = (
        (tf.adjust_brightness, brightness),
        (tf.adjust_contrast, contrast),
        (tf.adjust_saturation, saturation),
        (tf.adjust_hue, hue),
    )
    for number in order.tolist():
        change, factor = changes[number]
        frames = change(frames, factor)
    found: Tensor = frames.transpose(0, 1)
    return found
