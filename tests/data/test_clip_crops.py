"""Crops of test clips lie where they should; a mirror changes the sign of a horizontal motion."""

import pytest
import torch

from effvl_cli.data.clip_crops import COUNTS, crops_of, resized


def places(height, width):
    """(1, 2, 1, H, W): each pixel holds its row and its column."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([columns, rows]).float()[None, :, None]


def test_ten_crops_are_the_centre_the_corners_and_their_mirror_images():
    found = crops_of(places(6, 9), 4, 4, "ten")
    assert found.shape == (10, 1, 2, 1, 4, 4)
    firsts = [(int(c[0, 1, 0, 0, 0]), int(c[0, 0, 0, 0, 0])) for c in found]
    assert firsts[:5] == [(1, 2), (0, 0), (0, 5), (2, 0), (2, 5)]  # row and column of the first pixel
    assert firsts[5:] == [(1, 5), (0, 3), (0, 8), (2, 3), (2, 8)]
    assert torch.equal(found[5:, :, 1], found[:5, :, 1])  # rows do not change
    assert torch.equal(found[5:, :, 0], found[:5, :, 0].flip(-1))


def test_the_sign_of_a_horizontal_motion_changes_in_the_mirror_alone():
    found = crops_of(places(6, 9), 4, 4, "ten", flow=True)
    assert torch.equal(found[5:, :, 0], -found[:5, :, 0].flip(-1))
    assert torch.equal(found[:5], crops_of(places(6, 9), 4, 4, "five"))
    assert torch.equal(found[:1], crops_of(places(6, 9), 4, 4, "center", flow=True))


@pytest.mark.parametrize("crops", COUNTS)
def test_a_clip_smaller_than_the_crop_gives_its_largest_square(crops):
    found = crops_of(torch.rand(2, 3, 4, 10, 16), 224, 8, crops)
    assert found.shape == (COUNTS[crops], 2, 3, 4, 8, 8)


def test_sizes_change_each_frame_by_itself():
    clips = torch.rand(2, 3, 5, 20, 20)
    found = resized(clips, 8)
    alone = torch.nn.functional.interpolate(clips[1, :, 3][None], (8, 8), mode="bicubic", antialias=True)[0]
    torch.testing.assert_close(found[1, :, 3], alone)
    assert resized(clips, 20) is clips
