"""Owned weights on two processes: equal owners, and gradients that are the mean of those of the two halves."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from effvl_cli.techniques.continual.owned_network import OwnedNetwork
from tests.processes import group

WORLD, BATCH = 2, 8


def _network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5), nn.Linear(5, 2))
    network = OwnedNetwork(net.double())
    network.claim(1)
    network.prune(0.5)
    network.commit()
    network.claim(2, release_init="kaiming-scaled", generator=torch.Generator().manual_seed(0))
    network.prune(0.2)
    return network


def _gradients(network, module, rows):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(BATCH, 3, 4, 4, generator=generator, dtype=torch.float64)
    F.cross_entropy(module(images[rows]), torch.arange(BATCH)[rows] % 2).backward()
    network.after_backward()
    kinds = {"score": network.score_parameters(), "delta": network.own_parameters()}
    found = {f"{kind}{i}": p.grad.clone() for kind, parameters in kinds.items() for i, p in enumerate(parameters)}
    network.module.zero_grad()
    return found


def _worker(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=WORLD)
    network = _network()
    module = nn.parallel.DistributedDataParallel(network.module, broadcast_buffers=False)
    share = BATCH // WORLD
    found = _gradients(network, module, slice(rank * share, (rank + 1) * share))
    torch.save({**found, **network.owner()}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_gradients_are_the_mean_of_the_halves(tmp_path):
    group(lambda rank: _worker(rank, str(tmp_path)), WORLD)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(WORLD))
    network = _network()
    halves = [_gradients(network, network.module, slice(start, start + 4)) for start in (0, 4)]
    assert {key[:5] for key in halves[0]} == {"score", "delta"}
    for key, value in halves[0].items():
        torch.testing.assert_close(first[key], (value + halves[1][key]) / 2, rtol=1e-12, atol=1e-15)
    assert all(torch.equal(value, second[key]) for key, value in first.items())
