"""Networks without some of their units: checked bit for bit, and counted by hand."""

import copy

import pytest
import timm
import torch
import torchvision
from torch import nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt

from effvl_cli.core.measure import count_macs, count_parameters
from effvl_cli.models.network import build
from effvl_cli.techniques.prune_blocks.discover import discover
from effvl_cli.techniques.prune_blocks.halves import split_halves
from effvl_cli.techniques.prune_blocks.surgery import (
    SurgeryError,
    apply_removals,
    bypassed,
    original_paths,
    prune,
    remove,
)
from effvl_cli.techniques.prune_blocks.unit import Unit

pytestmark = pytest.mark.usefixtures("repeated_numbers")


def images(size, count=2):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))


def cut(network, units, size, step=1):
    return prune(network, units, images(size), count_macs=count_macs, originals=original_paths(network), step=step)


def lively(network):
    """Weights with which every branch counts: timm's layer scales and last norms start near zero."""
    generator = torch.Generator().manual_seed(1)
    for parameter in network.parameters():
        if parameter.ndim == 1:
            parameter.data.add_(0.2 + 0.1 * torch.rand(parameter.shape, generator=generator))
        elif not parameter.any():  # heads that start at zero
            parameter.data.add_(torch.randn(parameter.shape, generator=generator))
    return network.eval()


