"""Views that are made once for whole videos are those of the clips."""

import numpy as np
import pytest
import torch

from effvl_cli.data.video_views import make_view
from effvl_cli.engines.cpr_mine.held_views import HeldViews


def videos(count=3, frames=9):
    return list(np.random.default_rng(0).integers(0, 256, (count, frames, 24, 24, 3), dtype=np.uint8))


@pytest.mark.parametrize("name", ["gradflow", "diff"])
def test_a_clip_of_a_held_view_is_the_view_of_the_clip(name):
    frames, view = videos(), make_view(name)
    held = HeldViews(frames)
    assert held.has(view)
    indices, starts = torch.tensor([2, 0]), torch.tensor([3, 1])
    found = held.clips(view, indices, starts, 4)
    clips = np.stack([frames[index][start : start + 5] for index, start in ((2, 3), (0, 1))])
    assert torch.allclose(found, view(torch.from_numpy(clips)), atol=1e-6)


def test_what_is_cheap_or_depends_on_the_clip_is_not_held():
    held = HeldViews(videos())
    assert not held.has(make_view("rgb")) and not held.has(make_view("residual"))
    assert not HeldViews(None).has(make_view("gradflow"))
    assert not HeldViews([*videos(2), *videos(1, frames=5)]).has(make_view("gradflow"))
