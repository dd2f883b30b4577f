"""Augmented views: crops and colours against torchvision and slow loops, image by image."""

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as tf

from effvl_cli.data.views import (
    NOISE,
    ViewRecipe,
    WorkerCrops,
    as_pictures,
    blur,
    colour_map,
    crop_batch,
    draw_noise,
    local_view,
    recolour,
    view_pair,
)

WHOLE = ViewRecipe(scale=(1.0, 1.0), jitter_share=0, gray_share=0)


def pictures(count=4, side=16):
    g = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, side, side), generator=g, dtype=torch.uint8)


def noise_of(count, **columns):
    noise = torch.full((count, NOISE), 0.5)
    for column, value in columns.items():
        noise[:, int(column[1:])] = torch.as_tensor(value)
    return noise


def test_a_crop_of_everything_is_the_picture():
    images = pictures()
    noise = noise_of(4, c1=0.5, c4=0.9)  # ratio 1: half way between the logarithms; no flip
    assert torch.allclose(crop_batch(images, 16, WHOLE, noise), images.float() / 255, atol=1e-5)
    flipped = crop_batch(images, 16, WHOLE, noise_of(4, c1=0.5, c4=0.1))
    assert torch.allclose(flipped, images.flip(-1).float() / 255, atol=1e-5)


def test_a_quarter_is_cut_where_the_noise_says():
    images = pictures()
    recipe = ViewRecipe(scale=(0.25, 0.25))
    corner = crop_batch(images, 8, recipe, noise_of(4, c1=0.5, c2=1.0, c3=0.0, c4=0.9))
    assert torch.allclose(corner, images[:, :, :8, 8:].float() / 255, atol=1e-5)


def test_boxes_have_the_areas_and_ratios_asked_for():
    """A ramp in x and one in y tell the box of each crop."""
    ramp = torch.arange(64, dtype=torch.uint8) * 4
    images = torch.stack([ramp.expand(64, 64), ramp[:, None].expand(64, 64), torch.zeros(64, 64, dtype=torch.uint8)])
    images = images.expand(500, 3, 64, 64)
    recipe = ViewRecipe(scale=(0.3, 0.6))
    crops = crop_batch(images, 32, recipe, draw_noise(500, torch.Generator().manual_seed(0))) * 255 / 4
    width = (crops[:, 0, 16, 24] - crops[:, 0, 16, 8]).abs() * 2
    height = (crops[:, 1, 24, 16] - crops[:, 1, 8, 16]).abs() * 2
    area, ratio = width * height / 64**2, width / height
    assert 0.29 < area.min() < 0.33 and 0.57 < area.max() < 0.61
    assert 0.74 < ratio.min() < 0.8 and 1.25 < ratio.max() < 1.35
    mirrored = (crops[:, 0, 16, 24] < crops[:, 0, 16, 8]).float().mean()
    assert 0.42 < mirrored < 0.58


@pytest.mark.parametrize(
    ("column", "strength", "operation"),
    [
        (0, (0.4, 0, 0, 0), tf.adjust_brightness),
        (1, (0, 0.4, 0, 0), tf.adjust_contrast),
        (2, (0, 0, 0.4, 0), tf.adjust_saturation),
    ],
)
def test_jitter_is_torchvisions(column, strength, operation):
    images = 0.3 + 0.4 * torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0))  # nothing is clipped
    recipe = ViewRecipe(jitter=strength, jitter_share=1, gray_share=0)
    draws = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0])
    noise = noise_of(5, **{f"c{5 + column}": draws, "c9": 0.0, "c10": 0.9})
    found = recolour(images, recipe, noise)
    for image, draw, ours in zip(images, draws, found, strict=True):
        factor = 1 + 0.4 * (2 * float(draw) - 1)
        assert torch.allclose(ours, operation(image, factor), atol=2e-3)  # torchvision's gray has four digits


def test_gray_is_torchvisions():
    images = torch.rand(3, 3, 8, 8)
    found = recolour(images, ViewRecipe(jitter_share=0, gray_share=1), noise_of(3))
    assert torch.allclose(found, tf.rgb_to_grayscale(images, 3), atol=2e-3)