NETWORKS = {
    "cifar-resnet:20": (lambda: build("cifar-resnet:20", seed=0).module, 32, "delete"),
    "tv resnet18": (lambda: torchvision.models.resnet18(num_classes=5), 32, "delete"),
    "tv resnet50": (lambda: torchvision.models.resnet50(num_classes=5), 32, "delete"),
    "tv vit": (lambda: torchvision.models.VisionTransformer(32, 8, 2, 2, 32, 64, num_classes=5), 32, "delete"),
    "tv convnext": (
        lambda: ConvNeXt(
            [CNBlockConfig(8, 16, 1), CNBlockConfig(16, 24, 1), CNBlockConfig(24, 32, 2), CNBlockConfig(32, None, 1)]
        ),
        64,
        "delete",
    ),
    "tv mobilenet_v2": (lambda: torchvision.models.mobilenet_v2(num_classes=5), 32, "delete"),
    "timm swin": (
        lambda: timm.create_model("swin_tiny_patch4_window7_224", img_size=56, depths=(1, 1, 2, 1), num_classes=5),
        56,
        "delete",
    ),
    "timm regnety": (lambda: timm.create_model("regnety_002", num_classes=5), 32, "delete"),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_without_a_unit_a_network_is_the_one_that_passes_its_input_on(name):
    make, size, mode = NETWORKS[name]
    network = lively(make())
    units = discover(network, images(size)).units
    before = {key: value.clone() for key, value in network.state_dict().items()}
    shown = units if len(units) <= 7 else units[:: len(units) // 4]
    for unit in shown:
        pruned = cut(network, [unit], size)
        with torch.no_grad(), bypassed(network, [unit]):
            expected = network(images(size))
        with torch.no_grad():
            assert torch.equal(pruned.network(images(size)), expected)
            assert not torch.equal(network(images(size)), expected)
        (removal,) = pruned.removals
        assert (removal.original_path, removal.path_at_step, removal.mode, removal.step) == (unit.path,) * 2 + (mode, 1)
        lost = count_parameters(network.get_submodule(unit.path))
        assert count_parameters(pruned.network) == count_parameters(network) - lost
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_several_units_go_and_keep_their_first_names():
    network = lively(build("cifar-resnet:20", seed=0).module)
    first = cut(network, [Unit("layer1.0", "layer1"), Unit("layer1.2", "layer1")], 32)
    assert [(r.original_path, r.path_at_step) for r in first.removals] == [
        ("layer1.0", "layer1.0"),
        ("layer1.2", "layer1.1"),
    ]
    assert first.originals["layer1.0"] == "layer1.1"
    second = prune(
        first.network,
        [Unit("layer1.0", "layer1")],
        images(32),
        count_macs=count_macs,
        originals=first.originals,
        step=2,
    )
    assert second.removals[0].original_path == "layer1.1" and len(second.network.layer1) == 0
    again = apply_removals(build("cifar-resnet:20", seed=3).module, [*first.removals, *second.removals]).eval()
    again.load_state_dict(second.network.state_dict())
    with torch.no_grad():
        assert torch.equal(again(images(32)), second.network(images(32)))


def multiset(stages, valid):
    """The last units of each stage, so many of them."""
    return [unit for stage, count in stages.items() for unit in [u for u in valid if u.stage == stage][-count:]]


# Published parameter cuts of SR-init (arXiv 2303.07677) are reproduced by one multiset of identity blocks each.
ANCHORS = {
    "resnet50": (
        "torchvision:resnet50",
        1000,
        {"layer3": 1, "layer4": 2},
        (25_557_032, 15_514_664),
        (4_089_184_256, 3_434_086_400),
        0.39294,
    ),
    "resnet56-c10": (
        "cifar-resnet:56",
        10,
        {"layer1": 2, "layer2": 1, "layer3": 7},
        (853_018, 307_226),
        (125_485_696, 78_299_776),
        0.63984,
    ),
    "resnet56-c100": (
        "cifar-resnet:56",
        100,
        {"layer1": 2, "layer2": 1, "layer3": 4},
        (858_868, 858_868 - 2 * 4_672 - 18_560 - 4 * 73_984),
        (125_485_696 + 64 * 90, 125_485_696 + 64 * 90 - 7 * 4_718_592),
        0.37705,
    ),
}


@pytest.mark.parametrize("name", ANCHORS)
def test_published_cuts_to_the_integer(name):
    spec, classes, stages, params, macs, share = ANCHORS[name]
    built = build(spec, seed=0, num_classes=classes)
    network, size = built.module.eval(), built.preprocess.size[0]
    valid = discover(network, images(min(size, 64))).units
    assert (count_parameters(network), count_macs(network, images(size, 1))) == (params[0], macs[0])
    pruned = copy.deepcopy(network)
    for unit in reversed(multiset(stages, valid)):
        remove(pruned, unit.path, "delete")
    assert (count_parameters(pruned), count_macs(pruned, images(size, 1))) == (params[1], macs[1])
    assert 1 - params[1] / params[0] == pytest.approx(share, abs=5e-6)


@pytest.mark.parametrize(
    ("spec", "size", "params", "macs"),
    [("torchvision:resnet50", 224, 0.6062, 0.6408), ("cifar-resnet:56", 32, 0.9172, 0.9401)],
)
def test_attainable_maxima(spec, size, params, macs):
    network = build(spec, seed=0).module.eval()
    smaller = copy.deepcopy(network)
    for unit in reversed(discover(network, images(min(size, 64))).units):
        remove(smaller, unit.path, "delete")
    assert 1 - count_parameters(smaller) / count_parameters(network) == pytest.approx(params, abs=5e-5)
    gone = 1 - count_macs(smaller, images(size, 1)) / count_macs(network, images(size, 1))
    assert gone == pytest.approx(macs, abs=5e-5)


def test_a_network_that_needs_its_child_gets_an_identity_in_its_place():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleDict({"one": Residual(), "two": Residual()})

        def forward(self, x):
            return self.blocks["two"](self.blocks["one"](x)).mean((2, 3))

    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return x + self.conv(x)

    network = Named().eval()
    pruned = cut(network, [Unit("blocks.one", "blocks")], 8)
    assert pruned.removals[0].mode == "identity" and type(pruned.network.blocks["one"]) is nn.Identity


def test_a_unit_that_is_no_shortcut_cannot_be_taken_out_silently():
    class Counts(nn.Sequential):
        def forward(self, x):
            return super().forward(x) * len(self)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = Counts(nn.Sequential(nn.Conv2d(3, 3, 1)), nn.Sequential(nn.Conv2d(3, 3, 1)))

        def forward(self, x):
            return self.blocks(x).mean((2, 3))

    pruned = cut(Net().eval(), [Unit("blocks.0", "blocks")], 8)
    assert pruned.removals[0].mode == "identity"  # deleting it would change the factor
    with pytest.raises(SurgeryError, match="V1"):

        class Asks(Net):
            def forward(self, x):
                return self.blocks[0](x).mean((2, 3)) * len(list(self.blocks[0].parameters()))

        cut(Asks().eval(), [Unit("blocks.0", "blocks")], 8)


def test_stochastic_depth_grows_linearly_over_the_blocks_that_are_left():
    network = timm.create_model("convnext_atto", drop_path_rate=0.3, depths=(1, 1, 3, 1), num_classes=5).eval()
    remove(network, "stages.2.blocks.1", "delete")
    fresh = timm.create_model("convnext_atto", drop_path_rate=0.3, depths=(1, 1, 2, 1), num_classes=5)
    rates = [m.drop_prob for m in network.modules() if type(m).__name__ == "DropPath"]
    assert rates == pytest.approx([m.drop_prob for m in fresh.modules() if type(m).__name__ == "DropPath"])


VITS = {
    "torchvision": lambda: torchvision.models.VisionTransformer(32, 8, 3, 2, 32, 64, num_classes=5),
    "timm": lambda: timm.create_model("vit_tiny_patch16_224", img_size=32, depth=3, init_values=0.5, num_classes=5),
}


@pytest.mark.parametrize("source", VITS)
def test_halves_of_vit_blocks_compute_the_same_and_go_one_by_one(source):
    network = lively(VITS[source]())
    whole = copy.deepcopy(network)
    with torch.no_grad():
        expected = network(images(32))
    parameters = count_parameters(network)
    assert split_halves(network) == 3
    with torch.no_grad():
        assert torch.equal(network(images(32)), expected)
    assert count_parameters(network) == parameters
    units = discover(network, images(32)).units
    names = [unit.path.rpartition("_")[2] for unit in units]
    assert names == ["attention", "mlp"] * 3 and {unit.shortcut for unit in units} == {"identity"}
    assert len({unit.stage for unit in units}) == 1
    pruned = cut(network, [units[2], units[3]], 32)
    assert [r.mode for r in pruned.removals] == ["delete", "delete"]
    assert pruned.originals[units[4].path] == units[4].path  # halves keep their names
    remove(whole, units[2].path.removesuffix("_attention"), "delete")  # both halves of a block are the block
    with torch.no_grad():
        assert torch.equal(whole(images(32)), pruned.network(images(32)))


def test_networks_without_vit_blocks_are_not_split():
    assert split_halves(torchvision.models.resnet18()) == 0
    assert split_halves(timm.create_model("swin_tiny_patch4_window7_224", img_size=56)) == 0
