"""Groups and rates of optimizers: what a task asks for is what they have."""

import pytest
import torch

from effvl_cli.core import optim


def _module():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 1))


def test_decay_falls_where_the_task_says():
    module = _module()

    def decays(name, parameter):
        return {"0.weight": 1.0, "2.weight": 0.5}.get(name, 0.0)

    groups = optim.build(module, "sgd", lr=0.1, weight_decay=0.2, decays=decays).groups()
    assert [(group["weight_decay"], len(group["params"])) for group in groups] == [(0.2, 1), (0.1, 1), (0.0, 4)]
    assert groups[0]["params"][0] is module[0].weight


@pytest.mark.parametrize(
    ("decays", "expected"), [(optim.matrices, [(0.2, 2), (0.0, 4)]), (optim.everything, [(0.2, 6)])]
)
def test_named_rules(decays, expected):
    groups = optim.build(_module(), "adamw", lr=0.1, weight_decay=0.2, decays=decays).groups()
    assert [(group["weight_decay"], len(group["params"])) for group in groups] == expected


def test_nesterovs_first_step_with_decay_alone():
    """Zero gradient, rate r, decay d, momentum m: w - r * (1 + m) * d * w."""
    weight = torch.nn.Parameter(torch.full((2, 2), 3.0))
    module = torch.nn.Module()
    module.weight = weight
    optimizers = optim.build(module, "sgd", lr=0.1, weight_decay=0.5, momentum=0.9, nesterov=True)
    weight.grad = torch.zeros_like(weight)
    optimizers.step()
    assert torch.allclose(weight, torch.full((2, 2), 3 - 0.1 * 1.9 * 0.5 * 3))


def test_each_optimizer_has_a_factor_of_its_own():
    parts = [torch.optim.SGD(_module().parameters(), lr=rate) for rate in (0.1, 0.2)]
    optimizers = optim.Optimizers(parts)
    optimizers.set_rates([0.5, 0.25])
    assert [group["lr"] for group in optimizers.groups()] == [0.05, 0.05]
    optimizers.set_rates([0.5])
    assert [group["lr"] for group in optimizers.groups()] == [0.05, 0.1]
    with pytest.raises(ValueError):
        optimizers.set_rates([1.0, 1.0, 1.0])


def test_one_warm_up_by_steps_and_by_shares():
    assert [optim.cosine(step, 10, warmup=4) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    curve = optim.RateCurve(warmup=0.4)
    assert [curve(t) for t in (0, 0.1, 0.2, 0.3)] == pytest.approx([0, 0.25, 0.5, 0.75])
    assert optim.cosine(4, 10, warmup=4) == curve(0.4) == 1.0
    assert optim.cosine(0, 10) == optim.RateCurve()(0.0) == 1.0
