"""Networks at a width, and how a small one lies in a large one."""

import pytest
import torch
from torch import nn

from effvl_cli.core.errors import ModelError, UsageError
from effvl_cli.core.measure import count_macs
from effvl_cli.models import geometry, network
from effvl_cli.models.geometry import Geometry
from effvl_cli.techniques.continual.growth import GrowthError, axis_map, channels, grow, self_test
from effvl_cli.techniques.continual.owned import owned_names
from effvl_cli.techniques.continual.tasknet import load_task_state, materialise, task_state
from effvl_cli.techniques.continual.widening import widen

FAMILIES = ["smallcnn:width=4", "vgg:11,width=4,hidden=16,size=64", "cifar-resnet:8,width=4", "vit:nano/4@24"]


def _built(model, width=1.0, seed=0):
    return geometry.build(Geometry(model, width), num_classes=3, seed=seed)


def _count(found):
    state = found.module.state_dict()
    return sum(state[name].numel() for name in owned_names(found.module))


def test_channels_of_the_official_vgg():
    assert [channels(c, 1.5) for c in (64, 128, 256, 512, 4096)] == [78, 156, 313, 627, 5016]


def test_shared_weights_of_vgg16():
    """33,584,832 at width 1, 50,350,644 at 1.5 (a true factor of 1.4992)."""
    with torch.device("meta"):
        module = network.build("vgg:16", seed=0, num_classes=5).module
    assert sum(module.get_parameter(name).numel() for name in owned_names(module)) == 33_584_832
    with torch.device("meta"):
        widen(module, 1.5)
    assert sum(module.get_parameter(name).numel() for name in owned_names(module)) == 50_350_644


def test_shared_weights_and_cost_of_small_networks():
    assert _count(network.build("smallcnn", seed=0, num_classes=2)) == 34_020
    small = network.build("vgg:16,width=6,hidden=128,size=64", seed=0, num_classes=5)
    assert count_macs(small.module, torch.zeros(1, 3, 64, 64)) <= 15e6


@pytest.mark.parametrize(
    "name", ["vgg:12", "vgg:16,size=48", "vgg:16,width=0", "smallcnn:depth=3", "vgg:16,width=8,width=9"]
)
def test_names_that_cannot_be_read(name):
    with pytest.raises(UsageError):
        network.build(name, seed=0)


@pytest.mark.parametrize("name", ["smallcnn:width=24", "smallcnn", "vgg:16,width=8,size=64", "vgg:11,hidden=32"])
def test_a_network_is_built_again_from_its_name(name):
    assert network.build(name, seed=0, num_classes=2).name == name


def _probe(found):
    return torch.randn(2, 3, *found.preprocess.size, generator=torch.Generator().manual_seed(0))


def _moving(found):
    """A network whose norms have statistics of their own, so that a wrong place shows."""
    generator = torch.Generator().manual_seed(1)
    for part in found.module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.copy_(torch.randn(part.running_mean.shape, generator=generator) / 4)
            part.running_var.copy_(torch.rand(part.running_var.shape, generator=generator) + 0.5)
            part.weight.data.copy_(torch.rand(part.weight.shape, generator=generator) + 0.5)
            part.bias.data.copy_(torch.randn(part.bias.shape, generator=generator) / 4)
    return found


def _grown(small, large, maps):
    names = owned_names(small.module)
    state = {name: small.module.state_dict()[name] for name in names}
    owner = {name: torch.ones_like(value, dtype=torch.uint8) for name, value in state.items()}
    shapes = {name: large.module.state_dict()[name].shape for name in names}
    base, owner, fresh = grow(state, owner, shapes, maps)
    load_task_state(large.module, task_state(small.module, names), maps=maps)
    materialise(large.module, base, task_state(large.module, names))
    return base, owner, fresh


@pytest.mark.parametrize("model", FAMILIES)
def test_a_grown_network_computes_what_it_did(model):
    small, large = _moving(_built(model)), _built(model, 1.5, seed=1)
    maps = geometry.maps_between(small, large)
    base, owner, fresh = _grown(small, large, maps)
    small.module.eval()
    with torch.no_grad():
        self_test(small.module, large.module, _probe(small))
    for name in base:
        assert torch.equal(owner[name] == 0, fresh[name])
        assert not base[name][fresh[name]].any()
    assert 1.3 < _count(large) / _count(small) < 1.75


# Plain leading rows would take keys for queries; pixels before channels would mix the channels of a flattened map.
WRONG = {
    "vit:nano/4@24": ("blocks.0.attn.qkv.weight", 0, ((192,),), ((288,),)),
    FAMILIES[1]: ("body.0.weight", 1, ((4, 32),), ((4, 39),)),
}


@pytest.mark.parametrize("model", WRONG)
def test_a_wrong_layout_fails_the_self_test(model):
    small, large = _moving(_built(model)), _built(model, 1.5, seed=1)
    maps = geometry.maps_between(small, large)
    tensor, dimension, old, new = WRONG[model]
    place = list(maps[tensor])
    place[dimension] = axis_map(old, new)
    maps[tensor] = tuple(place)
    _grown(small, large, maps)
    small.module.eval()
    with torch.no_grad(), pytest.raises(GrowthError, match="differ"):
        self_test(small.module, large.module, _probe(small))


@pytest.mark.parametrize("model", ["timm:convnext_atto", "torchvision:vit_b_16", "cifar-resnet:8,pad=both"])
def test_other_families_do_not_grow(model):
    with pytest.raises(ModelError, match=r"E-GROW-UNSUPPORTED"):
        geometry.check_growable(model)


def test_tied_weights_are_refused():
    found = network.build("smallcnn:width=4", seed=0, num_classes=2)
    convolutions = [part for part in found.module.features if isinstance(part, nn.Conv2d)]
    convolutions[3].weight = convolutions[2].weight
    with pytest.raises(ModelError, match="E-TIED"):
        geometry.owned_of(found)


def test_a_geometry_survives_json():
    found = Geometry("smallcnn", 1.5, 8)
    assert Geometry.from_dict(found.to_dict()) == found
    with pytest.raises(ModelError):
        Geometry.from_dict({"model": "smallcnn"})
