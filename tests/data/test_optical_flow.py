import builtins
import math

import pytest
import torch

from effvl_cli.core.errors import MissingPackageError, ModelError, UsageError
from effvl_cli.data.optical_flow import clip_flow
from effvl_cli.data.video_views import encode, gradient_flow, is_motion, make_view, view_names


def waves(shift, height=48, width=64, frames=3):
    """(1, T, H, W, 3) of a smooth texture that moves by `shift` px (right, down) per frame."""
    y, x = torch.meshgrid(torch.arange(height).double(), torch.arange(width).double(), indexing="ij")
    made = []
    for time in range(frames):
        a, b = x - shift[0] * time, y - shift[1] * time
        made.append(128 + 50 * torch.sin(0.25 * a + 0.11 * b) + 50 * torch.sin(0.23 * b - 0.07 * a + 1))
    return torch.stack(made)[None, ..., None].expand(-1, -1, -1, -1, 3).round().byte()


def medians(flow):
    return flow[0, :2, :, 8:-8, 8:-8].flatten(1).median(1).values.tolist()


def test_a_pyramid_finds_motion_beyond_what_one_level_finds():
    clips = waves((5, -3), 96, 128)
    assert medians(gradient_flow(clips, 3)) == pytest.approx((5, -3), abs=0.3)
    assert max(map(abs, medians(gradient_flow(clips, 1)))) <= 2
    odd = waves((3, 2), 75, 101)
    assert gradient_flow(odd, 3).shape == (1, 2, 2, 75, 101)
    assert medians(gradient_flow(odd, 3)) == pytest.approx((3, 2), abs=0.3)


def test_still_frames_have_no_motion_and_nothing_is_not_finite():
    assert not gradient_flow(torch.full((1, 3, 20, 20, 3), 7, dtype=torch.uint8)).any()
    noise = torch.randint(256, (2, 4, 33, 47, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    view = make_view("gradflow")(noise)
    assert view.shape == (2, 2, 3, 33, 47) and view.isfinite().all() and view.abs().max() <= 1


def test_gradflow_takes_one_level_of_tiny_frames():
    tiny, large = waves((1, 0), 24, 24), waves((1, 0), 48, 48)
    torch.testing.assert_close(make_view("gradflow")(tiny), gradient_flow(tiny, 1) / 2)
    torch.testing.assert_close(make_view("gradflow")(large), gradient_flow(large, 3) / 20)
    torch.testing.assert_close(make_view("gradflow:1")(large), gradient_flow(large, 1) / 2)


def test_encodings_of_motion():
    flow = torch.tensor([0.0, 20, -20, 50, -50, 10]).reshape(1, 1, 6, 1, 1).expand(1, 2, 6, 1, 1)
    whole = encode(flow, whole=True) * 255
    assert whole[0, 0].flatten().tolist() == pytest.approx([128, 255, 0, 255, 0, 191], abs=1e-3)
    assert whole[0, 2].unique().tolist() == pytest.approx([128], abs=1e-3)
    assert encode(flow, whole=False)[0, 1].flatten().tolist() == [0, 1, -1, 1, -1, 0.5]
    assert not encode(flow, whole=False)[0, 2].any()


@pytest.mark.parametrize("method", ["dis", "farneback"])
def test_opencv_finds_the_motion_of_a_texture(method):
    pytest.importorskip("cv2")
    clips = waves((3, -2), 96, 128)
    view = make_view(f"flow:{method}")(clips)
    assert view.shape == (1, 3, 2, 96, 128)
    assert [20 * value for value in medians(view)] == pytest.approx((3, -2), abs=0.3)
    shrunk = make_view(f"flow:{method}:48")(clips)  # found at half size, in px of the whole
    assert [20 * value for value in medians(shrunk)] == pytest.approx((3, -2), abs=0.5)


def test_opencv_that_is_missing_is_said(monkeypatch):
    real = builtins.__import__

    def absent(name, *rest):
        if name == "cv2":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(MissingPackageError, match=r"pip install 'effvl\[flow\]'") as caught:
        make_view("flow:dis")
    assert caught.value.exit_code == 5


def test_raft_reads_local_weights(tmp_path):
    from torchvision.models.optical_flow import raft_small

    torch.manual_seed(0)
    torch.save(raft_small(weights=None).state_dict(), tmp_path / "raft.pth")
    view = make_view(f"flow:raft:{tmp_path / 'raft.pth'}")
    made = view(waves((1, 0), 40, 44))
    assert made.shape == (1, 3, 2, 40, 44) and made.isfinite().all()
    (tmp_path / "no.pth").write_bytes(b"nothing")
    torch.save({"x": torch.zeros(1)}, tmp_path / "other.pth")
    for name, said in (("no", "cannot be read"), ("other", "holds no weights of raft"), ("gone", "no weights at")):
        with pytest.raises(ModelError, match=said):
            clip_flow("raft", str(tmp_path / f"{name}.pth"))


def test_names():
    assert {"rgb", "diff", "residual", "gradflow", "flow:dis", "flow:raft"} <= set(view_names())
    assert is_motion("flow:dis") and is_motion("gradflow:2") and not is_motion("rgb") and not is_motion("diff")
    for name in ("rbg", "rgb:1", "gradflow:9", "flow", "flow:", "flow:x", "flow:dis:1:2", "flow:raft", ""):
        with pytest.raises(UsageError, match="view"):
            make_view(name)
    assert math.isclose(make_view("rgb")(torch.full((1, 1, 1, 1, 3), 255, dtype=torch.uint8)).max(), 1)
