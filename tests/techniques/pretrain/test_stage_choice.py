"""The choice of a strategy for each stage, against brute force and by hand."""

import itertools
import random

import pytest
import torch

from effvl_cli.techniques.pretrain.gradient_error import Estimate, GradientError
from effvl_cli.techniques.pretrain.stage_choice import choose, hopeless, paired_error

COSTS = {"full": 1.0, "half": 0.5, "quarter": 0.25}


def estimate(cost, error, rows=(), progress=0.0):
    return Estimate(cost, 0, 0, 0, error, 0, 0, 1, progress, {"ca-mse": list(rows)})


def stage(**errors):
    return {name: estimate(COSTS[name], error) for name, error in errors.items()}


def brute_force(stages):
    def rises(names):
        costs = [table[name].rel_cost for name, table in zip(names, stages, strict=True)]
        return costs == sorted(costs)

    def total(names):
        return sum(table[name].ca_mse for name, table in zip(names, stages, strict=True))

    return min(total(names) for names in itertools.product(*stages) if rises(names))


def test_the_path_equals_brute_force_over_all_monotone_sequences():
    draw = random.Random(0)
    for _ in range(200):
        names = "abcde"[: draw.randint(1, 5)]
        costs = {name: draw.choice([0.1, 0.25, 0.5, 1.0]) for name in names}
        stages = [
            {name: estimate(costs[name], draw.randint(0, 20) / 4) for name in names} for _ in range(draw.randint(1, 5))
        ]
        found = choose(stages, ties="none")
        spent = [table[name].rel_cost for name, table in zip(found, stages, strict=True)]
        assert spent == sorted(spent)
        assert sum(t[name].ca_mse for name, t in zip(found, stages, strict=True)) == brute_force(stages)


def test_one_early_choice_does_not_raise_all_later_ones():
    """The ratchet takes the dearer half at first, and may then not go back to the quarter."""
    stages = [stage(full=1.0, half=0.80, quarter=0.85), *[stage(full=1.0, half=0.9, quarter=0.5)] * 2]
    assert choose(stages, order="ratchet", ties="none") == ["half", "half", "half"]  # 2.6
    assert choose(stages, ties="none") == ["quarter", "quarter", "quarter"]  # 1.85
    assert choose(stages, order="free", ties="none") == ["half", "quarter", "quarter"]


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
