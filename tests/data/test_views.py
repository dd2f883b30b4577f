"""Augmented views: crops and colours against torchvision and slow loops, image by image."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop, v2
from torchvision.transforms import functional as tf

from effvl_cli.core import seeds
from effvl_cli.data import views
from effvl_cli.data.views import (
    NOISE,
    ViewRecipe,
    WorkerCrops,
    as_pictures,
    blur,
    crop_batch,
    draw_boxes,
    draw_noise,
    draw_order,
    local_view,
    recolour,
    view_pair,
)

COLUMNS = {
    "left": views._LEFT,
    "top": views._TOP,
    "flip": views._FLIP,
    "factors": views._FACTORS,
    "jittered": views._JITTERED,
    "blurred": views._BLURRED,
    "solarised": views._SOLARISED,
}
WHOLE = ViewRecipe(scale=(1.0, 1.0), jitter_share=0, gray_share=0)


def pictures(count=4, side=16):
    g = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, side, side), generator=g, dtype=torch.uint8)


def noise_of(count, **columns):
    """Half everywhere, but in the named columns; of boxes the first draw counts, if it fits."""
    noise = torch.full((count, NOISE), 0.5)
    for name, value in columns.items():
        noise[:, COLUMNS[name]] = torch.as_tensor(value)
    return noise


def test_a_crop_of_everything_is_the_picture():
    images = pictures()
    noise = noise_of(4, flip=0.9)  # ratio 1: half way between the logarithms
    assert torch.allclose(crop_batch(images, 16, WHOLE, noise), images.float() / 255, atol=1e-6)
    flipped = crop_batch(images, 16, WHOLE, noise_of(4, flip=0.1))
    assert torch.allclose(flipped, images.flip(-1).float() / 255, atol=1e-6)


def test_a_quarter_is_cut_where_the_noise_says():
    images = pictures()
    recipe = ViewRecipe(scale=(0.25, 0.25))
    corner = crop_batch(images, 8, recipe, noise_of(4, left=0.999, top=0.0, flip=0.9))
    assert torch.allclose(corner, images[:, :, :8, 8:].float() / 255, atol=1e-6)


@pytest.mark.parametrize(("shape", "size"), [((48, 48), 24), ((40, 64), 24), ((20, 33), 32)])
def test_crops_are_torchvisions_resized_crops_without_aliases(shape, size):
    images = torch.randint(0, 256, (40, 3, *shape), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    recipe, noise = ViewRecipe(scale=(0.08, 1.0)), draw_noise(40, torch.Generator().manual_seed(2))
    boxes = draw_boxes(torch.tensor(shape).expand(40, 2), recipe.scale, noise)
    assert boxes[:, 0].max() > 0 and boxes[:, 1].max() > 0
    found = crop_batch(images, size, recipe, noise)
    for image, box, row, ours in zip(images, boxes, noise, found, strict=True):
        theirs = tf.resized_crop(image.float() / 255, *(int(v) for v in box), [size, size], antialias=True)
        theirs = theirs.flip(-1) if row[COLUMNS["flip"]] < 0.5 else theirs
        assert torch.allclose(ours, theirs, atol=2e-5)


@pytest.mark.parametrize("shape", [(32, 32), (380, 640), (100, 20)])  # the last one: often no draw fits
@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.2, 1.0)])
def test_boxes_have_the_distribution_of_torchvisions(shape, scale):
    count = 4000
    ours = draw_boxes(torch.tensor(shape).expand(count, 2), scale, draw_noise(count, torch.Generator().manual_seed(0)))
    with seeds.global_stream(0, "boxes"):
        image = torch.empty(3, *shape)
        theirs = torch.tensor(
            [RandomResizedCrop.get_params(image, list(scale), [3 / 4, 4 / 3]) for _ in range(count)],
            dtype=torch.float64,
        )
    for one in (ours, theirs):
        assert (one[:, :2] >= 0).all() and (one[:, :2] + one[:, 2:] <= torch.tensor(shape)).all()
    features = [
        torch.stack(
            [b[:, 2] * b[:, 3] / math.prod(shape), b[:, 3] / b[:, 2], b[:, 0] / shape[0], b[:, 1] / shape[1]], 1
        )
        for b in (ours, theirs)
    ]
    for quantity in range(4):
        a, b = (f[:, quantity].sort().values for f in features)
        error = ((a.var() + b.var()) / count).sqrt()
        assert (a.mean() - b.mean()).abs() <= 4 * error
        places = torch.cat([a, b]).unique()
        steps = [torch.searchsorted(x, places, right=True) / count for x in (a, b)]
        assert (steps[0] - steps[1]).abs().max() < 0.044  # Kolmogorov-Smirnov, p = 0.001


def test_the_mean_area_is_that_of_the_draws_that_fit():
    """Draws that do not fit are drawn again: clamping them gave 0.535 at a least share of 0.08."""
    boxes = draw_boxes(torch.tensor([64, 64]).expand(20_000, 2), (0.08, 1.0), draw_noise(20_000, torch.Generator()))
    assert abs(float((boxes[:, 2] * boxes[:, 3]).mean()) / 64**2 - 0.484) < 0.008


def test_crops_of_a_squeezed_picture_are_those_of_the_whole_picture():
    """A smooth 640x380 picture, held at 64x64: boxes are drawn in its own shape, and reach to all of its edges."""
    y, x = torch.meshgrid(torch.arange(380) / 380, torch.arange(640) / 640, indexing="ij")
    picture = torch.stack([x, y, (x + y) / 2])
    held = (tf.resize(picture, [64, 64], antialias=True) * 255).round().byte().expand(300, -1, -1, -1)
    recipe, noise = ViewRecipe(scale=(0.2, 0.5)), draw_noise(300, torch.Generator().manual_seed(0))
    sizes = torch.tensor([380, 640]).expand(300, 2)
    found = crop_batch(held, 16, recipe, noise, sizes)
    boxes = draw_boxes(sizes, recipe.scale, noise)
    for box, row, ours in zip(boxes, noise, found, strict=True):
        theirs = tf.resized_crop(picture, *(int(v) for v in box), [16, 16], antialias=True)
        assert torch.allclose(ours, theirs.flip(-1) if row[COLUMNS["flip"]] < 0.5 else theirs, atol=0.02)
    assert boxes[:, 1].min() < 20 and (boxes[:, 1] + boxes[:, 3]).max() > 620


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


OPERATIONS = (tf.adjust_brightness, tf.adjust_contrast, tf.adjust_saturation, tf.adjust_hue)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)])
def test_jitter_is_torchvisions_in_any_order_with_its_clipping(order):
    images = torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    images[0] = (images[0] > 0.5).float()  # pure colours, gray among them
    recipe = ViewRecipe(jitter=(0.8, 0.8, 0.8, 0.2), jitter_share=0.8, gray_share=0)
    draws = torch.tensor([[0, 1, 0.9, 1], [1, 1, 1, 0], [0.9, 0.2, 1, 0.3], [0.5] * 4, [1, 0, 0, 0.1], [0.9] * 4])
    found = recolour(images, recipe, noise_of(6, factors=draws, jittered=torch.tensor([0.7] * 5 + [0.81])), order)
    for image, row, ours in zip(images[:5], draws, found, strict=False):
        for kind in order:
            turn = recipe.jitter[kind] * (2 * float(row[kind]) - 1)
            image = OPERATIONS[kind](image, turn if kind == 3 else 1 + turn)
        assert torch.allclose(ours, image, atol=2e-5)
    assert torch.allclose(found[5], images[5], atol=1e-6)


def test_gray_is_torchvisions():
    images = torch.rand(3, 3, 8, 8)
    found = recolour(images, ViewRecipe(jitter_share=0, gray_share=1), noise_of(3))
    assert torch.allclose(found, tf.rgb_to_grayscale(images, 3), atol=1e-6)


def test_views_have_the_distribution_of_torchvisions_transforms():
    """Means and spreads of pixels over many views, made here and by torchvision's v2 one by one."""
    picture = (
        torch.rand(3, 24, 24, generator=torch.Generator().manual_seed(0)) * torch.tensor([1, 0.6, 0.3])[:, None, None]
    )
    recipe, count = replace(view_pair("simclr", 224)[0], blur_share=0), 1500
    ours = []
    for part in range(15):  # an order for each
        draws = torch.Generator().manual_seed(part)
        noise, order = draw_noise(100, draws), draw_order(draws)
        crops = crop_batch((picture * 255).byte().expand(100, -1, -1, -1), 8, recipe, noise)
        ours.append(recolour(crops, recipe, noise, order))
    theirs = v2.Compose(
        [
            v2.RandomResizedCrop(8, scale=recipe.scale, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(*recipe.jitter)], recipe.jitter_share),
            v2.RandomGrayscale(recipe.gray_share),
        ]
    )
    with seeds.global_stream(0, "peer"):
        peer = torch.stack([theirs((picture * 255).byte().float() / 255) for _ in range(count)])
    for a, b in ((torch.cat(ours).mean((2, 3)), peer.mean((2, 3))), (torch.cat(ours).std((2, 3)), peer.std((2, 3)))):
        error = ((a.var(0) + b.var(0)) / count).sqrt()
        assert ((a.mean(0) - b.mean(0)).abs() <= 4 * error).all()
        assert ((a.std(0) / b.std(0)).log().abs() < 0.12).all()


