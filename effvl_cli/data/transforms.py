"""Images to network inputs: geometry on PIL images to uint8, normalisation in batches on the device."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as tf

Augment = Literal["none", "flip", "crop-flip"]
Transform = Callable[[Image.Image], Tensor]
CROP_SCALE = (0.5, 1.0)  # share of the area that a random crop keeps


@dataclass(frozen=True)
class Preprocess:
    """Evaluation transform, equal to open_clip's once normalised.

    Attributes:
        size: height and width in px.
        mean: of each channel, in 0..1.
        std: of each channel.
        interpolation: of the resize.
        resize_mode: "shortest" side to size then centre crop, or "squash" to it.
    """

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    resize_mode: Literal["shortest", "squash"] = "shortest"

    def to_uint8(self, image: Image.Image) -> Tensor:
        """An RGB image resized and cropped: (3, H, W) uint8."""
        if image.size != (self.size[1], self.size[0]):
            mode = InterpolationMode(self.interpolation)
            if self.resize_mode == "squash":
                image = tf.resize(image, list(self.size), mode)
            else:
                image = tf.center_crop(_resize_shortest(image, self.size, mode), list(self.size))
        return as_tensor(image)

    def normalise(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 to float32, on the device of the images."""
        shape = (1, 3, 1, 1)
        mean = torch.tensor(self.mean, device=images.device).reshape(shape)
        std = torch.tensor(self.std, device=images.device).reshape(shape)
        return images.float().div_(255).sub_(mean).div_(std)

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> "Preprocess":
        """From the JSON form."""
        lists = {key: tuple(saved[key]) for key in ("size", "mean", "std")}
        return cls(**{**saved, **lists})


def _resize_shortest(image: Image.Image, size: tuple[int, int], mode: InterpolationMode) -> Image.Image:
    """Both sides at least `size`, the shape kept; for a square size this is torchvision's Resize(size)."""
    if size[0] == size[1]:
        return tf.resize(image, size[0], mode)
    scale = max(size[0] / image.height, size[1] / image.width)
    return tf.resize(image, [round(image.height * scale), round(image.width * scale)], mode)


def as_tensor(image: Image.Image) -> Tensor:
    """(3, H, W) uint8."""
    return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1).contiguous()


def augment(name: Augment, preprocess: Preprocess) -> Transform:
    """Training transform; it draws from torch's global CPU stream, which the loader sets for each sample."""
    if name == "none":
        return preprocess.to_uint8
    mode = InterpolationMode(preprocess.interpolation)

    def transform(image: Image.Image) -> Tensor:
        if name == "crop-flip":
            box = RandomResizedCrop.get_params(image, list(CROP_SCALE), [3 / 4, 4 / 3])
            image = tf.resized_crop(image, *box, list(preprocess.size), mode)
        if torch.rand(()) < 0.5:
            image = tf.hflip(image)
        return preprocess.to_uint8(image)

    return transform
