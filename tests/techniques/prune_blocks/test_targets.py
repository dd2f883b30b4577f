"""Targets of a removal, against numbers by hand."""

import pytest

from effvl_cli.techniques.prune_blocks.targets import Saving, Size, Targets, largest_removal, spread_over_stages

ORIGINAL = Size(1000, 200)


def _never():
    raise AssertionError("the latency is no goal")


def _targets(remove=None, params=None, macs=None, latency=None, *, all_of_them=True):
    return Targets(remove, params, macs, latency, all_of_them=all_of_them)


def test_a_goal_is_met_at_its_share_exactly():
    targets = _targets(params=0.25)
    assert targets.reached(0, ORIGINAL, Size(750, 200), _never)
    assert not targets.reached(9, ORIGINAL, Size(751, 0), _never)


@pytest.mark.parametrize(("all_of_them", "met"), [(True, False), (False, True)])
def test_all_goals_or_the_first(all_of_them, met):
    targets = _targets(2, latency=0.5, all_of_them=all_of_them)
    assert targets.reached(2, ORIGINAL, ORIGINAL, lambda: 0.6) == met
    assert targets.reached(2, ORIGINAL, ORIGINAL, lambda: 0.5)


def test_a_step_takes_no_more_than_the_number_asked_for():
    assert _targets(5).at_most(3, 4) == 2
    assert _targets(5, macs=0.1).at_most(3, 4) == 4


def test_the_first_goal_out_of_reach_is_named_with_what_is_in_reach():
    most = Size(400, 100)
    assert _targets(3, 0.4, 0.5).shortfall(ORIGINAL, most, 3, _never) is None
    short = _targets(3, 0.41, 0.9).shortfall(ORIGINAL, most, 3, _never)
    assert short is not None
    assert (short.name, short.goal, short.attainable) == ("target-params", 0.41, 0.4)
    short = _targets(latency=0.3).shortfall(ORIGINAL, most, 3, lambda: 0.75)
    assert short is not None
    assert (short.name, short.attainable) == ("target-latency", 0.25)


def test_the_largest_removal_takes_of_each_stage_what_it_can_lose():
    units = [Saving("a", 10, 1), Saving("a", 5, 3), Saving("a", 7, 2), Saving("b", 100, 50)]
    assert largest_removal(units, {"a": 2, "b": 0}) == (Size(17, 5), 2)
    assert largest_removal(units, {"a": 9, "b": 1}) == (Size(122, 56), 4)


def test_a_ranking_is_spread_over_stages_within_their_room():
    ranked, stages = [0, 1, 2, 3], ["a", "a", "b", "b"]
    assert spread_over_stages(ranked, stages, {"a": 2, "b": 2}, 3) == [0, 2, 1]
    assert spread_over_stages(ranked, stages, {"a": 1, "b": 2}, 4) == [0, 2, 3]
