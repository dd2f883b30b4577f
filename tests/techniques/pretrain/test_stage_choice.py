"""The choice of a strategy for each stage, against brute force and by hand."""

import itertools
import operator
import random

import pytest
import torch

from effvl_cli.techniques.pretrain.gradient_error import Estimate, GradientError
from effvl_cli.techniques.pretrain.stage_choice import choose, hopeless, near, next_stage, paired_error

COSTS = {"full": 1.0, "half": 0.5, "quarter": 0.25}


def estimate(cost, error, rows=(), progress=0.0):
    return Estimate(cost, 0, 0, 0, error, 0, 0, 1, progress, {"ca-mse": list(rows)})


def stage(**errors):
    return {name: estimate(COSTS[name], error) for name, error in errors.items()}


def brute_force(stages, spans):
    def rises(names):
        costs = [table[name].rel_cost for name, table in zip(names, stages, strict=True)]
        return costs == sorted(costs)

    def total(names):
        rows = [table[name] for name, table in zip(names, stages, strict=True)]
        pairs = list(zip(spans, rows, strict=True))
        return sum(span * row.ca_mse for span, row in pairs), sum(span * row.rel_cost for span, row in pairs)

    return min(total(names) for names in itertools.product(*stages) if rises(names))


@pytest.mark.parametrize("lengths", [[1.0], [0.125, 0.25, 0.5, 1.0]], ids=["alike", "of several lengths"])
def test_the_path_equals_brute_force_over_all_monotone_sequences(lengths):
    draw = random.Random(0)
    for _ in range(200):
        names = "abcde"[: draw.randint(1, 5)]
        costs = {name: draw.choice([0.125, 0.25, 0.5, 1.0]) for name in names}
        stages = [
            {name: estimate(costs[name], draw.randint(0, 20) / 4) for name in names} for _ in range(draw.randint(1, 5))
        ]
        spans = [draw.choice(lengths) for _ in stages]
        found = choose(stages, ties="none", spans=None if len(lengths) == 1 else spans)
        spent = [table[name].rel_cost for name, table in zip(found, stages, strict=True)]
        assert spent == sorted(spent)
        total = sum(span * table[name].ca_mse for span, name, table in zip(spans, found, stages, strict=True))
        cost = sum(map(operator.mul, spans, spent))
        assert (total, cost) == brute_force(stages, spans)  # of equal sums the cheaper one


@pytest.mark.parametrize("ties", ["cheaper", "dearer"])
@pytest.mark.parametrize("order", ["path", "ratchet"])
def test_whatever_ties_there_are_costs_never_fall(order, ties):
    draw = random.Random(1)
    for _ in range(200):
        costs = {name: draw.choice([0.125, 0.25, 0.5, 1.0]) for name in "abcde"}
        stages = [
            {n: estimate(costs[n], draw.random(), [draw.random() / 4 for _ in range(5)]) for n in costs}
            for _ in range(draw.randint(1, 5))
        ]
        found = choose(stages, order=order, ties=ties)
        spent = [table[name].rel_cost for name, table in zip(found, stages, strict=True)]
        assert spent == sorted(spent)
        plain = choose(stages, order=order, ties="none")
        change = 1 if ties == "dearer" else -1
        for table, name, other in zip(stages, found, plain, strict=True):
            assert change * (table[name].rel_cost - table[other].rel_cost) >= 0
            worse = table[name].ca_mse - table[other].ca_mse
            assert name == other or worse <= paired_error(table[name], table[other], "ca-mse")


def test_one_early_choice_does_not_raise_all_later_ones():
    """The ratchet takes the dearer half at first, and may then not go back to the quarter."""
    stages = [stage(full=1.0, half=0.80, quarter=0.85), *[stage(full=1.0, half=0.9, quarter=0.5)] * 2]
    assert choose(stages, order="ratchet", ties="none") == ["half", "half", "half"]  # 2.6
    assert choose(stages, ties="none") == ["quarter", "quarter", "quarter"]  # 1.85
    assert choose(stages, order="free", ties="none") == ["half", "quarter", "quarter"]


