"""Views that travel with the frames: the codec's motion, stored flow, a user's own pictures."""

import numpy as np
import pytest
import torch
from PIL import Image

from effvl_cli.core.errors import DataError, UsageError
from effvl_cli.data.carried_views import StoredMotion, as_bytes, with_views
from effvl_cli.data.clips import numbered
from effvl_cli.data.moving_shapes import MovingShapes
from effvl_cli.data.source import digest
from effvl_cli.data.video_views import CODEC, FAR, OWN, STORED, make_view

STEP = FAR / 127.5


class Videos:
    """Two videos of a texture, the second 9 frames long, whose codec says that all move by (3, -1)."""

    name, kind, split, classes, endless = "videos", "clips", "train", ("a",), False
    ids, lengths = ("a/one.avi", "two.avi"), (12, 9)

    def __init__(self):
        self.labels, self.groups = np.zeros(2, np.int64), numbered(self.ids)
        self.reads = 0

    def __len__(self):
        return 2

    def fingerprint(self):
        return digest(self.ids)

    def num_frames(self, index):
        return self.lengths[index]

    def read(self, index, start, length, stride=1):
        self.reads += 1
        y, x = np.mgrid[:40, :52]
        frames = []
        for time in (start + stride * np.arange(length)).clip(0):
            wave = np.sin(0.3 * (x - 1.5 * time) + 0.1 * y) + np.sin(0.25 * y - 0.1 * (x - 1.5 * time))
            frames.append(127 + 60 * wave)
        return np.stack(frames)[..., None].repeat(3, -1).round().astype(np.uint8)

    def motion(self, index, start, length, stride=1):
        motion = np.zeros((length, 5, 7, 2), np.float32)
        motion[:, :, :] = (3, -1)
        motion[:, 4, 6] = 50
        return motion


@pytest.fixture
def videos():
    return Videos()


def clip(source, *asked):
    return torch.from_numpy(source.read(*asked))[None]


def test_views_of_frames_alone_leave_a_source_as_it_is(videos, tmp_path):
    assert with_views(videos, ["rgb", "gradflow"], tmp_path) is videos


def test_the_codecs_motion_travels_with_the_frames(videos):
    source = with_views(videos, ["rgb", "flow:mv"])
    frames = clip(source, 0, 2, 4)
    assert frames.shape == (1, 4, 40, 52, 5) and source.fingerprint() == videos.fingerprint()
    view = make_view("flow:mv")
    found = view(frames)
    assert found.shape == (1, 3, 4, 40, 52) and (view.context, view.channels) == (0, 3)
    assert found[0, 0, :, :32].flatten().unique().item() * FAR == pytest.approx(3, abs=STEP / 2)
    assert found[0, 1, :, :32].flatten().unique().item() * FAR == pytest.approx(-1, abs=STEP / 2)
    assert (found[0, 0, 0] == 1).nonzero().min(0).values.tolist() == [32, 48]  # clipped, in the last cell
    assert torch.equal(make_view("rgb")(frames), make_view("rgb")(clip(videos, 0, 2, 4)))
    assert torch.equal(make_view("gradflow")(frames), make_view("gradflow")(clip(videos, 0, 2, 4)))


def test_bytes_of_motion():
    motion = np.array([0, 20, -20, 50, -50], np.float32)
    assert as_bytes(motion).tolist() == [128, 255, 0, 255, 0]
    still = torch.full((1, 2, 3, 4, CODEC.stop), 128, dtype=torch.uint8)
    assert not make_view("flow:mv")(still).any()
    assert (make_view("flow:mv:uint8")(still) * 255).unique().tolist() == pytest.approx([128])


def test_frames_without_it_are_refused(videos):
    with pytest.raises(DataError, match="carry nothing for the view flow:mv"):
        make_view("flow:mv")(clip(videos, 0, 0, 2))


