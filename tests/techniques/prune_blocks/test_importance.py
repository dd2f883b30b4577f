"""Importance rows and the order that follows from what became of every image, and the sets that may go together."""

import pytest
import torch

from effvl_cli.techniques.prune_blocks.choices import Candidate, Choice, Found, grow, pairs, reasons
from effvl_cli.techniques.prune_blocks.discover import Rejected
from effvl_cli.techniques.prune_blocks.importance import estimated, measured
from effvl_cli.techniques.prune_blocks.outcomes import Outcomes
from effvl_cli.techniques.prune_blocks.unit import Unit


def _candidates():
    return tuple(Candidate(Unit(f"{s}.{k}", s), f"{s}.{k}", 10 + k, 100 + k) for s in "ab" for k in range(2))


def _found(room):
    return Found(_candidates(), room, (), None)


def _outcomes(wrong, used=None, images=20):
    """A network that is right on all images, and candidates that are wrong on some."""
    outcomes = Outcomes.empty(torch.arange(images), 1 + len(wrong))
    outcomes.correct[:] = 1
    for row, count in enumerate(wrong, 1):
        outcomes.correct[row, :count] = 0
    outcomes.loss = torch.where(outcomes.correct == 1, 0.5, 2.5).double()
    outcomes.used[:] = images
    for row, count in enumerate(used or (), 1):
        outcomes.used[row] = count
    return outcomes


def _choices(count):
    return [Choice((k,), f"p{k}", f"o{k}", "a", 10, 100 + k) for k in range(count)]


@pytest.mark.parametrize("metric", ["top1", "loss"])
def test_rows_hold_the_impacts_and_the_least_goes_first(metric):
    found = measured(_choices(3), _outcomes([4, 1, 2]), metric)
    assert found["order"] == [1, 2, 0]
    assert [row["impact_acc"] for row in found["rows"]] == pytest.approx([0.2, 0.05, 0.1])
    assert [row["impact_loss"] for row in found["rows"]] == pytest.approx([0.4, 0.1, 0.2])
    key = "impact_acc" if metric == "top1" else "impact_loss"
    assert all(row["importance"] == row[key] for row in found["rows"])
    assert [row["path_original"] for row in found["rows"]] == ["o0", "o1", "o2"]
    assert found["images"] == 20


def test_what_a_race_dropped_comes_last_the_longest_lived_first():
    found = measured(_choices(4), _outcomes([0, 8, 0, 4], used=[5, 20, 10, 20]), "top1")
    assert found["order"] == [3, 1, 2, 0]
    assert [row["eliminated_at"] for row in found["rows"]] == [5, None, 10, None]
    assert [row["n_used"] for row in found["rows"]] == [5, 20, 10, 20]


def test_savings_divide_the_impact():
    assert measured(_choices(2), _outcomes([2, 4]), "top1", savings=[1.0, 4.0])["order"] == [1, 0]
    assert estimated(_choices(2), [2.0, 4.0], [1.0, 4.0])["order"] == [1, 0]


def test_a_proxy_knows_no_accuracy_and_equal_values_go_by_what_they_save():
    found = estimated(_choices(3), [2.0, float("nan"), 2.0], None)
    assert found["order"][:2] == [2, 0]
    assert [row["importance"] for row in found["rows"]] == [2.0, None, 2.0]
    assert all(row["impact_acc"] is None for row in found["rows"])


def test_sets_leave_each_stage_what_it_has_to_keep():
    assert [choice.members for choice in pairs(_found({"a": 1, "b": 1}))] == [(0, 2), (0, 3), (1, 2), (1, 3)]
    found = _found({"a": 2, "b": 1})
    both = [choice for choice in pairs(found) if choice.members == (0, 1)]
    [larger, other] = grow(found, both)
    assert (larger.members, other.members) == ((0, 1, 2), (0, 1, 3))
    assert (larger.path, larger.params, larger.macs) == ("a.0+a.1+b.0", 31, 301)
    assert grow(_found({"a": 2, "b": 0}), both) == both


def test_reasons_are_counted_with_some_paths():
    rows = [Rejected(f"m{k}", "too wide") for k in range(5)] + [Rejected("n", "too long")]
    assert reasons(rows) == "5 too wide (m0, m1, m2, m3, ...); 1 too long (n)"