def test_a_stage_counts_as_long_as_it_lasts():
    """The first stage is short: what it gains by the dearer half, the long second one would lose."""
    stages = [stage(full=1.0, half=0.2, quarter=0.5), stage(full=1.0, half=0.6, quarter=0.4)]
    assert choose(stages, ties="none") == ["half", "half"]  # 0.8, and 0.9 with quarters
    assert choose(stages, ties="none", spans=[0.2, 0.8]) == ["quarter", "quarter"]  # 0.42, and 0.52 with halves


def test_a_stage_may_lack_a_strategy():
    stages = [stage(full=1.0, quarter=0.3), stage(full=1.0, half=0.2)]
    assert choose(stages, ties="none") == ["quarter", "half"]


def test_progress_is_to_be_large():
    table = {"full": estimate(1, 0.1, progress=0.2), "half": estimate(0.5, 0.9, progress=0.4)}
    assert choose([table], criterion="progress", ties="none") == ["half"]
    assert choose([table], ties="none") == ["full"]


def test_ties_are_judged_by_the_paired_error():
    """Both vary by +-1 over the batches, but together: their difference does not."""
    common = [1.0, -1.0, 1.0, -1.0]
    worse = {"full": estimate(1, 1.0, common), "half": estimate(0.5, 1.1, [x + 0.1 for x in common])}
    assert paired_error(worse["half"], worse["full"], "ca-mse") == pytest.approx(0, abs=1e-12)
    assert choose([worse]) == ["full"]
    noisy = {"full": estimate(1, 1.0, common), "half": estimate(0.5, 1.1, [-x for x in common])}
    error = paired_error(noisy["half"], noisy["full"], "ca-mse")
    assert error == pytest.approx((3 / 4 * 4 * 2**2) ** 0.5)  # differences are +-2 around 0
    assert choose([noisy]) == ["half"] and choose([noisy], ties="none") == ["full"]


def test_ties_keep_the_order_of_costs():
    rows = [1.0, -1.0, 1.0, -1.0]
    opposite = [-x for x in rows]
    first = {"half": estimate(0.5, 0.1, rows), "quarter": estimate(0.25, 9.0, rows), "full": estimate(1, 9.0, rows)}
    second = {
        "full": estimate(1, 1.0, rows),
        "half": estimate(0.5, 1.1, opposite),
        "quarter": estimate(0.25, 1.1, opposite),
    }
    assert choose([first, second]) == ["half", "half"]
    assert choose([first, second], order="free") == ["half", "quarter"]
    assert choose([second, first], order="free", ties="dearer") == ["full", "half"]


def test_what_was_measured_on_other_batches_is_no_tie():
    table = {"full": estimate(1, 1.0, [1, -1, 1, -1]), "half": estimate(0.5, 1.0001, [1, -1, 1])}
    assert choose([table]) == ["full"] and hopeless(table, "ca-mse") == set()


def test_hopeless_is_what_is_worse_by_three_paired_errors():
    rows = [0.0, 0.1, 0.0, -0.1]  # a paired error of 0.122
    table = {
        "full": estimate(1, 1.0, [0.0] * 4),
        "half": estimate(0.5, 1.36, rows),
        "quarter": estimate(0.25, 1.4, rows),
    }
    assert hopeless(table, "ca-mse") == {"quarter"}


