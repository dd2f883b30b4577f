"""Augmented views for contrastive learning. B images, S side of a view; colours are floats in 0..1.

Colours, blur and solarisation always run batched on the device. Crops do too, from pictures of one size (`crop_batch`),
or else in the loader's processes from the whole pictures (`WorkerCrops`). Random numbers come as a table `noise` with a
row per image, so that processes can draw the same table and take their own rows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms import functional as tf

from effvl_cli.data.transforms import as_tensor

RATIO = (3 / 4, 4 / 3)
NOISE = 14  # random numbers an image takes for one view
SMALL = 64  # px; smaller views are neither blurred nor solarised
_GRAY = (0.299, 0.587, 0.114)
_TO_YIQ = ((0.299, 0.587, 0.114), (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))
_BLUR_SIGMA = (0.1, 2.0)


@dataclass(frozen=True)
class ViewRecipe:
    """How one view is made.

    Attributes:
        scale: share of the picture's area that the crop takes, from and to.
        jitter: strength of brightness, contrast, saturation and hue.
        jitter_share: of the images whose colours are jittered.
        gray_share: of the images that lose their colours.
        blur_share: of the images that are blurred.
        solarise_share: of the images whose bright half is inverted.
    """

    scale: tuple[float, float] = (0.2, 1.0)
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    jitter_share: float = 0.8
    gray_share: float = 0.2
    blur_share: float = 0.0
    solarise_share: float = 0.0


_ASYMMETRIC = ViewRecipe(scale=(0.08, 1.0), jitter=(0.4, 0.4, 0.2, 0.1), blur_share=1.0)
_PAIRS = {
    "mocov3": (_ASYMMETRIC, replace(_ASYMMETRIC, blur_share=0.1, solarise_share=0.2)),
    "dino": (
        replace(_ASYMMETRIC, scale=(0.14, 1.0)),
        replace(_ASYMMETRIC, scale=(0.14, 1.0), blur_share=0.1, solarise_share=0.2),
    ),
    "simclr": (ViewRecipe(scale=(0.08, 1.0), jitter=(0.8, 0.8, 0.8, 0.2), blur_share=0.5),) * 2,
}
_SMALL_VIEW = ViewRecipe(jitter=(0.4, 0.4, 0.4, 0.1))


def view_pair(method: str, size: int, *, local_crops: bool = False, crop_min: float | None = None) -> list[ViewRecipe]:
    """Recipes of the two global views: those of the method's released code, or milder ones for views up to 64 px."""
    pair = list(_PAIRS[method]) if size > SMALL else [_SMALL_VIEW, _SMALL_VIEW]
    if local_crops:
        pair = [replace(view, scale=(0.4, 1.0)) for view in pair]
    if crop_min is not None:
        pair = [replace(view, scale=(crop_min, 1.0)) for view in pair]
    return pair


def local_view(size: int) -> ViewRecipe:
    """Recipe of DINO's local crops."""
    mild = replace(_SMALL_VIEW, scale=(0.05, 0.4))
    return mild if size <= SMALL // 2 else replace(_ASYMMETRIC, scale=(0.05, 0.4), blur_share=0.5)


def draw_noise(count: int, generator: torch.Generator) -> Tensor:
    """(count, NOISE) uniform numbers for one view."""
    return torch.rand(count, NOISE, generator=generator)


# --- crops -----------------------------------------------------------------------------------------------------------


def crop_batch(images: Tensor, size: int, recipe: ViewRecipe, noise: Tensor) -> Tensor:
    """Random crops, resized by bilinear sampling, half of them flipped.

    Args:
        images: (B, 3, H, W) uint8.
        size: S.
        recipe: of the view.
        noise: (B, NOISE); the first five columns are used.

    Returns:
        (B, 3, S, S) in 0..1.
    """
    low, high = recipe.scale
    area = low + (high - low) * noise[:, 0]
    ratio = torch.exp(math.log(RATIO[0]) + (math.log(RATIO[1]) - math.log(RATIO[0])) * noise[:, 1])
    width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    left, top = noise[:, 2] * (1 - width), noise[:, 3] * (1 - height)
    mirror = 1 - 2 * (noise[:, 4] < 0.5).float()
    theta = torch.zeros(len(noise), 2, 3)  # in grid_sample's coordinates the picture spans -1..1
    theta[:, 0, 0], theta[:, 0, 2] = width * mirror, 2 * left + width - 1
    theta[:, 1, 1], theta[:, 1, 2] = height, 2 * top + height - 1
    theta = theta.to(images.device, non_blocking=True)
    grid = F.affine_grid(theta, [len(images), 3, size, size], align_corners=False)
    pixels = images.float().div_(255)
    return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)


class WorkerCrops:
    """Loader transform: all crops of a picture, each flipped or not, flat in one row of bytes.

    It draws from torch's global CPU stream, which the loader sets for each sample.

    Args:
        recipes: one a crop.
        sizes: S of each crop.
    """

    def __init__(self, recipes: Sequence[ViewRecipe], sizes: Sequence[int]) -> None:
        self.recipes, self.sizes = tuple(recipes), tuple(sizes)

    def __call__(self, image: Image.Image) -> Tensor:
        """(sum of 3 S^2,) uint8."""
        crops = []
        for recipe, size in zip(self.recipes, self.sizes, strict=True):
            box = RandomResizedCrop.get_params(image, list(recipe.scale), list(RATIO))
            crop = tf.resized_crop(image, *box, [size, size], InterpolationMode.BICUBIC)
            crops.append(as_tensor(tf.hflip(crop) if torch.rand(()) < 0.5 else crop).flatten())
        return torch.cat(crops)

    def split(self, rows: Tensor) -> list[Tensor]:
        """(B, sum) uint8 to a list of (B, 3, S, S) in 0..1."""
        parts = rows.split([3 * size * size for size in self.sizes], dim=1)
        return [
            part.reshape(len(rows), 3, size, size).float().div_(255)
            for part, size in zip(parts, self.sizes, strict=True)
        ]


