"""Candidates as rows of one larger batch: the same scores up to rounding, from fewer and larger calls."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from effvl_cli.core.measure import count_macs
from effvl_cli.techniques.prune_blocks.score import Scorer
from effvl_cli.techniques.prune_blocks.scoring_cost import cost_model, measure_costs
from effvl_cli.techniques.prune_blocks.unit import Unit


def _images(count, size=32):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def _labels(count):
    return torch.randint(10, (count,), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("stack", [2, 3, 7, 20])
def test_stacked_scores_are_those_of_whole_passes(resnet, stack):
    network, units = resnet(20)
    images, labels = _images(12), _labels(12)
    naive = Scorer(network, units, "off").batch(images, labels)
    scorer = Scorer(network, units, stack=stack)
    for _ in range(2):
        found = scorer.batch(images, labels)
        assert scorer.sharing == "stack" and not scorer.reason
        torch.testing.assert_close(found.loss, naive.loss, rtol=1e-4, atol=1e-5)
        assert torch.equal(found.correct, naive.correct)
    some = [5, 0, 3]
    torch.testing.assert_close(scorer.batch(images, labels, some).loss, naive.loss[[0, 6, 1, 4]], rtol=1e-4, atol=1e-5)
    assert scorer.batch(images, labels, []).loss.shape == (1, 12)


def test_stacking_computes_what_sharing_does_in_fewer_calls(resnet):
    network, units = resnet(20)
    images, labels = _images(3), _labels(3)
    calls = []
    network.fc.register_forward_hook(lambda module, args, output: calls.append(len(output)))
    cost = cost_model(*measure_costs(network, units, images[:1], count_macs))
    scorer = Scorer(network, units, stack=3)
    scorer.batch(images, labels)
    calls.clear()
    with FlopCounterMode(display=False) as counter:
        scorer.batch(images, labels)
    assert counter.get_total_flops() == 2 * 3 * cost.cached
    assert calls == [9, 9, 3, 3]  # seven candidates by three, and the network itself


class Overwriting(nn.Module):
    """x + linear(relu(x)), the ReLU in place; so is the addition behind it."""

    def __init__(self, inplace=True):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.ReLU(inplace), nn.Linear(6, 6)) for _ in range(4))
        self.stem, self.head = nn.Linear(12, 6), nn.Linear(6, 10)

    def forward(self, images):
        x = self.stem(images[:, :, :2, :2].flatten(1))
        for block in self.blocks:
            x = block(x)
            x += 1
        return self.head(x)


class Skipping(Overwriting):
    def __init__(self):
        super().__init__(inplace=False)

    def forward(self, images):
        x = self.stem(images[:, :, :2, :2].flatten(1))
        early = self.blocks[1](self.blocks[0](x))
        return self.head(self.blocks[3](self.blocks[2](early) + x))


def _toy(kind):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind().eval(), [Unit(f"blocks.{i}", "blocks") for i in range(4)]


def test_parts_that_write_into_what_they_get():
    network, units = _toy(Overwriting)
    images, labels = _images(5), _labels(5)
    naive = Scorer(network, units, "off").batch(images, labels)
    scorer = Scorer(network, units, stack=2)
    for _ in range(2):
        torch.testing.assert_close(scorer.batch(images, labels).loss, naive.loss, rtol=1e-4, atol=1e-5)
    assert scorer.sharing == "stack"


def test_a_network_that_is_no_chain_is_not_stacked():
    network, units = _toy(Skipping)
    images, labels = _images(5), _labels(5)
    scorer = Scorer(network, units, stack=2)
    assert torch.equal(scorer.batch(images, labels).loss, Scorer(network, units, "off").batch(images, labels).loss)
    assert scorer.sharing == "replay" and scorer.reason.startswith("stack: some part between units")


class Centred(nn.Module):
    """Looks at the whole batch, so that rows of other candidates change its answer."""

    def forward(self, x):
        return x - x.mean(0)


def test_what_depends_on_the_other_rows_is_found_out():
    network, units = _toy(Overwriting)
    network.head = nn.Sequential(Centred(), network.head)
    scorer = Scorer(network, units, stack=4)
    images, labels = _images(5), _labels(5)
    assert torch.equal(scorer.batch(images, labels).loss, Scorer(network, units, "off").batch(images, labels).loss)
    assert scorer.sharing == "chain" and scorer.reason == "stack: the logits differ from those without sharing"
