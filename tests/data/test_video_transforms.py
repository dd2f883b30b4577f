"""Augmentation of clips: consistent over frames and views, and drawn as often as the recipe says."""

import torch

from effvl_cli.data.official_clips import plan_pairs
from effvl_cli.data.video_transforms import ClipAugment


def ramp(batch=6, frames=3, height=40, width=60):
    """Pixels that say where they were: x in the first channel, y in the second; the same in every frame."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    return torch.stack([x, y, x * 0]).view(1, 3, 1, height, width).expand(batch, 3, frames, height, width).clone()


SEEDS = torch.arange(6) * 7 + 1


def test_crops_of_shapes_are_the_same_for_all_frames_and_views():
    clips = ramp(height=24, width=24)
    found = ClipAugment(20)({"rgb": clips, "diff": clips}, SEEDS)
    assert found["rgb"].shape == (6, 3, 3, 20, 20) and torch.equal(found["rgb"], found["diff"])
    assert torch.equal(found["rgb"][:, :, 0], found["rgb"][:, :, 2])
    slopes = found["rgb"][:, 0, 0].diff(dim=1)  # x times a gain: the same everywhere in a clip
    assert torch.allclose(slopes, slopes[:, :1, :1].expand_as(slopes), atol=1e-5)
    again = ClipAugment(20)({"rgb": clips[2:3]}, SEEDS[2:3])
    assert torch.equal(again["rgb"][0], found["rgb"][2])  # whatever else is in the batch


def test_motion_of_shapes_gets_one_gain_and_noise():
    clips = torch.ones(60, 2, 3, 24, 24)
    found = ClipAugment(20)({"gradflow": clips}, torch.arange(60))["gradflow"]
    gains, spreads = found.flatten(1).mean(1), found.flatten(1).std(1)
    assert 0.79 < float(gains.min()) < 0.85 and 1.15 < float(gains.max()) < 1.21
    assert torch.allclose(spreads, torch.full((60,), 0.05), atol=0.005)


def test_colours_of_shapes_change_by_a_gain_and_an_offset_for_each_channel():
    clips = torch.rand(200, 3, 2, 20, 20, generator=torch.Generator().manual_seed(0))
    found = ClipAugment(20)({"rgb": clips}, torch.arange(200))["rgb"]
    gains, grey = [], 0
    for before, after in zip(clips, found, strict=True):
        if torch.equal(after[0], after[1]):
            grey += 1
            continue
        x, y = before.flatten(1), after.flatten(1)
        slope = ((x - x.mean(1, keepdim=True)) * (y - y.mean(1, keepdim=True))).sum(1) / x.var(1) / (x.shape[1] - 1)
        gains += slope.tolist()
        residue = y - y.mean(1, keepdim=True) - slope[:, None] * (x - x.mean(1, keepdim=True))
        assert residue.abs().max() < 1e-4
    assert min(gains) >= 0.7 - 1e-4 and max(gains) <= 1.3 + 1e-4 and max(gains) - min(gains) > 0.55
    assert 20 <= grey <= 62  # 0.2 of 200


def test_a_mirror_turns_flow_unless_told_not_to():
    clips = ramp()
    views = {"diff": clips, "flow": clips[:, :2] + 1}
    turned = ClipAugment(32, "cpr")(views, SEEDS, torch.zeros(6, dtype=torch.bool))
    kept = ClipAugment(32, "cpr", turn_motion=False)(views, SEEDS, torch.zeros(6).bool())
    mirrored = turned["diff"][:, 0, 0, 16, 0] > turned["diff"][:, 0, 0, 16, -1]
    assert 0 < int(mirrored.sum()) < 6
    assert torch.equal(turned["diff"], kept["diff"]) and bool((kept["flow"][:, 0] > 0).all())
    signs = torch.where(mirrored, -1.0, 1.0).view(-1, 1, 1, 1)
    assert torch.equal(turned["flow"][:, 0], signs * kept["flow"][:, 0])
    assert torch.equal(turned["flow"][:, 1], kept["flow"][:, 1])


def test_crops_have_the_areas_and_shapes_of_the_recipe():
    clips = ramp(batch=1, frames=1, height=120, width=160)[:, :2]
    areas = []
    for seed in range(200):
        found = ClipAugment(16, "cpr")({"diff": clips}, torch.tensor([seed]))["diff"][0, :, 0]
        width, height = (float(found[k].max() - found[k].min()) for k in (0, 1))
        areas.append(width * height / (15 / 16) ** 2)  # from the middle of the first pixel to that of the last
    assert 0.19 < min(areas) < 0.3 and 0.9 < max(areas) < 1.01 and 0.45 < sum(areas) / 200 < 0.6


def test_only_strong_clips_change_their_colours():
    clips = ramp(batch=40, height=32, width=32)
    strong = torch.arange(40) % 2 == 0
    weak = ClipAugment(32, "cpr")({"rgb": clips, "diff": clips}, torch.arange(40), strong)
    changed = (weak["rgb"] - weak["diff"].clamp(0, 1)).flatten(1).abs().amax(1) > 1e-3
    assert not changed[~strong].any() and int(changed[strong].sum()) > 14  # 1 - 0.2 * 0.8 * 0.5 of 20


def test_colours_do_not_flicker():
    still = torch.rand(1, 3, 1, 32, 32, generator=torch.Generator().manual_seed(1)).expand(30, 3, 4, 32, 32)
    found = ClipAugment(32, "cpr")({"rgb": still}, torch.arange(30))["rgb"]
    assert torch.allclose(found[:, :, :1].expand_as(found), found, atol=1e-6)


def test_plans_of_pairs_are_drawn_as_the_official_code_draws_them():
    plan = plan_pairs(torch.arange(4000))
    one = plan.source[0] == plan.source[1]
    assert abs(float(one.float().mean()) - 0.5) < 0.03
    assert bool((plan.strong[0] ^ plan.strong[1])[one].all())  # exactly one side
    assert torch.equal(plan.source[:, ~one], torch.arange(2)[:, None].expand(2, int((~one).sum())))
    both = plan.strong[:, ~one].float()
    assert abs(float(both.mean()) - 0.3) < 0.03 and abs(float((both[0] * both[1]).mean()) - 0.09) < 0.03
    assert abs(float(plan.source[0][one].float().mean()) - 0.5) < 0.04