def test_the_paired_error_is_the_spread_of_the_difference():
    """Over 150 repeats with 12 batches each: strategies that share their noise."""
    g = torch.Generator().manual_seed(3)
    differences, errors = [], []
    for _ in range(150):
        collected = GradientError({"full": 1.0, "a": 0.5, "b": 0.5})
        for _ in range(12):
            full, noise = torch.randn(2, 20, generator=g)
            collected.add_full(full)
            collected.add("full", full, full)
            collected.add("a", full + 0.4 + noise, full)
            collected.add("b", full - 0.4 + noise, full)
        a, b = collected.estimate("a"), collected.estimate("b")
        differences.append((a.ca_mse - b.ca_mse) * collected.full.variance)
        errors.append(paired_error(a, b, "ca-mse") * collected.full.variance)
    assert sum(errors) / 150 == pytest.approx(float(torch.tensor(differences).std()), rel=0.2)


ROWS = [0.0, 0.1, 0.0, -0.1]  # a paired error of 0.122 against rows of zeros


def test_nearly_equal_are_those_within_so_many_paired_errors_that_keep_the_order():
    table = {
        "full": estimate(1, 1.2, ROWS),
        "half": estimate(0.5, 1.0, [0.0] * 4),
        "quarter": estimate(0.25, 1.1, ROWS),
        "eighth": estimate(0.125, 1.3, ROWS),
    }
    assert near(["half"], [table], 0, "ca-mse", "path", 2.0) == ["half", "quarter", "full"]
    assert near(["half"], [table], 0, "ca-mse", "path", 1.0) == ["half", "quarter"]
    assert near(["half", "half"], [table, table], 1, "ca-mse", "path", 2.0) == ["half", "full"]
    assert near(["half", "half"], [table, table], 0, "ca-mse", "path", 2.0) == ["half", "quarter"]
    assert near(["half", "half"], [table, table], 0, "ca-mse", "free", 3.0) == ["half", "quarter", "full", "eighth"]


def test_a_look_ahead_decides_among_the_nearly_equal_and_keeps_the_order():
    table = {"full": estimate(1, 1.1, ROWS), "half": estimate(0.5, 1.0, [0.0] * 4), "quarter": estimate(0.25, 9, ROWS)}
    asked = []

    def look(place, names):
        asked.append((place, list(names)))
        return names[-1]

    assert choose([table, table], look=look) == ["half", "full"]  # at first the second stage bounds the first
    assert asked == [(1, ["half", "full"])]
    clear = {"full": estimate(1, 9.0, ROWS), "half": estimate(0.5, 1.0, [0.0] * 4)}
    assert choose([clear], look=look) == ["half"] and len(asked) == 1  # nothing to ask


def test_a_stage_that_is_chosen_as_the_training_goes():
    cheap_first = stage(full=1.0, half=0.80, quarter=0.85)
    later = stage(full=1.0, half=0.9, quarter=0.5)
    rules = {"criterion": "ca-mse", "ties": "none"}
    assert next_stage([cheap_first], [], order="path", **rules) == "half"
    assert next_stage([cheap_first, later], ["half"], order="path", **rules) == "quarter"  # .85 + .5 is the best sum
    assert next_stage([cheap_first, later], ["half"], order="ratchet", **rules) == "half"
    assert next_stage([later, cheap_first], ["quarter"], order="free", **rules) == "half"
    rising = [stage(full=9.0, half=0.1, quarter=9.0), stage(full=1.0, half=0.9, quarter=0.5)]
    assert next_stage(rising, ["half"], order="path", **rules) == "half"
    assert next_stage(rising, ["half"], order="free", **rules) == "quarter"


def test_a_stage_that_is_chosen_as_the_training_goes_by_ties_or_a_look_ahead():
    table = {
        "full": estimate(1, 1.0, [0.0] * 4),
        "half": estimate(0.5, 1.1, ROWS),
        "quarter": estimate(0.25, 1.2, ROWS),
    }
    assert next_stage([table], [], criterion="ca-mse", order="free", ties="cheaper") == "half"
    asked = []

    def look(place, names):
        asked.append((place, list(names)))
        return names[1]

    found = next_stage([table, table], ["half"], criterion="ca-mse", order="ratchet", ties="cheaper", look=look)
    assert found == "half" and asked == [(1, ["full", "half"])]
