"""The kit that trainings share: equal shares, streams from any step on, one classifier task."""

import pytest
import torch

from effvl_cli.config.options import TrainOptions
from effvl_cli.core import distributed
from effvl_cli.core.errors import UsageError
from effvl_cli.data.sampler import EpochSampler
from effvl_cli.engines.common.batches import check_divides, in_memory
from effvl_cli.engines.common.plans import optimizers_of, plan_of


def _processes(monkeypatch, size, rank=0):
    monkeypatch.setattr(distributed, "world", lambda: distributed.World(rank, size, rank))


@pytest.mark.parametrize(
    ("size", "world", "more", "text", "better"),
    [
        (10, 4, {}, "--batch-size 10 gives 4 processes no equal share", 12),
        (12, 2, {"accumulate": 4}, "--batch-size 12 gives 2 processes in 4 passes each no equal share", 16),
        (1, 1, {"least": 2}, "--batch-size 1 gives 1 process no equal share of at least 2", 2),
    ],
)
def test_one_wording_for_batches_that_do_not_divide(size, world, more, text, better, monkeypatch):
    _processes(monkeypatch, world)
    with pytest.raises(UsageError) as refused:
        check_divides(size, "--batch-size", **more)
    assert (refused.value.message, refused.value.hint) == (text, f"Give --batch-size {better}")
    check_divides(better, "--batch-size", **more)


def test_a_stream_goes_on_from_any_step_and_the_processes_take_it_apart(monkeypatch):
    def numbers(stream, start, count):
        batches = stream(start)
        return [next(batches).tolist() for _ in range(count)]

    sampler = EpochSampler(10, 4, seed=3)
    whole = numbers(in_memory(sampler, lambda rows: rows), 0, 4)
    assert numbers(in_memory(sampler, lambda rows: rows), 2, 2) == whole[2:]
    halves = []
    for rank in range(2):
        _processes(monkeypatch, 2, rank)
        halves.append(numbers(in_memory(sampler, lambda rows: rows), 0, 4))
    assert [one + other for one, other in zip(*halves, strict=True)] == whole


def test_a_plan_and_its_optimizers_are_those_of_the_options():
    config = TrainOptions(
        **{"lr": 0.5, "weight_decay": 0.1, "weight_decay_end": 0.3, "warmup": 0.2, "lr_floor": 0.1},
        **{"optimizer": "sgd", "decay_all": True, "clip_grad": 2.0, "clip_mode": "per-param", "accumulate": 3},
    )
    plan = plan_of(config, 10, precision="bf16", phase="x", eval_every=7)
    assert [plan.rate(step) for step in (0, 1, 2, 6)] == pytest.approx([0, 0.5, 1, 0.55])
    assert [plan.decay(step) for step in (0, 5, 10)] == pytest.approx([1, 2, 3])
    assert (plan.steps, plan.precision, plan.phase, plan.eval_every) == (10, "bf16", "x", 7)
    assert (plan.clip_grad, plan.clip_mode, plan.accumulate) == (2.0, "per-param", 3)
    [group] = optimizers_of(config, torch.nn.Linear(2, 2)).groups()
    assert (group["lr"], group["weight_decay"], group["momentum"]) == (0.5, 0.1, 0.9)
