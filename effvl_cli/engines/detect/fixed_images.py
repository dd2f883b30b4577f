"""The size of the images of a graph, and images of that size, for `export` and `bench`."""

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import functional as tf

from effvl_cli.config.detect_export import STRIDE
from effvl_cli.data.road_layout import Scene
from effvl_cli.data.road_painter import paint
from effvl_cli.models.detector_spec import DetectorSpec


def size_of(text: str | None, spec: DetectorSpec) -> tuple[int, int]:
    """Height and width of a graph's image: as given, else the detector's for wide images, in multiples of 32."""
    if text is not None:
        height, width = map(int, text.split("x"))
        return height, width
    return _multiple(spec.min_size[-1]), _multiple(spec.max_size)


def _multiple(side: int) -> int:
    return -(-side // STRIDE) * STRIDE


def road_images(count: int, size: tuple[int, int], seed: int) -> list[Tensor]:
    """Procedural roads (3, H, W) in 0..1, by day and night in turn, each other than those that are trained on."""
    found = []
    for number in range(count):
        noise = np.random.default_rng((seed, number))
        pixels = torch.from_numpy(paint(Scene.drawn("road", "test", number, seed), 0, noise)).permute(2, 0, 1)
        found.append(tf.resize(pixels, list(size), antialias=True).float() / 255)
    return found
