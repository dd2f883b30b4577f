"""Augmented views for contrastive learning. B images, S side of a view; colours are floats in 0..1.

Each image gets what torchvision's RandomResizedCrop, RandomHorizontalFlip, ColorJitter, RandomGrayscale and
RandomSolarize would give it, with its own draws; only the order of the jitter is shared by a batch. Colours, blur and
solarisation always run batched on the device. Crops do too, from pictures of one shape (`crop_batch`), or else in the
loader's processes (`WorkerCrops`). Random numbers come as a table `noise` with a row per image, so that processes can
draw the same table and take their own rows.
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
ATTEMPTS = 10  # boxes drawn until one lies in the picture, as in torchvision
SMALL = 64  # px; smaller views are neither blurred nor solarised
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
# columns of the noise: boxes (areas, ratios, left, top), flip, jitter (factors, whether), gray, blur, solarise
_AREAS, _RATIOS = slice(0, ATTEMPTS), slice(ATTEMPTS, 2 * ATTEMPTS)
_LEFT, _TOP, _FLIP = range(2 * ATTEMPTS, 2 * ATTEMPTS + 3)
_FACTORS = slice(_FLIP + 1, _FLIP + 5)
_JITTERED, _GRAYED, _BLURRED, _SIGMA, _SOLARISED = range(_FLIP + 5, _FLIP + 10)
NOISE = _SOLARISED + 1  # random numbers an image takes for one view
_GRAY = (0.2989, 0.587, 0.114)  # torchvision's
_BLUR_SIGMA = (0.1, 2.0)


@dataclass(frozen=True)
class ViewRecipe:
    """Parameters of one view.

    Attributes:
        scale: smallest and largest share of the picture's area that the crop takes.
        jitter: strength of brightness, contrast, saturation and hue.
        jitter_share: share of the images whose colours are jittered.
        gray_share: share of the images that become grey.
        blur_share: share of the images that are blurred.
        solarise_share: share of the images whose bright half is inverted.
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


def draw_order(generator: torch.Generator) -> list[int]:
    """An order of the jitter's operations."""
    return torch.randperm(4, generator=generator).tolist()


# --- crops -----------------------------------------------------------------------------------------------------------


def draw_boxes(sizes: Tensor, scale: tuple[float, float], noise: Tensor) -> Tensor:
    """Boxes of RandomResizedCrop: the first of ten draws that lies in the picture, else the largest central one.

    Source: Szegedy et al., arXiv 1409.4842, sec. 6, as in torchvision.

    Args:
        sizes: (B, 2) heights and widths of the pictures, px.
        scale: smallest and largest share of the area.
        noise: (B, NOISE); the columns of boxes are used.

    Returns:
        (B, 4) float64: top, left, height, width, whole px.
    """
    height, width = sizes.double().unbind(1)
    low, high = (math.log(ratio) for ratio in RATIO)
    area = (height * width)[:, None] * (scale[0] + (scale[1] - scale[0]) * noise[:, _AREAS].double())
    ratio = torch.exp(low + (high - low) * noise[:, _RATIOS].double())
    widths, heights = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (widths > 0) & (widths <= width[:, None]) & (heights > 0) & (heights <= height[:, None])
    first = fits.int().argmax(1, keepdim=True)  # the first of equal ones
    found = fits.any(1)
    box_height = torch.where(found, heights.gather(1, first)[:, 0], torch.minimum(height, (width / RATIO[0]).round()))
    box_width = torch.where(found, widths.gather(1, first)[:, 0], torch.minimum(width, (height * RATIO[1]).round()))
    room = torch.stack([height - box_height, width - box_width], 1)
    drawn = (noise[:, [_TOP, _LEFT]].double() * (room + 1)).floor()
    corner = torch.where(found[:, None], drawn, (room / 2).floor())
    return torch.cat([corner, box_height[:, None], box_width[:, None]], 1)


def crop_batch(
    images: Tensor, size: int, recipe: ViewRecipe, noise: Tensor, picture_sizes: Tensor | None = None
) -> Tensor:
    """Random crops, resized bilinearly with antialiasing, half of them flipped.

    Args:
        images: (B, 3, H, W) uint8.
        size: S.
        recipe: of the view.
        noise: (B, NOISE).
        picture_sizes: (B, 2) heights and widths of the pictures that `images` were squeezed into shape from; boxes are
            drawn in those. None: the images are the pictures.

    Returns:
        (B, 3, S, S) in 0..1.
    """
    count, channels, height, width = images.shape
    whole = torch.tensor([height, width])
    sizes = whole.expand(count, 2) if picture_sizes is None else picture_sizes
    top, left, box_height, box_width = (draw_boxes(sizes, recipe.scale, noise) * (whole / sizes).repeat(1, 2)).unbind(1)
    flipped = noise[:, _FLIP] < 0.5
    rows = _weights(top, box_height, height, size, torch.zeros_like(flipped), images.device).div_(255)
    columns = _weights(left, box_width, width, size, flipped, images.device)
    pixels = images.transpose(1, 2).reshape(count, height, channels * width).float()
    with torch.autocast(images.device.type, enabled=False):  # pixels need more than bfloat16
        low = torch.bmm(rows, pixels).reshape(count, size * channels, width)
        found = torch.bmm(low, columns.transpose(1, 2)).reshape(count, size, channels, size)
    return found.transpose(1, 2).contiguous()


