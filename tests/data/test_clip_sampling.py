import pytest
import torch

from effvl_cli.data import clip_sampling
from effvl_cli.data.clips import BadClipError, frame_numbers


def test_windows_of_a_test_video_overlap_by_half():
    assert clip_sampling.test_starts(100, 32, 1) == [0, 15, 30, 45, 60]
    assert clip_sampling.test_starts(100, 32, 1, step=50) == [0, 50]


def test_a_short_video_repeats_its_first_frame_on_the_left():
    start = clip_sampling.train_start(18, 32, 1, torch.Generator())
    assert start == -14 and clip_sampling.test_starts(18, 32, 1) == [-14]
    assert frame_numbers("x", 18, start, 32, 1).tolist() == [0] * 14 + list(range(18))
    assert clip_sampling.train_start(32, 32, 1, torch.Generator()) == 0
    assert frame_numbers("x", 10, -22, 32, 1).tolist()[:22] == [0] * 22


def test_random_starts_are_uniform_over_those_of_the_official_code():
    generator = torch.Generator().manual_seed(0)
    starts = [clip_sampling.train_start(100, 8, 12, generator) for _ in range(400)]
    assert set(starts) == {0, 1, 2, 3}
    assert all(abs(starts.count(k) - 100) < 4 * (400 * 0.25 * 0.75) ** 0.5 for k in range(4))


def test_too_short_videos_are_refused():
    assert clip_sampling.shortest(32, 6) == 98
    with pytest.raises(BadClipError, match="17 frames") as caught:
        clip_sampling.train_start(17, 32, 1, torch.Generator())
    assert caught.value.reason == "too_short"


def test_the_clip_in_the_middle():
    assert clip_sampling.centre_start(10, 8, 1) == 1 and clip_sampling.centre_start(7, 8, 1) == -1