@pytest.mark.parametrize("stride", [1, 2])
def test_motion_is_found_once_and_kept(videos, tmp_path, monkeypatch, stride):
    def by_hand(frames):  # stands for OpenCV: twice the change of the mean grey
        means = frames[..., :3].float().mean((2, 3, 4))
        change = 2 * (means[:, 1:] - means[:, :-1])
        return change[:, None, :, None, None].expand(-1, 2, -1, *frames.shape[2:4])

    monkeypatch.setattr("effvl_cli.data.video_views.clip_flow", lambda method, file: by_hand)
    plain = clip(videos, 0, 1, 5, stride)
    source = with_views(videos, ["rgb", "flow:dis"], tmp_path)
    carried = clip(source, 0, 1, 5, stride)
    assert carried.shape[-1] == STORED.stop
    view = make_view("flow:dis")
    torch.testing.assert_close(view(carried), view(plain), atol=0.5 / 127.5 + 1e-6, rtol=0)
    (file,) = tmp_path.glob("clip-views/??/*.u8.npz")
    assert file.parent.name == file.name[:2]
    videos.reads = 0
    again = with_views(videos, ["flow:dis"], tmp_path)
    assert torch.equal(clip(again, 0, 1, 5, stride), carried) and videos.reads == 1
    file.write_bytes(b"damaged")
    assert torch.equal(clip(with_views(videos, ["flow:dis"], tmp_path), 0, 1, 5, stride), carried)
    clip(source, 0, 11, 1)  # the last frame has no later one


def test_kept_motion_depends_on_the_view_and_on_the_videos(videos, tmp_path, monkeypatch):
    paths = {
        StoredMotion(videos, view, tmp_path).path(index, stride)
        for view in ("flow:dis", "flow:dis:80")
        for index in (0, 1)
        for stride in (1, 2)
    }
    monkeypatch.setattr(videos, "fingerprint", lambda: "other")
    assert len(paths | {StoredMotion(videos, "flow:dis", tmp_path).path(0, 1)}) == 9


def test_own_pictures(videos, tmp_path):
    (tmp_path / "a" / "one.avi").mkdir(parents=True)
    for time in range(12):
        Image.new("RGB", (26, 20), (time, 2 * time, 200)).save(tmp_path / "a" / "one.avi" / f"{time}.png")
    two = np.arange(8, dtype=np.uint8)[:, None, None, None].repeat(40, 1).repeat(52, 2).repeat(2, 3)
    np.save(tmp_path / "two.npy", two)
    name = f"precomputed:{tmp_path}"
    source, view = with_views(videos, [name]), make_view(name)
    found = view(clip(source, 0, 9, 3)) * 255
    assert found.shape == (1, 3, 3, 40, 52) and source.channels == OWN.stop
    assert found[0, :, :, 5, 5].round().tolist() == [[9, 10, 11], [18, 20, 22], [200, 200, 200]]
    two_channels = view(clip(source, 1, 6, 3)) * 255  # one picture less than frames
    assert two_channels[0, :, :, 0, 0].round().tolist() == [[6, 7, 7], [6, 7, 7], [128, 128, 128]]
    before = source.fingerprint()
    np.save(tmp_path / "two.npy", np.zeros((9, 40, 52), np.uint8))
    assert with_views(videos, [name]).fingerprint() != before


def test_own_pictures_that_do_not_fit(videos, tmp_path):
    name = f"precomputed:{tmp_path}"
    with pytest.raises(DataError, match=r"of 2 of 2 videos: a/one.avi, two.avi"):
        with_views(videos, [name])
    (tmp_path / "a").mkdir()
    np.save(tmp_path / "a" / "one.npy", np.zeros((12, 4, 4), np.uint8))
    np.save(tmp_path / "two.npy", np.zeros((7, 4, 4), np.uint8))
    with pytest.raises(DataError, match=r"E_VIEW_MISMATCH.*two.avi \(7 for 9 frames\)"):
        with_views(videos, [name])
    np.save(tmp_path / "two.npy", np.zeros((9, 4, 4), np.float32))
    with pytest.raises(DataError, match="float32 of shape"):
        with_views(videos, [name])
    np.save(tmp_path / "two.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="is no array"):
        with_views(videos, [name])
    with pytest.raises(UsageError, match="two views of own files"):
        with_views(videos, ["precomputed:a", "precomputed:b"])


def test_what_keeping_will_cost(videos, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "effvl_cli.data.video_views.clip_flow",
        lambda method, file: lambda clips: torch.zeros(len(clips), 2, clips.shape[1] - 1, *clips.shape[2:4]),
    )
    stored = StoredMotion(videos, "flow:dis", tmp_path)
    missing, seconds = stored.cost()
    assert missing == 2 and seconds > 0
    stored.at(0, np.arange(2), 1)
    assert stored.cost()[0] == 1


def test_generated_videos_have_no_motion_of_a_codec():
    with pytest.raises(DataError, match="no codec's motion vectors"):
        with_views(MovingShapes("test"), ["flow:mv"])
