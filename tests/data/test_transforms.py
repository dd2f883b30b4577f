"""Geometry of evaluation and training images, against slow references and torchvision."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as theirs

from effvl_cli.data.transforms import Preprocess, augment

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)


def noise(height, width, seed=0):
    pixels = np.random.default_rng(seed).integers(1, 256, (height, width, 3), dtype=np.uint8)  # 0 is for the padding
    return Image.fromarray(pixels)


def square(size, **more):
    return Preprocess((size, size), MEAN, STD, "bilinear", **more)


def shifted(pixels, top, left, margin):
    """Slow: pixel (i, j) of the crop at (top, left) of the padded image."""
    height, width = pixels.shape[:2]
    out = np.zeros_like(pixels)
    for i in range(height):
        for j in range(width):
            y, x = i + top - margin[0], j + left - margin[1]
            if 0 <= y < height and 0 <= x < width:
                out[i, j] = pixels[y, x]
    return out


@pytest.mark.parametrize("size", [(16, 16), (16, 24)])
def test_pad_crop_flip_is_every_shift_and_flip_of_the_padded_image_alike_often(size):
    image = noise(*size)
    margin = (size[0] // 8, size[1] // 8)
    known = {}
    for top in range(2 * margin[0] + 1):
        for left in range(2 * margin[1] + 1):
            moved = shifted(np.asarray(image), top, left, margin)
            known[moved.tobytes()] = (top, left, False)
            known[moved[:, ::-1].tobytes()] = (top, left, True)
    cases = 2 * (2 * margin[0] + 1) * (2 * margin[1] + 1)
    assert len(known) == cases
    transform = augment("pad-crop-flip", Preprocess(size, MEAN, STD))
    torch.manual_seed(0)
    times = dict.fromkeys(known.values(), 0)
    draws = 60 * cases
    for _ in range(draws):
        times[known[transform(image).permute(1, 2, 0).numpy().tobytes()]] += 1  # a KeyError: not one of them
    chi2 = sum((n - 60) ** 2 / 60 for n in times.values())
    assert chi2 < cases + 4 * (2 * cases) ** 0.5


def test_pad_crop_flip_at_32_px_moves_by_up_to_4():
    image = Image.fromarray(np.full((32, 32, 3), 255, np.uint8))
    transform = augment("pad-crop-flip", square(32))
    torch.manual_seed(0)
    rows = {int((transform(image)[0].amax(1) == 0).sum()) for _ in range(200)}
    assert rows == {0, 1, 2, 3, 4}


def test_pad_crop_flip_first_brings_other_images_to_size():
    image, preprocess = noise(40, 50), square(16)
    whole = preprocess.to_uint8(image).permute(1, 2, 0).numpy()
    every = [shifted(whole, top, left, (2, 2)) for top in range(5) for left in range(5)]
    got = augment("pad-crop-flip", preprocess)(image).permute(1, 2, 0).numpy()
    assert any(np.array_equal(got, x) or np.array_equal(got, x[:, ::-1]) for x in every)


@pytest.mark.parametrize("crop_ratio", [1.0, 0.875])
@pytest.mark.parametrize(("name", "scale"), [("rrc-flip", (0.08, 1.0)), ("crop-flip", (0.5, 1.0))])
def test_random_crops_are_torchvisions(name, scale, crop_ratio):
    image = noise(70, 90)
    crop = theirs.RandomResizedCrop(28, scale=scale, ratio=(3 / 4, 4 / 3))
    flip = theirs.RandomHorizontalFlip()
    ours = augment(name, square(28, crop_ratio=crop_ratio))  # evaluation alone has the central crop
    for seed in range(20):
        torch.manual_seed(seed)
        expected = np.asarray(flip(crop(image)))
        torch.manual_seed(seed)
        assert np.array_equal(ours(image).permute(1, 2, 0).numpy(), expected)


def test_flip_and_none_keep_the_evaluation_geometry():
    image, preprocess = noise(70, 90), square(28, crop_ratio=0.875)
    plain = preprocess.to_uint8(image)
    mirrored = preprocess.to_uint8(Image.fromarray(np.asarray(image)[:, ::-1].copy()))
    torch.manual_seed(0)
    seen = [augment("flip", preprocess)(image) for _ in range(20)]
    flips = sum(torch.equal(x, mirrored) for x in seen)
    assert 0 < flips < 20 and flips + sum(torch.equal(x, plain) for x in seen) == 20
    assert torch.equal(augment("none", preprocess)(image), plain)


@pytest.mark.parametrize("size", [(300, 400), (500, 333), (224, 224), (256, 256), (100, 120)])
def test_crop_ratio_is_torchvisions_resize_and_crop(size):
    image = noise(*size)
    peer = theirs.Compose([theirs.Resize(256), theirs.CenterCrop(224), theirs.ToTensor(), theirs.Normalize(MEAN, STD)])
    ours = square(224, crop_ratio=0.875)
    assert torch.equal(ours.normalise(ours.to_uint8(image)[None])[0], peer(image))


def test_manifests_from_before_the_crop_ratio_load():
    old = {"size": [24, 32], "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.25], "interpolation": "bicubic"}
    old["resize_mode"] = "shortest"
    found = Preprocess.from_dict(old)
    assert found == Preprocess((24, 32), MEAN, STD) and found.crop_ratio == 1.0
    new = square(224, crop_ratio=224 / 232)
    assert Preprocess.from_dict(json.loads(json.dumps(new.to_dict()))) == new
