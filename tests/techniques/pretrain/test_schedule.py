"""Schedules, the clock of a budget, and curves over t."""

import math

import pytest

from effvl_cli.core.optim import RateCurve
from effvl_cli.techniques.common.momentum import half_cosine
from effvl_cli.techniques.pretrain.cost import forward_macs
from effvl_cli.techniques.pretrain.schedule import (
    Clock,
    Compression,
    Schedule,
    Stage,
    near_divisors,
    schedule_from,
    schedule_to,
    snapped_size,
)
from effvl_cli.techniques.pretrain.vit import ViTShape

TWO = Schedule((Stage(0.3, Compression(8, 0.5)), Stage(1.0, Compression(4))))


def test_the_stage_of_a_step_is_the_first_that_ends_after_it():
    clock = Clock(TWO, [1.0, 10.0], 1000)
    assert clock.stage(299).compression.patch == 8 and clock.t(299) == pytest.approx(0.299)
    assert clock.stage(300).compression.patch == 4 and clock.t(300) == pytest.approx(0.3)
    assert clock.steps == 300 + 70 and clock.units == pytest.approx(1000)


@pytest.mark.parametrize("costs", [(3.0, 7.0), (0.7, 13.0), (40.0, 1.1)])
def test_the_budget_is_exceeded_by_less_than_a_step(costs):
    clock = Clock(TWO, list(costs), 100.5)
    assert 100.5 <= clock.units < 100.5 + max(costs)
    spent = 0.0
    for step in range(clock.steps):  # a slow clock
        stage = 0 if spent / 100.5 < 0.3 else 1
        assert clock.stage(step).index == stage
        assert clock.t(step) == pytest.approx(min(1, spent / 100.5))
        spent += costs[stage]
    assert spent == pytest.approx(clock.units)


def test_t_is_linear_for_a_constant_schedule():
    clock = Clock(Schedule.constant(Compression(4)), [6.0], 600)
    assert [clock.t(k) for k in (0, 25, 50, 100)] == [0, 0.25, 0.5, 1.0]
    assert [clock.step_at(t) for t in (0, 0.25, 0.501, 1.0)] == [0, 25, 51, 100]


def test_a_stage_shorter_than_a_step_is_skipped():
    short = Schedule((Stage(0.5, Compression(8)), Stage(0.501, Compression(6)), Stage(1.0, Compression(4))))
    clock = Clock(short, [10.0, 10.0, 10.0], 100)
    assert clock.skipped == [] and [stage.steps for stage in clock.stages] == [5, 1, 4]  # a tenth of a step is one
    clock = Clock(
        Schedule((Stage(0.01, Compression(8)), Stage(0.02, Compression(6)), Stage(1.0, Compression(4)))),
        [10.0] * 3,
        100,
    )
    assert clock.skipped == [1] and [stage.index for stage in clock.stages] == [0, 2]


def test_a_schedule_in_steps_has_its_own_end():
    clock = Clock(Schedule((Stage(3, Compression(8)), Stage(5, Compression(4))), "steps"), [2.0, 10.0], None)
    assert clock.steps == 5 and clock.budget == 26
    assert [clock.stage(k).compression.patch for k in range(5)] == [8, 8, 8, 4, 4]


def test_a_schedule_survives_its_file():
    assert schedule_from(schedule_to(TWO)) == TWO
    text = {"version": "1", "stages": [{"until": "1", "patch": "8", "keep_q": "2.5e-1"}]}
    assert schedule_from(text).stages[0].compression == Compression(8, 0.25, 0.25)
    assert schedule_from(text, default_keep_k=1.0).stages[0].compression == Compression(8, 0.25, 1.0)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "stages is empty"),
        ([{"until": 1, "patch": 8, "keep_q": 0}], "stage 0: keep_q is 0"),
        ([{"until": 1, "patch": 8, "keep_q": 1.2}], "stage 0: keep_q is 1.2"),
        ([{"until": 1, "patch": 8, "keep_k": "nan"}], "stage 0: keep_k is nan"),
        ([{"until": 1, "patch": 0}], "stage 0: patch is 0"),
        ([{"until": 1, "patch": 4.5}], "stage 0: patch is 4.5"),
        ([{"until": 1}], "stage 0: patch is missing"),
        ([{"until": 1, "patch": 8, "kep": 1}], "stage 0: unknown key 'kep'"),
        ([{"until": 0.5, "patch": 8}, {"until": 0.5, "patch": 4}], "stage 1: until is 0.5, not above 0.5"),
        ([{"until": 0.5, "patch": 8}], "stage 0: until is 0.5; the last stage ends at 1"),
        ([{"until": "x", "patch": 8}], "stage 0: until is 'x', which is not a number"),
        ([7], "stage 0 is 7"),
    ],
)
def test_what_is_wrong_is_named(rows, words):
    with pytest.raises(ValueError) as caught:
        schedule_from({"stages": rows})
    assert words in str(caught.value)


@pytest.mark.parametrize("more", [{"version": 2}, {"unit": "epochs"}, {"stage": []}])
def test_a_wrong_head_is_named(more):
    with pytest.raises(ValueError, match=next(iter(more))):
        schedule_from({"stages": [{"until": 1, "patch": 8}], **more})