def _weights(start: Tensor, length: Tensor, given: int, size: int, flipped: Tensor, device: torch.device) -> Tensor:
    """Weights (B, S, N) of the N given pixels of an axis in each of S; a triangle as wide as what it shrinks.

    Args:
        start: (B,) where the box begins, px.
        length: (B,) of the box, px.
        given: N.
        size: S.
        flipped: (B,) bool, S runs backwards.
        device: of the weights.
    """
    about = torch.stack([start, length, flipped.double()]).float().to(device, non_blocking=True)
    start, length, back = about[:, :, None, None]
    scale = length / size
    places = torch.arange(size, device=device, dtype=start.dtype)[None, :, None]
    centre = start + ((1 - 2 * back) * places + (size - 1) * back + 0.5) * scale
    pixel = torch.arange(given, device=device, dtype=start.dtype)[None, None]
    reach = scale.clamp(min=1)
    weights = ((pixel + 0.5) / reach - centre / reach).abs_().neg_().add_(1).clamp_(min=0)
    weights.mul_((pixel + 1 > start) & (pixel < start + length))
    found: Tensor = weights.div_(weights.sum(2, keepdim=True))
    return found


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
            crop = tf.resized_crop(image, *box, [size, size], InterpolationMode.BILINEAR)
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


def recolour(images: Tensor, recipe: ViewRecipe, noise: Tensor, order: Sequence[int] = range(4)) -> Tensor:
    """Jitter, gray, blur and solarise.

    Args:
        images: (B, 3, S, S) in 0..1.
        recipe: of the view.
        noise: (B, NOISE); columns behind those of the crops are used.
        order: in which brightness, contrast, saturation and hue (0 to 3) are jittered.
    """
    device = images.device
    if recipe.jitter_share:
        images = jitter(images, recipe, noise, order)
    if recipe.gray_share:
        grayed = (noise[:, _GRAYED] < recipe.gray_share).to(device)[:, None, None, None]
        images = torch.where(grayed, _gray(images), images)
    if recipe.blur_share:
        chosen = (noise[:, _BLURRED] < recipe.blur_share).nonzero()[:, 0].to(device)
        sigma = _BLUR_SIGMA[0] + (_BLUR_SIGMA[1] - _BLUR_SIGMA[0]) * noise[:, _SIGMA].to(device)
        if len(chosen):
            images = images.index_copy(0, chosen, blur(images[chosen], sigma[chosen]))
    if recipe.solarise_share:
        inverted = (noise[:, _SOLARISED] < recipe.solarise_share).to(device)[:, None, None, None]
        images = torch.where(inverted & (images >= 0.5), 1 - images, images)
    return images


def jitter(images: Tensor, recipe: ViewRecipe, noise: Tensor, order: Sequence[int]) -> Tensor:
    """ColorJitter with its own factors for each image; colours are clipped after every operation.

    Args:
        images: (B, 3, S, S) in 0..1.
        recipe: of the view.
        noise: (B, NOISE).
        order: of the operations.
    """
    draws = torch.tensor(recipe.jitter) * (2 * noise[:, _FACTORS] - 1)
    draws = torch.where((noise[:, _JITTERED] < recipe.jitter_share)[:, None], draws, 0.0)
    draws = draws.to(images.device, non_blocking=True)
    factors = (1 + draws).clamp_(min=0)[:, :, None, None, None]
    for kind in order:
        if recipe.jitter[kind] == 0:
            continue
        if kind == BRIGHTNESS:
            images = (images * factors[:, kind]).clamp_(0, 1)
        elif kind == HUE:
            images = turn_hue(images, draws[:, kind])
        else:
            gray = _gray(images)
            toward = gray.mean((2, 3), keepdim=True) if kind == CONTRAST else gray
            images = torch.lerp(toward, images, factors[:, kind]).clamp_(0, 1)
    return images


def _gray(images: Tensor) -> Tensor:
    """(B, 3, S, S) to (B, 1, S, S)."""
    red, green, blue = images.split(1, 1)
    found: Tensor = (red * _GRAY[0]).add_(green, alpha=_GRAY[1]).add_(blue, alpha=_GRAY[2])
    return found


def turn_hue(images: Tensor, turns: Tensor) -> Tensor:
    """Colours (B, 3, S, S) whose hue in HSV is turned; turns (B,) are shares of the circle."""
    red, green, blue = images.unbind(1)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    safe = chroma.clamp(min=torch.finfo(chroma.dtype).tiny)
    hue = torch.where(value == green, (blue - red).div_(safe).add_(2), (red - green).div_(safe).add_(4))
    hue = torch.where(value == red, (green - blue).div_(safe), hue).add_(6 * turns[:, None, None])
    hue.sub_((hue / 6).floor_().mul_(6))
    out = torch.empty_like(images)
    for channel, opposite in enumerate((3, 5, 1)):  # a colour is least at the opposite hue, and for a sixth around it
        amount = (hue - opposite).abs_().sub_(3).abs_().sub_(1).clamp_(0, 1)
        torch.addcmul(value, amount, chroma, value=-1, out=out[:, channel])
    return out


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
