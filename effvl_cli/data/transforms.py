"""Images to network inputs: geometry on PIL images to uint8, normalisation in batches on the device."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args, get_type_hints

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as tf

Augment = Literal["none", "flip", "crop-flip", "pad-crop-flip", "rrc-flip"]
Transform = Callable[[Image.Image], Tensor]
LARGEST = 2**14  # side of a network's input, in px
CROP_SCALE = {"crop-flip": (0.5, 1.0), "rrc-flip": (0.08, 1.0)}  # share of the area that a random crop keeps


@dataclass(frozen=True)
class Preprocess:
    """Evaluation transform, equal to open_clip's once normalised.

    Attributes:
        size: height and width in px.
        mean: of each channel, in 0..1.
        std: of each channel.
        interpolation: of the resize.
        resize_mode: "shortest" side to size then centre crop, or "squash" to it.
        crop_ratio: share of the resized side that the centre crop keeps; torchvision's 256 to 224 is 0.875.
    """

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    resize_mode: Literal["shortest", "squash"] = "shortest"
    crop_ratio: float = 1.0

    def to_uint8(self, image: Image.Image) -> Tensor:
        """An RGB image resized and cropped: (3, H, W) uint8."""
        return as_tensor(self.fit(image))

    def fit(self, image: Image.Image) -> Image.Image:
        """An RGB image resized and cropped; one of the right size stays unchanged, unless a crop is due."""
        if self.crop_ratio != 1 or image.size != (self.size[1], self.size[0]):
            mode = InterpolationMode(self.interpolation)
            whole = (round(self.size[0] / self.crop_ratio), round(self.size[1] / self.crop_ratio))
            squash = self.resize_mode == "squash"
            image = tf.resize(image, list(whole), mode) if squash else _resize_shortest(image, whole, mode)
            image = tf.center_crop(image, list(self.size))
        return image

    def normalise(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) uint8 to float32, on the device of the images."""
        return self.standardise(images.float().div_(255))

    def standardise(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in 0..1, minus the mean and divided by the standard deviation of each channel."""
        shape = (1, 3, 1, 1)
        mean = torch.tensor(self.mean, device=images.device).reshape(shape)
        std = torch.tensor(self.std, device=images.device).reshape(shape)
        return images.sub(mean).div_(std)

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, saved: dict[str, Any]) -> "Preprocess":
        """From the JSON form.

        Raises:
            KeyError, TypeError, ValueError: it is not that of a preprocessing.
        """
        lists = {key: tuple(saved[key]) for key in ("size", "mean", "std")}
        found = cls(**{**saved, **lists})
        numbers = (*found.mean, *found.std, found.crop_ratio)
        if (
            [len(found.size), len(found.mean), len(found.std)] != [2, 3, 3]
            or not all(isinstance(side, int) and 0 < side <= LARGEST for side in found.size)
            or not all(isinstance(number, int | float) and math.isfinite(number) for number in numbers)
            or min(*found.std, found.crop_ratio) <= 0
        ):
            raise ValueError("size, mean, std or crop_ratio is out of range")
        for name in ("interpolation", "resize_mode"):
            if getattr(found, name) not in get_args(get_type_hints(cls)[name]):
                raise ValueError(f"{name} is {getattr(found, name)!r}")
        return found


def _resize_shortest(image: Image.Image, size: tuple[int, int], mode: InterpolationMode) -> Image.Image:
    """Both sides at least `size`, the shape kept; for a square size this is torchvision's Resize(size)."""
    if size[0] == size[1]:
        found: Image.Image = tf.resize(image, size[0], mode)
        return found
    scale = max(size[0] / image.height, size[1] / image.width)
    found = tf.resize(image, [round(image.height * scale), round(image.width * scale)], mode)
    return found


def as_tensor(image: Image.Image) -> Tensor:
    """(3, H, W) uint8."""
    return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1).contiguous()


def augment(name: Augment, preprocess: Preprocess) -> Transform:
    """Training transform; it draws from torch's global CPU stream, which the loader sets for each sample.

    Args:
        name: "flip" half of the images; before that, "crop-flip" takes a random crop of at least half the area,
            "rrc-flip" one of at least 8 % (Szegedy et al., arXiv 1409.4842, sec. 6), and "pad-crop-flip" shifts the
            image by up to an eighth of its side, with zeros beyond its border (He et al., arXiv 1512.03385).
        preprocess: size and interpolation of the result.
    """
    if name == "none":
        return preprocess.to_uint8
    mode = InterpolationMode(preprocess.interpolation)

    def transform(image: Image.Image) -> Tensor:
        if name in CROP_SCALE:
            box = RandomResizedCrop.get_params(image, list(CROP_SCALE[name]), [3 / 4, 4 / 3])
            image = tf.resized_crop(image, *box, list(preprocess.size), mode)
        elif name == "pad-crop-flip":
            image = _random_shift(preprocess.fit(image))
        if torch.rand(()) < 0.5:
            image = tf.hflip(image)
        return preprocess.to_uint8(image) if name == "flip" else as_tensor(image)

    return transform


def _random_shift(image: Image.Image) -> Image.Image:
    """Zeros of an eighth of the size on each side, then a random crop of the old size."""
    height, width = image.height // 8, image.width // 8
    top, left = (int(torch.randint(2 * margin + 1, ())) for margin in (height, width))
    found: Image.Image = tf.crop(tf.pad(image, [width, height]), top, left, image.height, image.width)
    return found
