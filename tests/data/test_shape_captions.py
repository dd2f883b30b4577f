"""Procedural scenes: rebuilt alone, balanced, of the stated sizes."""

import numpy as np
import pytest
import torch

from effvl_cli.data import load
from effvl_cli.data.fewshot import few_shot
from effvl_cli.data.shape_captions import CLASSES, COLOURS, SHAPES, TEMPLATES


@pytest.mark.parametrize("style", ["photo", "sketch", "mixed"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_an_image_alone_equals_the_one_in_a_batch(style, split):
    source = load(f"shape-captions:{style}", split)
    batch = source.images(np.arange(50, 90))
    for index in (50, 63, 89):
        assert np.array_equal(source.images(np.array([index]))[0], batch[index - 50])
        assert np.array_equal(np.array(source.image(index)), batch[index - 50])


def test_the_content_is_fixed_for_ever():
    """Recorded when tiny:clip was trained: other pixels would be other data."""
    source = load("shape-captions", "test")
    assert source.labels[:8].tolist() == [1, 18, 1, 27, 6, 5, 21, 22]
    assert int(source.images(np.arange(4)).astype(np.int64).sum()) == PIXEL_SUM


PIXEL_SUM = 6416510


def test_splits_and_classes():
    assert len(CLASSES) == len(COLOURS) * len(SHAPES) == 30
    assert len(TEMPLATES) == 8 and all(t.count("{}") == 1 for t in TEMPLATES)
    assert [len(load("shape-captions", s)) for s in ("val", "test")] == [2000, 4000]
    counts = np.bincount(load("shape-captions", "test").labels, minlength=30)
    assert counts.min() > 90 and counts.max() < 180  # 133 expected, standard deviation 11
    first = load("shape-captions", "train").images(np.arange(8))
    assert not np.array_equal(first, load("shape-captions", "test").images(np.arange(8)))


def test_the_object_touches_a_tenth_to_a_quarter_of_the_patches():
    cover = load("shape-captions", "test").object_cover(np.arange(2000))
    assert 0.10 < cover.mean() < 0.17
    assert cover.min() * 64 >= 4 and cover.max() * 64 <= 25


def test_the_object_has_the_colour_of_its_class():
    source = load("shape-captions", "test")
    images = source.images(np.arange(300)) / 255.0
    from effvl_cli.data.shape_captions import _Scene

    scene = _Scene("test", np.arange(300), np.full(300, 12.0, np.float32))
    palette = np.array(list(COLOURS.values()))
    for image, mask, label in zip(images, scene.object_mask(1.0), source.labels[:300], strict=True):
        mean = image[mask].mean(0)
        light = mean / mean.max()
        distance = np.linalg.norm(palette / palette.max(1, keepdims=True) - light, axis=1)
        assert distance.argmin() == label // len(SHAPES)


def test_the_course_of_mixed_begins_with_larger_objects():
    source = load("shape-captions:mixed", "train")
    early, late = source.object_cover(np.arange(400)), source.object_cover(np.arange(200_000, 200_400))
    assert early.mean() > 1.2 * late.mean()


def test_few_shot_of_an_endless_split_is_balanced_and_nested():
    source = load("shape-captions", "train")
    four, eight = few_shot(source, 4, 0), few_shot(source, 8, 0)
    assert np.bincount(source.labels[four]).tolist() == [4] * 30
    assert set(four) <= set(eight)


def test_nothing_draws_from_the_global_stream():
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    load("shape-captions", "train").images(np.arange(4))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
