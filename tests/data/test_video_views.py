"""Views of clips by hand, and optical flow on textures that move by a known distance."""

import pytest
import torch

from effvl_cli.core.errors import UsageError
from effvl_cli.data.video_views import gradient_flow, is_motion, make_view


def texture(height, width, right=0.0, down=0.0):
    y, x = torch.meshgrid(torch.arange(height) - down, torch.arange(width) - right, indexing="ij")
    waves = [(0.35, 0.15, 0.3), (-0.2, 0.4, 1.0), (0.1, -0.3, 2.0)]
    return 0.5 + sum(torch.sin(a * x + b * y + c) for a, b, c in waves) / 8


def flow_of(before, after, levels=1):
    """(1, 2, H, W) of two pictures in [0, 1], each rounded to bytes."""
    clips = (torch.stack([before, after])[None, ..., None].expand(1, 2, *before.shape, 3) * 255).round()
    return gradient_flow(clips.to(torch.uint8), levels)[:, :, 0]


def inner(flow, border=6):
    return flow[0, :, border:-border, border:-border].flatten(1).median(1).values.tolist()


@pytest.mark.parametrize(("right", "down"), [(1, 0), (0, 1), (-0.5, 0.75), (0, 0)])
def test_one_level_finds_small_motions(right, down):
    found = flow_of(texture(48, 64), texture(48, 64, right, down))
    assert inner(found) == pytest.approx([right, down], abs=0.1)


def test_a_pyramid_finds_larger_ones():
    pair = texture(96, 128), texture(96, 128, 6, -4)
    assert inner(flow_of(*pair, levels=3), 16) == pytest.approx([6, -4], abs=0.3)
    assert abs(inner(flow_of(*pair), 16)[0] - 6) > 2


def test_a_mirror_turns_the_motion():
    before, after = texture(40, 40), texture(40, 40, 0.8, 0.3)
    plain, mirrored = flow_of(before, after), flow_of(before.flip(-1), after.flip(-1))
    assert torch.allclose(mirrored[:, 0], -plain[:, 0].flip(-1), atol=1e-5)
    assert torch.allclose(mirrored[:, 1], plain[:, 1].flip(-1), atol=1e-5)


def test_without_texture_there_is_no_motion():
    assert flow_of(torch.full((24, 24), 0.3), torch.full((24, 24), 0.6)).abs().max() < 1e-6


def test_the_view_is_the_flow_of_the_frames_over_its_largest():
    frames = torch.stack([texture(24, 24, t * 0.6) for t in range(4)])
    clips = (frames[None, ..., None].expand(1, 4, 24, 24, 3) * 255).round().to(torch.uint8)
    view = make_view("gradflow")
    found = view(clips)
    assert found.shape == (1, 2, 3, 24, 24) and (view.channels, view.context) == (2, 1) and is_motion(view.name)
    for time in range(3):
        assert torch.allclose(found[0, :, time], flow_of(frames[time], frames[time + 1])[0] / 2, atol=1e-6)
    assert found.abs().max() <= 1


def test_difference_and_residual_by_hand():
    clips = torch.tensor([0, 51, 204], dtype=torch.uint8).view(1, 3, 1, 1, 1).expand(1, 3, 2, 2, 3)
    assert make_view("rgb")(clips)[0, 0, :, 0, 0].tolist() == pytest.approx([0, 0.2, 0.8])
    assert make_view("diff")(clips)[0, 0, :, 0, 0].tolist() == pytest.approx([0.6, 0.8])
    third = 1 / 3
    assert make_view("residual")(clips)[0, 0, :, 0, 0].tolist() == pytest.approx(
        [0.5 - third / 2, 0.5 + (0.2 - third) / 2, 0.5 + (0.8 - third) / 2]
    )


def test_an_unknown_view_is_refused():
    with pytest.raises(UsageError, match="gradflo"):
        make_view("gradflo")