def test_hue_turns_colours_about_the_gray_axis():
    recipe = ViewRecipe(jitter=(0, 0, 0, 0.5), jitter_share=1, gray_share=0)
    noise = noise_of(2, c8=torch.tensor([0.5, 1.0]))[:, 5:11]
    noise[:, 4], noise[:, 5] = 0.0, 0.9
    matrix, offset = colour_map(torch.rand(2, 3), recipe, noise)
    assert torch.allclose(matrix[0], torch.eye(3), atol=1e-3) and torch.equal(offset, torch.zeros(2, 3))
    gray = torch.full((3,), 0.4)
    assert torch.allclose(matrix[1] @ gray, gray, atol=2e-3)
    assert torch.allclose(matrix[1] @ matrix[1], torch.eye(3), atol=2e-3)  # half a turn twice
    assert (matrix[1] - torch.eye(3)).abs().max() > 0.5


def test_blur_is_a_gaussian_of_its_own_sigma():
    images = torch.rand(2, 3, 40, 40)
    found = blur(images, torch.tensor([0.5, 1.5]))
    for image, sigma, ours in zip(images, (0.5, 1.5), found, strict=True):
        assert torch.allclose(ours, tf.gaussian_blur(image, [5, 5], [sigma, sigma]), atol=1e-5)


def test_blur_and_solarise_fall_on_their_share():
    images = torch.rand(6, 3, 40, 40)
    recipe = ViewRecipe(jitter_share=0, gray_share=0, blur_share=0.5, solarise_share=0.5)
    draws = torch.tensor([0.1, 0.2, 0.3, 0.7, 0.8, 0.9])
    found = recolour(images, recipe, noise_of(6, c11=draws, c13=0.9))
    changed = [(a - b).abs().max() > 1e-4 for a, b in zip(found, images, strict=True)]
    assert changed == [True] * 3 + [False] * 3
    found = recolour(images, recipe, noise_of(6, c11=0.9, c13=draws))
    assert torch.allclose(found[0], tf.solarize(images[0], 0.5)) and torch.equal(found[5], images[5])


def test_small_views_are_neither_blurred_nor_solarised():
    for method in ("simclr", "mocov3", "dino"):
        assert all(v.blur_share == v.solarise_share == 0 and v.scale == (0.2, 1) for v in view_pair(method, 64))
    first, second = view_pair("mocov3", 224)
    assert (first.blur_share, second.blur_share, second.solarise_share) == (1.0, 0.1, 0.2)
    assert view_pair("dino", 224)[0].scale == (0.14, 1.0)
    assert view_pair("dino", 224, local_crops=True)[0].scale == (0.4, 1.0)
    assert view_pair("simclr", 224, crop_min=0.3)[1].scale == (0.3, 1.0)
    assert local_view(96).scale == (0.05, 0.4) and local_view(96).blur_share == 0.5 and local_view(16).blur_share == 0


def test_a_view_does_not_depend_on_the_rest_of_the_batch():
    images, noise = pictures(), draw_noise(4, torch.Generator().manual_seed(3))
    recipe = ViewRecipe(blur_share=0.5, solarise_share=0.5)
    whole = recolour(crop_batch(images, 24, recipe, noise), recipe, noise)
    parts = [
        recolour(crop_batch(images[i], 24, recipe, noise[i]), recipe, noise[i]) for i in (slice(0, 2), slice(2, 4))
    ]
    assert torch.allclose(whole, torch.cat(parts), atol=1e-6)


def test_loader_processes_make_crops_of_their_sizes():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 40, 3), dtype=np.uint8))
    crops = WorkerCrops([ViewRecipe(scale=(1, 1)), ViewRecipe(), local_view(8)], [16, 16, 8])
    torch.manual_seed(0)
    flat = crops(image)
    assert flat.shape == (3 * (256 + 256 + 64),) and flat.dtype == torch.uint8
    parts = crops.split(torch.stack([flat, flat]))
    assert [tuple(p.shape) for p in parts] == [(2, 3, 16, 16), (2, 3, 16, 16), (2, 3, 8, 8)]
    torch.manual_seed(0)
    assert torch.equal(crops(image), flat)
    assert torch.allclose(parts[2][0].flatten(), flat[-192:] / 255)


def test_pictures_are_bytes():
    images = torch.tensor([0.0, 0.5, 1.2]).reshape(1, 3, 1, 1)
    assert as_pictures(images).tolist() == [[[[0, 128, 255]]]]
