"""Augmentation of clips: all frames alike, squares of the right size, motion reversed in a mirror."""

import pytest
import torch

from effvl_cli.data.clip_tuning import TRAIN_JITTER, TuneAugment, jittered


def clip_of(height=20, width=30, frames=4):
    """Each frame is the first one plus its number."""
    generator = torch.Generator().manual_seed(0)
    first = torch.rand(3, 1, height, width, generator=generator) / 2
    return first + torch.arange(frames).reshape(1, frames, 1, 1) / 10


@pytest.fixture(autouse=True)
def _stream():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize("area", [0.2, None])
def test_all_frames_of_a_clip_are_cropped_alike(area):
    augment = TuneAugment(8, area, flip=True, flow=True)
    seen = set()
    for _ in range(20):
        found = augment(clip_of())
        assert found.shape == (3, 4, 8, 8)
        steps = found[1:, 1:] - found[1:, :-1]  # of the channels that do not change their sign
        torch.testing.assert_close(steps, torch.full_like(steps, 0.1), atol=1e-5, rtol=0)
        seen.add(round(float(found[1, 0, 0, 0]), 5))
    assert len(seen) > 10


def test_a_mirror_reverses_the_horizontal_motion_of_a_flow_alone():
    clip = clip_of(8, 8)
    results = [TuneAugment(8, None, flip=True, flow=True)(clip) for _ in range(20)]
    mirrored = torch.cat([-clip[:1], clip[1:]]).flip(-1)
    same, other = (sum(torch.equal(found, wanted) for found in results) for wanted in (clip, mirrored))
    assert same + other == 20 and 3 < other < 17
    assert all(torch.equal(TuneAugment(8, None, flip=False, flow=True)(clip), clip) for _ in range(5))


def test_a_share_of_the_clips_changes_its_colours():
    clip = clip_of(4, 4)
    changed = [not torch.equal(jittered(clip, TRAIN_JITTER), clip) for _ in range(200)]
    assert 0.2 < sum(changed) / 200 < 0.4
    found = jittered(clip[:, :1].expand(-1, 3, -1, -1), TRAIN_JITTER, share=1)
    torch.testing.assert_close(found[:, 0], found[:, 2])  # frames that are alike stay so
    assert found.min() >= 0 and found.max() <= 1


def test_a_square_is_not_resized_and_a_small_frame_is():
    clip = clip_of(24, 24)
    found = TuneAugment(20, None, flip=False, flow=True)(clip)
    places = [(i, j) for i in range(5) for j in range(5) if torch.equal(found, clip[..., i : i + 20, j : j + 20])]
    assert len(places) == 1
    assert TuneAugment(20, None, flip=False, flow=True)(clip_of(10, 30)).shape == (3, 4, 20, 20)