def test_blur_is_a_gaussian_of_its_own_sigma():
    images = torch.rand(2, 3, 40, 40)
    found = blur(images, torch.tensor([0.5, 1.5]))
    for image, sigma, ours in zip(images, (0.5, 1.5), found, strict=True):
        assert torch.allclose(ours, tf.gaussian_blur(image, [5, 5], [sigma, sigma]), atol=1e-5)


def test_blur_and_solarise_fall_on_their_share():
    images = torch.rand(6, 3, 40, 40)
    recipe = ViewRecipe(jitter_share=0, gray_share=0, blur_share=0.5, solarise_share=0.5)
    draws = torch.tensor([0.1, 0.2, 0.3, 0.7, 0.8, 0.9])
    found = recolour(images, recipe, noise_of(6, blurred=draws, solarised=0.9))
    changed = [(a - b).abs().max() > 1e-4 for a, b in zip(found, images, strict=True)]
    assert changed == [True] * 3 + [False] * 3
    found = recolour(images, recipe, noise_of(6, blurred=0.9, solarised=draws))
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


def test_views_are_the_same_where_the_step_runs_in_half_precision():
    images, recipe, noise = pictures(), ViewRecipe(), draw_noise(4, torch.Generator().manual_seed(3))
    plain = recolour(crop_batch(images, 24, recipe, noise), recipe, noise)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(recolour(crop_batch(images, 24, recipe, noise), recipe, noise), plain)


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
