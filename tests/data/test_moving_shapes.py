import numpy as np
import pytest
import torch

from effvl_cli.core.errors import DataError, UsageError
from effvl_cli.data import load
from effvl_cli.data.clips import BadClipError, load_clips, numbered
from effvl_cli.data.moving_shapes import CLASSES, MovingShapes
from effvl_cli.data.video_views import make_view


@pytest.fixture(scope="module")
def test_split():
    return load_clips("moving-shapes", "test")


def test_sizes_classes_and_groups(test_split):
    assert len(test_split) == 320 and len(load_clips("moving-shapes", "train")) == 1024
    assert np.bincount(test_split.labels).tolist() == [40] * 8 and test_split.classes == CLASSES
    assert len(np.unique(test_split.groups)) == 320 and len(set(test_split.ids)) == 320


def test_a_video_is_the_same_alone(test_split):
    whole = test_split.read(13, 0, 10)
    assert whole.shape == (10, 24, 24, 3) and whole.dtype == np.uint8
    assert np.array_equal(MovingShapes("test").read(13, 2, 4, 2), whole[2:9:2])


def test_videos_depend_on_seed_split_and_index(test_split):
    others = (MovingShapes("test", seed=1).read(0, 0, 1), MovingShapes("val").read(0, 0, 1), test_split.read(8, 0, 1))
    assert all((other != test_split.read(0, 0, 1)).mean() > 0.5 for other in others)
    prints = [MovingShapes(split, seed).fingerprint() for split in ("test", "val") for seed in (0, 1)]
    assert len(set(prints)) == 4


def test_palettes_tell_a_little_of_the_class():
    train = load_clips("moving-shapes", "train")
    share = (train.palettes == train.labels).mean()
    expected = 0.5 + 0.5 / 8
    assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / 1024)


def test_classes_move_as_their_names_say(test_split):
    clips = torch.from_numpy(np.stack([test_split.read(index, 0, 10) for index in range(320)]))
    flow = make_view("gradflow:1")(clips).mean((2, 3, 4)).numpy()
    right, left, down, up = (flow[test_split.labels == label].mean(0) for label in range(4))
    assert right[0] > 0.04 and left[0] < -0.04 and down[1] > 0.04 and up[1] < -0.04
    assert all(abs(flow[test_split.labels == label].mean(0)).max() < 0.03 for label in range(4, 8))


def test_frames_below_the_first_repeat_it_and_beyond_the_last_are_refused(test_split):
    clip = test_split.read(0, -2, 4)
    assert np.array_equal(clip[0], clip[2]) and np.array_equal(clip[2:], test_split.read(0, 0, 2))
    with pytest.raises(BadClipError, match="test/0000 has 10 frames, and frames 3 to 10") as caught:
        test_split.read(0, 3, 8)
    assert caught.value.reason == "too_short" and caught.value.exit_code == 3


def test_it_is_no_data_set_of_images_and_has_no_motion_vectors(test_split):
    with pytest.raises(UsageError, match="is a data set of clips"):
        load("moving-shapes", "train")
    with pytest.raises(UsageError, match="takes no argument"):
        load_clips("moving-shapes:x", "train")
    with pytest.raises(DataError, match="no codec's motion vectors"):
        test_split.motion(0, 0, 2)


def test_equal_names_have_equal_numbers():
    assert numbered(["b", "a", "b", "c"]).tolist() == [0, 1, 0, 2]
