"""Channels without influence: found by hand in small networks, and the output stays what it was."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import VisionTransformer

from effvl_cli.models.cifar_resnet import CifarResNet
from effvl_cli.techniques.continual.dead_channels import without_dead_channels


def chain(*, flatten_pixels=1):
    """conv 4 - norm - ReLU - pool - conv 5 - norm - ReLU - linear."""
    torch.manual_seed(0)
    pool = nn.AdaptiveAvgPool2d(flatten_pixels)
    net = nn.Sequential(
        *(nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(4, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(), pool, nn.Flatten()),
        nn.Linear(5 * flatten_pixels**2, 2),
    )
    with torch.no_grad():
        for norm in (net[1], net[5]):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
            norm.bias.normal_()
    return net.double().eval()


def assert_same_outputs(net, smaller):
    images = torch.randn(3, 3, 8, 8, dtype=torch.double)
    with torch.no_grad():
        assert torch.allclose(net(images), smaller(images), rtol=1e-12, atol=1e-12)


def test_a_channel_that_nothing_reads_goes_and_so_does_what_it_alone_reads():
    net = chain()
    with torch.no_grad():
        net[4].weight[:, 1] = 0  # nothing reads channel 1 of the first layer
        net[9].weight[:, [0, 3]] = 0
        net[4].weight[[1, 2, 4], 2] = 0  # channel 2 is read by channels 0 and 3 alone, which go
    smaller, removed = without_dead_channels(net)
    assert removed == 4
    assert smaller[0].weight.shape == (2, 3, 3, 3) and smaller[4].weight.shape == (3, 2, 3, 3)
    assert smaller[9].weight.shape == (2, 3)
    assert (smaller[0].out_channels, smaller[1].num_features, smaller[4].in_channels) == (2, 2, 2)
    assert (smaller[9].in_features, net[0].weight.shape[0]) == (3, 4)
    assert_same_outputs(net, smaller)


def test_a_constant_goes_only_where_it_is_zero():
    net = chain()
    with torch.no_grad():
        net[0].weight[[0, 1]] = 0
        net[1].running_mean[:2] = torch.tensor([1.0, -1.0])
        net[1].weight[:2], net[1].bias[:2] = 1, 0  # constants -1 / sd and 1 / sd before the ReLU
        net[5].weight[2], net[5].bias[2] = 0, -0.5  # a norm that ignores its input
        net[5].weight[3], net[5].bias[3] = 0, 0.5
    smaller, removed = without_dead_channels(net)
    assert removed == 2
    assert smaller[0].weight.shape[0] == 3 and smaller[4].weight.shape[0] == 4
    assert_same_outputs(net, smaller)


def test_columns_of_a_flattened_channel_go_together():
    net = chain(flatten_pixels=2)
    with torch.no_grad():
        net[9].weight[:, 4:8] = 0  # all four pixels of channel 1
        net[9].weight[:, 8:11] = 0  # three of channel 2
    smaller, removed = without_dead_channels(net)
    assert removed == 1 and smaller[9].weight.shape == (2, 16)
    assert_same_outputs(net, smaller)


def test_one_channel_of_a_layer_that_is_all_dead_stays():
    net = chain()
    with torch.no_grad():
        net[9].weight.zero_()
    smaller, removed = without_dead_channels(net)
    assert removed == 4 + 3 and smaller[9].weight.shape == (2, 1)
    assert_same_outputs(net, smaller)


def test_a_network_without_dead_channels_is_copied():
    net = chain()
    smaller, removed = without_dead_channels(net)
    assert removed == 0 and smaller is not net
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), smaller.state_dict().values(), strict=True))


def test_channels_of_a_residual_stream_stay_and_those_inside_a_block_go():
    torch.manual_seed(0)
    net = CifarResNet((1, 1, 1), 3, 4).double().eval()
    with torch.no_grad():
        net.layer2[0].conv2.weight[:, [2, 5]] = 0
        net.layer3[0].conv1.weight[:, 1] = 0  # the shortcut reads it too
        net.fc.weight[:, 0] = 0  # the last sum writes it
    smaller, removed = without_dead_channels(net)
    assert removed == 2 and smaller.layer2[0].conv1.weight.shape[0] == 6
    assert_same_outputs(net, smaller)


def test_the_hidden_units_of_a_transformer():
    torch.manual_seed(0)
    net = VisionTransformer(8, 4, 1, 2, 8, 12, num_classes=3).double().eval()
    hidden = net.encoder.layers[0].mlp
    with torch.no_grad():
        hidden[3].weight[:, :5] = 0
        hidden[0].weight[7], hidden[0].bias[7] = 0, 0  # GELU of 0
        hidden[0].weight[8], hidden[0].bias[8] = 0, 1
    smaller, removed = without_dead_channels(net)
    assert removed == 6 and smaller.encoder.layers[0].mlp[0].out_features == 6
    assert_same_outputs(net, smaller)


def test_a_layer_that_is_used_twice_stays():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.two(F.relu(self.one(F.relu(self.one(x)))))

    net = Twice()
    with torch.no_grad():
        net.two.weight[:, 0] = 0
    assert without_dead_channels(net)[1] == 0


def test_a_network_that_cannot_be_traced_is_refused():
    class Branch(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(ValueError, match="symbolically traced"):
        without_dead_channels(Branch())
