"""Dropped and merged patches in a picture."""

import numpy as np
import pytest

from effvl_cli.core.patch_views import DIM, HATCH, dropped, enlarged, merged

GRID = (2, 2)


@pytest.mark.parametrize("colour", [(255, 255, 255), (250, 250, 200), (0, 0, 0), (42, 42, 42), (120, 120, 120)])
def test_a_dropped_patch_is_told_from_one_of_any_colour(colour):
    """White ones and black ones too: it holds lines, and what lies between them is darker."""
    pixels = np.full((8, 8, 3), colour, np.uint8)
    out = dropped(pixels, np.array([0, 3]), GRID)
    half = out.shape[0] // 2
    assert (out[:half, :half] == colour).all() and (out[half:, half:] == colour).all()
    gone = out[:half, half:]
    assert (gone.max(-1) == gone.min(-1)).all()
    shades, counts = np.unique(gone, return_counts=True)
    assert set(shades) == {HATCH, int(DIM * np.mean(colour))} and counts.min() > 0.05 * counts.sum()


def test_merged_patches_share_a_colour_and_an_outline():
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:4, :4], pixels[:4, 4:], pixels[4:] = 100, 200, 10
    out = merged(pixels, np.array([5, 5, 0, 7]), GRID)
    half = out.shape[0] // 2
    assert (out[: half - 1, :] == 150).all()  # no line between the two that are one token
    assert (out[half] == 255).all() and (out[half + 1 :, half] == 255).all()
    assert (out[half + 1 :, :half] == 10).all() and (out[half + 1 :, half + 1 :] == 10).all()


def test_rows_that_belong_to_no_patch_stay():
    pixels = np.random.default_rng(0).integers(0, 255, (9, 9, 3), dtype=np.uint8)
    border = enlarged(pixels).shape[0] // 9 * 9 // 2 * 2
    for out in (dropped(pixels, np.array([0]), GRID), merged(pixels, np.array([1, 2, 3, 4]), GRID)):
        assert out.shape == enlarged(pixels).shape
        assert (out[border + 1 :] == enlarged(pixels)[border + 1 :]).all()


def test_pictures_are_enlarged_by_whole_pixels():
    assert enlarged(np.zeros((64, 64, 3), np.uint8)).shape == (192, 192, 3)
    assert enlarged(np.zeros((224, 224, 3), np.uint8)).shape == (224, 224, 3)