@pytest.mark.parametrize(
    ("base", "patch", "words"),
    [
        ({"patch": 16}, 4, "stage 0: patch 6 of patches of 16 px is 1.5 px for this network of 4 px"),
        ({"patch": 0}, 4, "base: patch is 0"),
        ({"patch": "x"}, 4, "base: patch is 'x', which is not a number"),
        ({"image_size": 24}, 4, "base is {'image_size': 24}"),
        (4, 8, "base is 4"),
    ],
)
def test_patches_that_cannot_be_scaled_are_named(base, patch, words):
    with pytest.raises(ValueError) as caught:
        schedule_from({"base": base, "stages": [{"until": 1, "patch": 6}]}, patch=patch)
    assert words in str(caught.value)


def test_patches_are_scaled_to_another_network():
    """From patches of 4 px, as in the file, to those of 8 px; what a stage costs in shares stays about the same."""
    rows = Schedule((Stage(0.5, Compression(6, 0.5, 1.0)), Stage(1.0, Compression(4))))
    data = schedule_to(rows, {"image_size": 24, "patch": 4})
    assert schedule_from(data) == schedule_from(data, patch=4) == rows
    found = schedule_from(data, patch=8)
    assert found == Schedule((Stage(0.5, Compression(12, 0.5, 1.0)), Stage(1.0, Compression(8))))
    assert schedule_from(schedule_to(rows), patch=8) == rows  # without a base they are px
    small, large = ViTShape(64, 2, 2, 4, 24), ViTShape(192, 12, 3, 8, 48)
    costs = [forward_macs(small, patch=6) / forward_macs(small), forward_macs(large, patch=12) / forward_macs(large)]
    assert costs[0] == pytest.approx(16 / 36, rel=0.05) and costs[1] == pytest.approx(16 / 36, rel=0.05)


def test_neighbours_lie_a_hundredth_of_the_budget_or_one_step_apart():
    fine = Clock(Schedule.constant(Compression(4)), [2.0], 1000)  # 500 steps, 5 in a hundredth
    assert fine.neighbours(0.5, 3) == [250, 245, 240]
    assert fine.neighbours(0.01, 4) == [5, 0]  # before the first step is nothing
    assert fine.neighbours(0.0, 3) == [0] and fine.neighbours(1.0, 2) == [500, 495]
    coarse = Clock(Schedule.constant(Compression(4)), [20.0], 1000)
    assert coarse.neighbours(0.5, 3) == [25, 24, 23]
    assert Clock(Schedule((Stage(0.5, Compression(4)),)), [2.0], 1000).neighbours(0.75, 2) == []


def test_a_clock_goes_on_from_a_share_of_the_budget():
    clock = Clock(Schedule((Stage(0.4, Compression(8)), Stage(0.5, Compression(4)))), [2.0, 10.0], 1000, start=0.3)
    assert [stage.steps for stage in clock.stages] == [50, 10] and clock.units == 500
    assert (clock.t(0), clock.t(25), clock.t(50), clock.t(60)) == pytest.approx((0.3, 0.35, 0.4, 0.5))
    whole = Clock(Schedule((Stage(0.3, Compression(4)), Stage(0.4, Compression(8)))), [10.0, 2.0], 1000)
    assert whole.steps == 30 + 50 and whole.t(30 + 25) == pytest.approx(clock.t(25))


def test_view_sizes_snap_to_whole_patches():
    assert [snapped_size(224, p) for p in (16, 20, 24, 30, 40, 48)] == [224, 220, 216, 210, 240, 240]
    assert near_divisors(224, 30) == [16, 28, 32, 56]


# --- curves ----------------------------------------------------------------------------------------------------------


def test_cosine_rises_and_falls_to_nothing():
    curve = RateCurve("cosine", warmup=0.1)
    assert curve(0) == 0 and curve(0.05) == pytest.approx(0.5) and curve(0.1) == 1 and curve(1) == pytest.approx(0)
    assert curve(0.55) == pytest.approx(0.5)


def test_the_rate_is_the_same_at_the_same_t_whatever_the_steps():
    curve = RateCurve(warmup=0.05)
    short, long = (Clock(Schedule.constant(Compression(4)), [cost], 1000) for cost in (20.0, 2.0))
    assert curve(short.t(25)) == curve(long.t(250))


def test_the_polynomials_of_the_specification():
    quarter = {name: RateCurve(name)(0.25) for name in ("cosine", "poly", "poly-concave")}
    assert quarter["cosine"] == pytest.approx(0.854, abs=5e-4)
    assert quarter["poly"] == 0.5625 and quarter["poly-concave"] == 0.9375
    assert RateCurve("poly", floor=0.1)(1.0) == pytest.approx(0.1)


def test_steps_fall_at_their_milestones():
    curve = RateCurve("step", milestones=(0.5, 0.75), gamma=0.1)
    assert [curve(t) for t in (0.0, 0.499, 0.5, 0.75)] == pytest.approx([1, 1, 0.1, 0.01])


def test_half_cosine_ends():
    assert half_cosine(0, 0.99, 1) == pytest.approx(0.99) and half_cosine(1, 0.99, 1) == 1
    assert half_cosine(0.5, 0.04, 0.4) == pytest.approx(0.22)
    assert half_cosine(0.25, 0, 1) == pytest.approx((1 - math.cos(math.pi / 4)) / 2)
