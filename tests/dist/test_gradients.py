"""Gradients that two processes average, in float64, beside those of one process with the whole batch."""

import pytest
import torch
import torch.distributed as dist

from effvl_cli.core import distributed
from effvl_cli.techniques.pretrain.dino import DINO
from effvl_cli.techniques.pretrain.method import View, Views, alone
from effvl_cli.techniques.pretrain.mocov3 import MoCoV3
from effvl_cli.techniques.pretrain.simclr import SimCLR
from effvl_cli.techniques.pretrain.tokens import random_tokens
from effvl_cli.techniques.pretrain.vit import VisionTransformer, ViTShape
from tests.processes import group

BATCH, WORLD = 8, 2


def method_of(name):
    torch.manual_seed(0)
    backbone = VisionTransformer(ViTShape(16, 2, 2, 4, 16))
    made = {
        "simclr": lambda: SimCLR(backbone, hidden=24, out=8),
        "mocov3": lambda: MoCoV3(backbone, hidden=24, out=8),
        "mocov3-symmetric": lambda: MoCoV3(backbone, hidden=24, out=8, symmetric=True),
        "dino": lambda: DINO(backbone, hidden=24, bottleneck=8, prototypes=32),
    }
    return made[name]().double().train()


def views_of(name, rows):
    """Some rows of a batch that is the same for all; the keys of MoCo keep all tokens."""

    def view(seed, keep=None, side=16):
        g = torch.Generator().manual_seed(seed)
        images = torch.randn(BATCH, 3, side, side, generator=g, dtype=torch.float64)
        kept = None if keep is None else random_tokens(BATCH, 16, keep, g)[rows]
        return View(images[rows], 4, kept)

    if name == "dino":
        return Views([view(1, 5), view(2, 5)], [view(1), view(2)], [view(3, side=8)])
    if name == "mocov3-symmetric":
        return Views([view(1, 5), view(2, 5)], [view(2), view(1)])
    return Views([view(1, 5)], [view(2, 5 if name == "simclr" else None)])


def gradients(name, rows, gather):
    method = method_of(name)
    loss = method.loss(views_of(name, rows), gather, 0.3).loss
    loss.backward()
    found = {key: p.grad for key, p in method.named_parameters() if p.grad is not None}
    return loss.detach(), found, {key: value.clone() for key, value in method.named_buffers()}


class _Averaging(distributed._Gather):
    """The gather as it must not be."""

    @staticmethod
    def backward(ctx, gradient):
        return distributed._Gather.backward(ctx, gradient) / WORLD


def _worker(rank, names, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=WORLD)
    share = BATCH // WORLD
    rows = slice(rank * share, (rank + 1) * share)
    for name in names:
        gathers = {"sum": distributed.gather_with_gradient, "mean": _Averaging.apply}
        for kind, gather in gathers.items():
            loss, found, buffers = gradients(name, rows, gather)
            for value in (loss, *found.values()):
                dist.all_reduce(value)
                value /= WORLD
            if rank == 0:
                torch.save({"loss": loss, "gradients": found, "buffers": buffers}, f"{folder}/{name}-{kind}.pt")
    dist.destroy_process_group()


NAMES = ("simclr", "mocov3", "mocov3-symmetric", "dino")


@pytest.fixture(scope="module")
def of_two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    group(lambda rank: _worker(rank, NAMES, str(folder)), WORLD)
    return lambda name, kind="sum": torch.load(folder / f"{name}-{kind}.pt", weights_only=True)


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_have_the_gradient_of_one(of_two, name):
    loss, expected, buffers = gradients(name, slice(None), alone)
    found = of_two(name)
    assert abs(float(found["loss"] - loss)) < 1e-10
    assert found["gradients"].keys() == expected.keys() and len(expected) > 20
    for key, gradient in expected.items():
        assert (found["gradients"][key] - gradient).abs().max() < 1e-10, key
    assert max(float(g.abs().max()) for g in expected.values()) > 1e-3  # they are no zeros
    for key, value in buffers.items():  # batch norms' statistics and DINO's centre are those of all images
        assert torch.allclose(found["buffers"][key].double(), value.double(), atol=1e-10), key


def test_a_gather_that_averages_would_halve_the_backbones_gradient(of_two):
    expected = of_two("simclr")["gradients"]
    halved = of_two("simclr", "mean")["gradients"]
    backbone = {key: gradient for key, gradient in expected.items() if key.startswith("backbone.")}
    assert len(backbone) > 10 and max(float(gradient.abs().max()) for gradient in backbone.values()) > 1e-3
    for key, gradient in backbone.items():
        assert torch.allclose(halved[key] * WORLD, gradient, atol=1e-12), key


def test_the_first_positive_of_the_second_process_is_behind_the_firsts_rows(of_two):
    """MoCo's labels: were each process to count from 0, its own keys would not be its queries' positives."""
    method = method_of("mocov3")
    with torch.no_grad():
        queries = method._queries(list(views_of("mocov3", slice(None)).query), alone)[0]
        keys = method._keys(list(views_of("mocov3", slice(None)).key), alone)[0]
    logits = torch.nn.functional.normalize(queries, dim=1) @ torch.nn.functional.normalize(keys, dim=1).T / 0.2
    per_process = [
        torch.nn.functional.cross_entropy(logits[4 * r : 4 * r + 4], torch.arange(4) + 4 * r) for r in range(WORLD)
    ]
    assert float(of_two("mocov3")["loss"]) == pytest.approx(0.4 * float(sum(per_process)) / WORLD, abs=1e-10)
