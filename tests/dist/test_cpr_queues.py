"""Queues that two processes fill and train against, in float64, beside those of one process with the whole batch."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from effvl_cli.core import distributed
from effvl_cli.core.errors import DistributedError
from effvl_cli.engines.cpr_mine.clip_training import check_queues, has_batch_norm
from effvl_cli.techniques.cpr_mine.cascade_moco import CascadeMoCo, ClipViews, Objective, Sharing
from effvl_cli.techniques.cpr_mine.queue import Queues
from effvl_cli.techniques.cpr_mine.stages import Stage
from tests.processes import group

BATCH, WORLD, SLOTS, C, DIM, STEPS = 8, 2, 20, 6, 5, 4
STAGES = (Stage("flow", 10), Stage("rgb", 6), Stage("flow", 3))


class Encoder(nn.Module):
    def __init__(self, seed, norm):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.linear = nn.Linear(C, DIM)
        self.norm = nn.BatchNorm1d(C) if norm else nn.Identity()

    def forward(self, clips):
        return self.linear(self.norm(clips.flatten(1)))


def method_of(norm):
    queues = Queues({"rgb": DIM, "flow": DIM}, SLOTS, torch.Generator().manual_seed(0))
    made = CascadeMoCo(Encoder(0, norm), "rgb", {"flow": Encoder(1, False).double()}, queues, Objective(momentum=0.5))
    return made.double().train()


def views_of(step, rows):
    g = torch.Generator().manual_seed(step)
    query, key, flow = (torch.randn(BATCH, C, generator=g, dtype=torch.float64)[rows] for _ in range(3))
    clips = (torch.arange(BATCH) + step * BATCH)[rows]
    return ClipViews(query, key, {"flow": flow}, clips, clips // 3, clips % 4)


def train(norm, rows, sharing_of, average):
    method = method_of(norm)
    for step in range(3):  # 24 clips over 20 slots
        method.fill(views_of(step, rows), sharing_of(step))
    assert method.queues.full
    optimizer = torch.optim.SGD(method.encoder.parameters(), lr=0.5)
    losses = []
    for step in range(3, 3 + STEPS):
        found = method.step(views_of(step, rows), STAGES, drop_own=step % 2 == 0, sharing=sharing_of(step))
        optimizer.zero_grad()
        found.loss.backward()
        gradients = [p.grad for p in method.encoder.parameters()]
        losses.append(found.loss.detach())
        average([*gradients, losses[-1]])
        optimizer.step()
        method.follow()
        method.enqueue(found.entries)
    return {**method.state_dict(), "losses": torch.stack(losses)}


def _average(values):
    for value in values:
        dist.all_reduce(value)
        value /= WORLD


def _sharing(step):
    def gather(rows):
        return distributed.gather_rows(rows, len(rows) * WORLD)

    return Sharing(gather, distributed.own_rows, torch.Generator().manual_seed(step))


def _worker(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=WORLD)
    rows = slice(rank * BATCH // WORLD, (rank + 1) * BATCH // WORLD)
    for norm in (False, True):
        state = train(norm, rows, _sharing, _average)
        torch.save(state, f"{folder}/{norm}-{rank}.pt")
    method = method_of(norm=False)
    check_queues(method)
    if rank:
        method.queues.banks["flow"][3, 1] += 1e-12
    try:
        check_queues(method)
        found = "the same"
    except DistributedError:
        found = "differ"
    torch.save({found: torch.zeros(1)}, f"{folder}/check-{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    group(lambda rank: _worker(rank, str(folder)), WORLD)
    return lambda name: torch.load(folder / f"{name}.pt", weights_only=True)


def test_two_processes_have_the_queues_weights_and_losses_of_one(saved):
    alone = train(False, slice(None), lambda step: Sharing(), lambda values: None)
    for rank in range(WORLD):
        together = saved(f"False-{rank}")
        assert together.keys() == alone.keys() and len(alone) > 10
        for key, value in alone.items():
            assert (value.double() - together[key].double()).abs().max() < 1e-12, (rank, key)
    assert alone["queues.clips"].tolist() == [*range(40, 56), *range(36, 40)]
    assert (alone["losses"][1:] != alone["losses"][:-1]).all()


def test_with_batch_norm_both_processes_hold_the_same_queues_and_see_other_clips_in_the_key_encoder(saved):
    first, second = saved("True-0"), saved("True-1")
    for key, value in first.items():
        if "running" not in key:  # statistics stay each process's own
            assert torch.equal(value, second[key]), key
    assert not torch.equal(first["key_encoder.norm.running_mean"], second["key_encoder.norm.running_mean"])
    assert has_batch_norm(method_of(True)) and not has_batch_norm(method_of(False))


def test_queues_that_differ_in_one_number_are_noticed_on_every_process(saved):
    assert [list(saved(f"check-{rank}")) for rank in range(WORLD)] == [["differ"], ["differ"]]