# --- colours ---------------------------------------------------------------------------------------------------------


def recolour(images: Tensor, recipe: ViewRecipe, noise: Tensor) -> Tensor:
    """Jitter, gray, blur and solarise.

    Jitter and gray are one affine map of the colours of each image, in the order brightness, contrast, saturation,
    hue (a rotation in YIQ), gray; colours are clipped once at the end.

    Args:
        images: (B, 3, S, S) in 0..1.
        recipe: of the view.
        noise: (B, NOISE); columns from the sixth on are used.
    """
    matrix, offset = colour_map(images.mean((2, 3)), recipe, noise[:, 5:11].to(images.device, non_blocking=True))
    flat = torch.baddbmm(offset[:, :, None], matrix, images.flatten(2)).clamp_(0, 1)
    images = flat.reshape(images.shape)
    if recipe.blur_share:
        chosen = (noise[:, 11] < recipe.blur_share).nonzero()[:, 0].to(images.device)
        sigma = _BLUR_SIGMA[0] + (_BLUR_SIGMA[1] - _BLUR_SIGMA[0]) * noise[:, 12].to(images.device)
        if len(chosen):
            images = images.index_copy(0, chosen, blur(images[chosen], sigma[chosen]))
    if recipe.solarise_share:
        inverted = (noise[:, 13] < recipe.solarise_share).to(images.device)[:, None, None, None]
        images = torch.where(inverted & (images >= 0.5), 1 - images, images)
    return images


def colour_map(mean: Tensor, recipe: ViewRecipe, noise: Tensor) -> tuple[Tensor, Tensor]:
    """The affine map of jitter and gray.

    Args:
        mean: (B, 3) mean colours, from which contrast is measured.
        recipe: of the view.
        noise: (B, 6).

    Returns:
        Matrices (B, 3, 3) and offsets (B, 3).
    """
    count, device = len(mean), mean.device
    gray = torch.tensor(_GRAY, device=device)
    eye = torch.eye(3, device=device).expand(count, 3, 3)
    to_gray = gray.expand(3, 3)
    strength = torch.tensor(recipe.jitter, device=device)
    factors = 1 + strength * (2 * noise[:, :4] - 1)
    factors[:, :3].clamp_(min=0)
    brightness, contrast, saturation = factors[:, :3].unbind(1)
    matrix = eye * brightness[:, None, None]
    level = (matrix @ mean[:, :, None])[:, :, 0] @ gray
    matrix = matrix * contrast[:, None, None]
    offset = ((1 - contrast) * level)[:, None].expand(count, 3)
    turn = _hue_rotation(2 * math.pi * (factors[:, 3] - 1))
    turn = turn @ (saturation[:, None, None] * eye + (1 - saturation)[:, None, None] * to_gray)
    matrix, offset = turn @ matrix, (turn @ offset[:, :, None])[:, :, 0]
    jittered = (noise[:, 4] < recipe.jitter_share)[:, None]
    matrix = torch.where(jittered[..., None], matrix, eye)
    offset = torch.where(jittered, offset, torch.zeros_like(offset))
    grayed = (noise[:, 5] < recipe.gray_share)[:, None]
    matrix = torch.where(grayed[..., None], to_gray @ matrix, matrix)
    offset = torch.where(grayed, (offset @ gray)[:, None].expand(count, 3), offset)
    return matrix, offset


def _hue_rotation(angle: Tensor) -> Tensor:
    """(B,) angles to (B, 3, 3) rotations of the colours about the gray axis."""
    to_yiq = torch.tensor(_TO_YIQ, dtype=torch.float64)
    back = torch.linalg.inv(to_yiq).to(angle.device, angle.dtype)
    rotation = torch.zeros(len(angle), 3, 3, device=angle.device)
    rotation[:, 0, 0] = 1
    rotation[:, 1, 1] = rotation[:, 2, 2] = angle.cos()
    rotation[:, 1, 2], rotation[:, 2, 1] = -angle.sin(), angle.sin()
    return back @ rotation @ to_yiq.to(angle.device, angle.dtype)


def blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur with a sigma for each image; the kernel is a tenth of the side.

    Args:
        images: (B, 3, S, S).
        sigma: (B,) px.
    """
    count, channels, size, _ = images.shape
    radius = max(1, size // 20)
    offsets = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-(offsets**2) / (2 * sigma[:, None] ** 2))
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)[:, None]
    planes = F.pad(images, [radius] * 4, mode="reflect").reshape(1, count * channels, size + 2 * radius, -1)
    planes = F.conv2d(planes, kernel[:, :, None, :], groups=count * channels)
    planes = F.conv2d(planes, kernel[:, :, :, None], groups=count * channels)
    return planes.reshape(images.shape)


def as_pictures(images: Tensor) -> NDArray[np.uint8]:
    """(B, 3, S, S) in 0..1 to (B, S, S, 3)."""
    return (images.clamp(0, 1) * 255 + 0.5).byte().permute(0, 2, 3, 1).cpu().numpy()
