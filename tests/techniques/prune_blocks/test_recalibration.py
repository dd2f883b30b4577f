"""Batch-norm statistics without a unit, against means taken by hand."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from effvl_cli.techniques.prune_blocks.recalibrate import recalibrate, recalibrated
from effvl_cli.techniques.prune_blocks.score import Scorer
from effvl_cli.techniques.prune_blocks.surgery import bypassed


def _batches(*sizes):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(size, 3, 32, 32, generator=generator) for size in sizes]


def _trained(network):
    """Statistics that are not those of a fresh network."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return network


def _slowly(network, unit, batches):
    """Statistics by hand, of the inputs of the norms of a copy whose norms behind the unit are in training mode."""
    after, inputs = copy.deepcopy(network), {}
    for name, module in after.named_modules():
        # "bn1" of the stem and "layer1.0.bn1": the paths of a CIFAR ResNet are in the order of their calls
        if isinstance(module, nn.BatchNorm2d) and name > unit.path and not name.startswith(f"{unit.path}."):
            module.train().register_forward_pre_hook(lambda m, args, n=name: inputs.setdefault(n, []).append(args[0]))
    with torch.no_grad(), bypassed(after, [unit]):
        for images in batches:
            after(images)
    found = {}
    for name, seen in inputs.items():
        found[f"{name}.running_mean"] = torch.stack([x.mean((0, 2, 3)) for x in seen]).mean(0)
        found[f"{name}.running_var"] = torch.stack([x.var((0, 2, 3)) for x in seen]).mean(0)
        found[f"{name}.num_batches_tracked"] = torch.tensor(len(seen))
    return found


def test_norms_behind_a_unit_get_the_statistics_of_the_network_without_it(resnet):
    network, units = resnet(14, width=4)
    _trained(network)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    batches = _batches(8, 8, 5)
    found = recalibrated(network, units, batches)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(module.training for module in network.modules())
    assert {m.momentum for m in network.modules() if isinstance(m, nn.BatchNorm2d)} == {0.1}
    for unit, buffers in zip(units, found, strict=True):
        expected = _slowly(network, unit, batches)
        assert buffers.keys() == expected.keys()
        for name, value in buffers.items():
            torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sharing", ["chain", "replay", "off"])
def test_candidates_are_scored_with_their_own_statistics(resnet, sharing):
    network, units = resnet(14, width=4)
    _trained(network)
    buffers = recalibrated(network, units, _batches(8, 8))
    images, labels = _batches(6)[0], torch.arange(6)
    scorer = Scorer(network, units, sharing, buffers=buffers)
    rows = []
    for unit, own in zip(units, buffers, strict=True):
        changed = copy.deepcopy(network)
        changed.load_state_dict({**network.state_dict(), **own})
        with torch.no_grad(), bypassed(changed, [unit]):
            rows.append(F.cross_entropy(changed(images).double(), labels, reduction="none"))
    for _ in range(2):
        found = scorer.batch(images, labels)
        assert torch.equal(found.loss[1:], torch.stack(rows))
        assert scorer.sharing == sharing and not scorer.reason
    with torch.no_grad():
        assert torch.equal(found.loss[0], F.cross_entropy(network(images).double(), labels, reduction="none"))
    plain = Scorer(network, units, sharing).batch(images, labels)
    assert torch.equal(plain.loss[0], found.loss[0]) and not torch.equal(plain.loss[1], found.loss[1])


def test_a_network_without_batch_norm_is_refused():
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.GroupNorm(1, 3))
    with pytest.raises(ValueError, match="no batch norm"):
        recalibrated(network, [], _batches(2))


class Dropping(nn.Module):
    """Half of the features are dropped in training mode."""

    def __init__(self):
        super().__init__()
        self.conv, self.drop, self.norm = nn.Conv2d(3, 4, 1), nn.Dropout(0.5), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.norm(self.drop(self.conv(x))).mean((2, 3))


def test_the_whole_network_is_recalibrated_with_its_norms_alone_in_training_mode():
    network, batches = Dropping().eval(), _batches(8, 5)
    with torch.no_grad():
        inputs = [network.conv(images) for images in batches]
    recalibrate(network, batches)
    mean = torch.stack([x.mean((0, 2, 3)) for x in inputs]).mean(0)
    torch.testing.assert_close(network.norm.running_mean, mean)
    torch.testing.assert_close(network.norm.running_var, torch.stack([x.var((0, 2, 3)) for x in inputs]).mean(0))
    assert network.norm.momentum == 0.1 and not network.norm.training and network.norm.num_batches_tracked == 2
