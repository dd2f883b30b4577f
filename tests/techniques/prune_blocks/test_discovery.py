"""Which blocks of known networks can go, and why others cannot."""

from functools import partial

import pytest
import timm
import torch
from timm.layers import GatedMlp
from timm.models.focalnet import FocalNet
from timm.models.mlp_mixer import Affine, MlpMixer, ResBlock, SpatialGatingBlock
from timm.models.nest import Nest
from torch import nn
from torchvision.models import MaxVit, VisionTransformer

from effvl_cli.models.network import build
from effvl_cli.techniques.prune_blocks.discover import discover, most_removable, narrow, spare, with_relus
from effvl_cli.techniques.prune_blocks.score import Scorer
from effvl_cli.techniques.prune_blocks.surgery import Removal, take_out
from effvl_cli.techniques.prune_blocks.unit import Unit

pytestmark = pytest.mark.usefixtures("repeated_numbers")


def found(network, *, size=8, channels=3, **options):
    images = torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(0))
    return discover(network.eval(), images, **options)


# Input size, and how many units there are. A ResNet has one entry block with a projection (or stride) a stage, except
# where the first stage keeps the stem's shape; inverted residuals add their input where stride is 1 and the channels
# stay; transformers, mixers and ConvNeXts always do.
COUNTS = {
    "torchvision:resnet18": (64, 8 - 3),
    "torchvision:resnet50": (64, 16 - 4),
    "torchvision:regnet_y_400mf": (64, 16 - 4),
    "torchvision:regnet_x_800mf": (64, 16 - 4),
    "torchvision:convnext_tiny": (64, 3 + 3 + 9 + 3),
    "torchvision:mobilenet_v2": (64, 17 - 7),
    "torchvision:mobilenet_v3_large": (64, 15 - 5),
    "torchvision:mnasnet1_0": (64, 17 - 7),
    "torchvision:efficientnet_b0": (64, 16 - 7),
    "torchvision:efficientnet_v2_s": (64, 40 - 5),
    "torchvision:swin_t": (64, 2 + 2 + 6 + 2),
    "torchvision:swin_v2_t": (64, 2 + 2 + 6 + 2),
    "torchvision:densenet121": (64, 0),
    "torchvision:shufflenet_v2_x1_0": (64, 0),
    "timm:resnet18": (64, 8 - 3),
    "timm:resnet50": (64, 16 - 4),
    "timm:res2net50_26w_4s": (64, 16 - 4),
    "timm:seresnext26d_32x4d": (64, 8 - 4),
    "timm:nfnet_l0": (64, 12 - 4),
    "timm:hrnet_w18_small": (64, 2 * 2 + 3 * 2 + 4 * 2),
    "timm:ghostnet_100": (64, 16 - 5),
    "timm:mobilevit_xxs": (64, (1 + 2) + (2 + 4 + 3)),  # inverted residuals, and the transformers' blocks
    "timm:edgenext_xx_small": (64, 2 + 2 + 6 + 2),
    "timm:levit_128s": (224, 2 + 3 + 4),
    "timm:repvgg_a0": (64, 0),  # its identity branch is a norm
    "timm:regnety_004": (64, 16 - 4),
    "timm:regnetx_008": (64, 16 - 4),
    "timm:vit_tiny_patch16_224": (224, 12),
    "timm:mobilenetv3_small_100": (64, 11 - 5),
    "timm:poolformer_s12": (64, 2 + 2 + 6 + 2),
    # Blocks that others write in their own ways: SiLU after the addition, the size as a further input, pairs.
    "timm:gcresnet33ts": (64, 10 - 4),
    "timm:eca_resnet33ts": (64, 10 - 4),
    "timm:cspresnet50": (64, 3 + 3 + 5 + 2),
    "timm:fastvit_t8": (64, 2 + 2 + 4 + 2),
    "timm:efficientformer_l1": (224, 3 + 2 + 6 + 4),
    "timm:ghostnetv2_100": (64, 16 - 5),
    "timm:inception_next_atto": (64, 2 + 2 + 6 + 2),
    "timm:starnet_s1": (64, 2 + 2 + 8 + 3),
    "timm:darknet53": (64, 1 + 2 + 8 + 8 + 4),
    "timm:skresnet18": (64, 8 - 3),
    "timm:resnest14d": (64, 0),  # one block a stage, with a projection
    "timm:mambaout_femto": (64, 3 + 3 + 9 + 3),
    "timm:visformer_tiny": (224, 7 + 4 + 4),
    "timm:pit_ti_224": (224, 2 + 6 + 4),
    "timm:mobileone_s0": (64, 0),  # its identity branches are norms
    "timm:repvit_m0_9": (64, 0),  # only a half of each block is residual
    "timm:vovnet39a": (64, 0),
    "timm:caformer_s18": (64, 3 + 3),  # the shortcuts of its later stages have scales of their own
    "timm:tiny_vit_5m_224": (224, 2),  # a convolution without a shortcut stands in each later block
    "cifar-resnet:20": (32, 9 - 2),
    "cifar-resnet:56": (32, 27 - 2),
}


# Of the same classes as networks of `COUNTS` or `SHALLOW`, and larger.
LARGE = {
    "torchvision:resnet34": (64, 16 - 3),
    "torchvision:resnet101": (64, 33 - 4),
    "torchvision:resnext50_32x4d": (64, 16 - 4),
    "torchvision:wide_resnet50_2": (64, 16 - 4),
    "torchvision:vit_b_16": (224, 12),
    "torchvision:maxvit_t": (224, 3 * (2 + 2 + 5 + 2) - 4),
    "torchvision:vgg11_bn": (64, 0),
    "timm:pvt_v2_b0": (64, 2 + 2 + 2 + 2),
    "timm:cait_xxs24_224": (224, 24),
    "timm:convnext_tiny": (64, 3 + 3 + 9 + 3),
    "timm:mixer_s16_224": (224, 8),
    "timm:resmlp_12_224": (224, 12),
    "timm:swinv2_tiny_window8_256": (256, 2 + 2 + 6 + 2),
    "timm:twins_pcpvt_small": (64, 3 + 4 + 6 + 3),
    "timm:davit_tiny": (64, 2 * (1 + 1 + 3 + 1)),
    "timm:focalnet_tiny_srf": (64, 2 + 2 + 6 + 2),
    "timm:xcit_nano_12_p16_224": (224, 12),
    "timm:gmlp_s16_224": (224, 30),
    "timm:nest_tiny": (224, 2 + 2 + 8),
    "cifar-resnet:32": (32, 15 - 2),
    "cifar-resnet:44": (32, 21 - 2),
    "cifar-resnet:110": (32, 54 - 2),
}


def small(name, **options):
    """A classifier of timm with fewer and smaller blocks."""
    return partial(timm.create_model, name, num_classes=10, **options)


mixer = partial(MlpMixer, img_size=64, num_blocks=3, embed_dim=32)

# As those of `LARGE`, with fewer blocks.
SHALLOW = {
    "torchvision vit": (partial(VisionTransformer, 32, 8, 3, 2, 32, 64), 32, 3),
    "torchvision maxvit": (
        partial(MaxVit, (64, 64), 8, 2, [8, 16], [1, 2], 8, 0.0),
        64,
        3 * (1 + 2) - 2,
    ),
    "timm twins": (small("twins_pcpvt_small", depths=(1, 1, 2, 1)), 64, 1 + 1 + 2 + 1),
    "timm xcit": (small("xcit_nano_12_p16_224", depth=3, img_size=64), 64, 3),
    "timm swinv2": (small("swinv2_tiny_window8_256", depths=(1, 1, 2, 1), img_size=64), 64, 1 + 1 + 2 + 1),
    "timm nest": (partial(Nest, 64, embed_dims=(16, 32, 64), num_heads=(1, 2, 4), depths=(1, 1, 2)), 64, 1 + 1 + 2),
    "timm davit": (small("davit_tiny", depths=(1, 1, 2, 1)), 64, 2 * (1 + 1 + 2 + 1)),
    "timm gmlp": (partial(mixer, mlp_ratio=6, block_layer=SpatialGatingBlock, mlp_layer=GatedMlp), 64, 3),
    "timm mixer": (mixer, 64, 3),
    "timm resmlp": (partial(mixer, mlp_ratio=4, block_layer=ResBlock, norm_layer=Affine), 64, 3),
    "timm cait": (small("cait_xxs24_224", depth=3, img_size=64), 64, 3),
    "timm focalnet": (partial(FocalNet, depths=(1, 1, 2, 1), embed_dim=16), 64, 1 + 1 + 2 + 1),
    "timm pvt": (small("pvt_v2_b0", depths=(1, 1, 2, 1)), 64, 1 + 1 + 2 + 1),
    "timm convnext": (small("convnext_tiny", depths=(1, 1, 2, 1), dims=(8, 16, 24, 32)), 64, 1 + 1 + 2 + 1),
}


@pytest.mark.parametrize("spec", [*COUNTS, *(pytest.param(spec, marks=pytest.mark.slow) for spec in LARGE)])
def test_how_many_units_known_networks_have(spec):
    size, count = {**COUNTS, **LARGE}[spec]
    assert_units(build(spec, seed=0, num_classes=10).module, size, count)


@pytest.mark.parametrize("name", SHALLOW)
def test_how_many_units_shallow_networks_have(name):
    make, size, count = SHALLOW[name]
    torch.manual_seed(0)
    assert_units(make(), size, count)


def assert_units(network, size, count):
    discovery = found(network, size=size)
    assert len(discovery.units) == count
    assert len({unit.path for unit in discovery.units}) == count
    assert not any(unit.relu for unit in discovery.units)  # what comes in has been through a ReLU, or is free


def test_entry_blocks_and_containers_are_refused_with_a_reason():
    discovery = found(build("torchvision:resnet18", seed=0).module, size=64)
    assert [unit.path for unit in discovery.units] == ["layer1.0", "layer1.1", "layer2.1", "layer3.1", "layer4.1"]
    assert {row.path: row.reason for row in discovery.rejected} == {f"layer{n}.0": "shape" for n in (2, 3, 4)}
    assert discovery.stages == {f"layer{n}": 2 for n in (1, 2, 3, 4)}
    convnext = build("timm:convnext_atto", seed=0).module
    outer = {row.path: row.reason for row in found(convnext, size=32).rejected}
    assert outer["stages.0"] == "contains units"  # without a down-sampling it passes the probe as a whole
    whole = found(convnext, size=32, stages=True)
    assert "stages.0" in {unit.path for unit in whole.units}


class Residual(nn.Module):
    """x + F(x), or what `after` makes of it."""

    def __init__(self, branch, after=lambda x: x):
        super().__init__()
        self.branch, self.after = branch, after

    def forward(self, x):
        return self.after(x + self.branch(x.clone() if isinstance(self.branch[0], nn.ReLU) else x))


def conv(channels=4):
    return nn.Conv2d(channels, channels, 3, padding=1)


class Stem(nn.Module):
    """A stem, blocks in a Sequential, and a head."""

    def __init__(self, *blocks, positive=False):
        super().__init__()
        self.stem, self.blocks, self.positive = nn.Conv2d(3, 4, 1), nn.Sequential(*blocks), positive

    def forward(self, images):
        x = self.stem(images)
        return self.blocks(x.relu() if self.positive else x).mean((2, 3))


def reasons(network, **options):
    return {row.path: row.reason for row in found(network, **options).rejected}


def test_a_unit_that_begins_in_place():
    unit = Residual(nn.Sequential(nn.ReLU(inplace=True), conv()))
    assert [u.shortcut for u in found(Stem(unit)).units] == ["identity"]


def test_a_post_activation_block_is_replaced_by_a_relu_where_its_input_may_be_negative():
    def block():
        return Residual(nn.Sequential(conv()), torch.relu)

    (signed,) = found(Stem(block())).units
    assert signed.shortcut == "identity+relu" and signed.relu
    (positive,) = found(Stem(block(), positive=True)).units
    assert positive.shortcut == "identity+relu" and not positive.relu


def test_real_images_may_show_a_negative_input_that_noise_did_not():
    class Shifted(Stem):
        """Positive before the blocks unless an image is bright."""

        def forward(self, images):
            shift = images.mean((1, 2, 3), keepdim=True).clamp(min=1) - 1
            return self.blocks(self.stem(images).relu() - shift).mean((2, 3))

    network = Shifted(Residual(nn.Sequential(conv()), torch.relu), Residual(nn.Sequential(conv()), torch.relu))
    units = found(network).units
    assert [unit.relu for unit in units] == [False, False]
    assert with_relus(network, units, torch.rand(3, 3, 8, 8)) == units
    bright = with_relus(network, units, torch.rand(3, 3, 8, 8) + 5)
    assert [unit.relu for unit in bright] == [True, False]  # the first block's ReLU is before the second
    assert [unit.path for unit in bright] == ["blocks.0", "blocks.1"]
    assert not any("forward" in module.__dict__ for module in network.modules())


class PostNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(8, 8), nn.LayerNorm(8)

    def forward(self, x):
        return self.norm(x + self.linear(x))


class Projection(nn.Module):
    def __init__(self):
        super().__init__()
        self.main, self.short = conv(), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return self.main(x) + self.short(x)


class Gate(nn.Module):
    """x * 2 sigmoid(f(x)): open at zero parameters, but no shortcut."""

    def __init__(self):
        super().__init__()
        self.gate = conv()

    def forward(self, x):
        return x * (2 * torch.sigmoid(self.gate(x)))


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (PostNorm, "no identity shortcut"),
        (Projection, "no identity shortcut"),
        (Gate, "fx-disagrees"),
        (lambda: nn.Sequential(nn.Conv2d(4, 5, 1), nn.ReLU()), "shape"),
    ],
)
def test_what_looks_like_a_unit_and_is_none(block, reason):
    network = Stem(block())
    assert not found(network).units and reasons(network) == {"blocks.0": reason}


def test_calls_inputs_and_parameters_that_rule_a_unit_out():
    class Twice(Stem):
        def forward(self, images):
            return super().forward(images) + self.blocks(self.stem(images)).mean((2, 3))

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = conv()

        def forward(self, x, y):
            return x + self.conv(y)

    class Pairs(Stem):
        def forward(self, images):
            x = self.stem(images)
            for block in self.blocks:
                x = block(x, x)
            return x.mean((2, 3))

    shared = Residual(nn.Sequential(conv()))
    other = Residual(nn.Sequential(conv()))
    other.branch[0].weight = shared.branch[0].weight
    assert set(reasons(Twice(Residual(nn.Sequential(conv())))).values()) == {"calls≠1"}
    assert set(reasons(Pairs(Two())).values()) == {"inputs≠1"}
    assert set(reasons(Stem(shared, other)).values()) == {"shares parameters with another module"}


def test_with_shape_as_the_rule_any_unit_that_keeps_it_counts():
    assert [unit.shortcut for unit in found(Stem(Projection()), valid="shape").units] == ["none"]


def test_the_network_is_left_as_it_is():
    network = build("cifar-resnet:8", seed=0).module.train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    discover(network, torch.randn(2, 3, 32, 32))
    assert all(module.training for module in network.modules())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


def test_patterns_and_room_in_stages():
    units = [Unit(f"a.{n}", "a") for n in (0, 1, 2)] + [Unit("b.1", "b")]
    assert [u.path for u in narrow(units, ["a.*"], [])] == ["b.1"]
    assert [u.path for u in narrow(units, ["a.1"], ["a.?"])] == ["a.0", "a.2"]
    with pytest.raises(ValueError, match=r"'c\.\*' matches no unit"):
        narrow(units, [], ["c.*"])
    stages = {"a": 3, "b": 2}
    assert most_removable(stages, units, 1) == {"a": 2, "b": 1}
    assert most_removable(stages, units, 0) == {"a": 3, "b": 1}
    assert [u.path for u in spare({"a": 1, "b": 2}, units, 1)] == ["b.1"]


class Tail(nn.Module):
    """What blocks are written around: a stem, `run` on the features, the mean."""

    def __init__(self, run, **children):
        super().__init__()
        self.stem, self.run = nn.Conv2d(3, 4, 1), run
        for name, child in children.items():
            setattr(self, name, child)

    def forward(self, images):
        return self.run(self, self.stem(images)).mean((2, 3))


class Written(nn.Module):
    """A residual block whose addition is written by `add`."""

    def __init__(self, add):
        super().__init__()
        self.branch, self.add = nn.Sequential(conv(), nn.BatchNorm2d(4)), add

    def forward(self, x, *sizes):
        return self.add(x, self.branch(x))


@pytest.mark.parametrize(
    "add",
    [
        lambda x, f: x.float() + f,
        lambda x, f: x * 1.0 + f,
        lambda x, f: torch.stack([x, f]).sum(0),
        lambda x, f: (x / 2 + f / 2) * 2,
        lambda x, f: torch.cat([x[:, :2] + f[:, :2], x[:, 2:] + f[:, 2:]], 1),
    ],
)
def test_an_addition_may_be_written_in_any_way(add):
    assert [u.shortcut for u in found(Stem(Written(add), Written(add))).units] == ["identity"] * 2


@pytest.mark.parametrize(
    ("after", "name"),
    [
        (nn.functional.silu, "silu"),
        (nn.functional.gelu, "gelu"),
        (nn.functional.hardswish, "hardswish"),
        (lambda x: nn.functional.leaky_relu(x), "leaky-relu"),
        (lambda x: x * x.sigmoid(), "silu"),
        (lambda x: nn.functional.silu(x, inplace=True), "silu"),
    ],
)
def test_the_activation_after_the_addition_is_what_is_left(after, name):
    network = Stem(Written(lambda x, f: after(x + f)), Residual(nn.Sequential(conv()))).eval()
    first, second = found(network).units
    assert (first.shortcut, first.activation, second.shortcut) == ("identity+activation", name, "identity")
    images = torch.randn(2, 3, 8, 8)
    without, mode, _ = take_out(network, first, images)
    assert mode == name
    x = after(network.stem(images))
    assert torch.allclose(without(images), network.blocks[1](x).mean((2, 3)), atol=1e-6)


def test_a_tanh_after_the_addition_is_none_of_them():
    assert reasons(Stem(Written(lambda x, f: torch.tanh(x + f)))) == {"blocks.0": "no identity shortcut"}


def test_blocks_as_plain_attributes():
    def run(network, x):
        return network.second(network.first(x))

    network = Tail(run, first=Residual(nn.Sequential(conv())), second=Residual(nn.Sequential(conv()))).eval()
    discovery = found(network)
    assert [unit.path for unit in discovery.units] == ["first", "second"] and discovery.stages == {"": 2}
    images = torch.randn(2, 3, 8, 8)
    without, mode, _ = take_out(network, discovery.units[0], images)
    assert mode == "identity" and torch.equal(without(images), network.second(network.stem(images)).mean((2, 3)))


def test_attributes_of_a_block_stay_parts_of_it():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = Residual(nn.Sequential(conv())), Residual(nn.Sequential(conv()))

        def forward(self, x):
            return self.two(self.one(x))

    class Own(Block):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.zeros(1))

        def forward(self, x):
            return x + self.scale * self.two(self.one(x))

    assert [unit.path for unit in found(Stem(Own(), Own())).units] == ["blocks.0", "blocks.1"]


def test_blocks_that_return_a_tuple_of_one():
    class Wrapped(Written):
        def forward(self, x):
            return (super().forward(x),)

    def run(network, x):
        for block in network.blocks:
            (x,) = block(x)
        return network.last(x)[0]

    blocks = nn.ModuleList(Wrapped(torch.add) for _ in range(3))
    network = Tail(run, blocks=blocks, last=Wrapped(torch.add)).eval()
    discovery = found(network)
    assert [unit.path for unit in discovery.units] == ["blocks.0", "blocks.1", "blocks.2"]
    assert all(unit.wrapped for unit in discovery.units)
    images = torch.randn(2, 3, 8, 8)
    without, mode, _ = take_out(network, discovery.units[1], images)
    assert mode == "delete" and len(without.blocks) == 2
    scores = [
        Scorer(network, discovery.units, sharing).batch(images, torch.tensor([0, 1])) for sharing in ("off", "auto")
    ]
    assert torch.equal(scores[0].loss, scores[1].loss)
    last = Unit("last", "", wrapped=True)  # whose caller takes the first of its outputs
    without, mode, _ = take_out(network, last, images)
    assert mode == "first-input-tuple"


def test_a_block_with_a_further_input_that_cannot_be_deleted_is_passed_by():
    def run(network, x):
        for place, block in enumerate(network.blocks):
            x = block(x, (8, 8))
            x = network.position(x) if place == 0 else x
        return x

    blocks = nn.ModuleList(Written(torch.add) for _ in range(3))
    network = Tail(run, blocks=blocks, position=nn.Sequential(conv(), nn.ReLU())).eval()
    discovery = found(network)
    assert [unit.path for unit in discovery.units] == ["blocks.0", "blocks.1", "blocks.2"]
    images = torch.randn(2, 3, 8, 8)
    without, mode, _ = take_out(network, discovery.units[0], images)
    assert mode == "first-input" and Removal("a", "a", mode, 1)
    x = network.position(network.stem(images))
    for block in network.blocks[1:]:
        x = block(x)
    assert torch.equal(without(images), x.mean((2, 3)))


def test_a_series_of_groups_is_one_stage():
    def pair():
        return nn.Sequential(Residual(nn.Sequential(conv())), Residual(nn.Sequential(conv())))

    discovery = found(Stem(pair(), pair(), pair()))
    assert len(discovery.units) == 6 and discovery.stages == {"blocks": 6}
    assert len(spare(discovery.stages, discovery.units, 1)) == 6
    assert most_removable(discovery.stages, discovery.units, 1) == {"blocks": 5}

    def mixed():  # CMUNeXt: a residual depth-wise convolution, then others without a shortcut
        return nn.Sequential(
            Residual(nn.Sequential(conv(), nn.GELU())), nn.Conv2d(4, 8, 1), nn.GELU(), conv(8), nn.Conv2d(8, 4, 1)
        )

    discovery = found(Stem(mixed(), mixed(), mixed()))
    assert discovery.stages == {"blocks": 3}
    assert most_removable(discovery.stages, discovery.units, 1) == {"blocks": 2}
    davit = found(build("timm:davit_tiny", seed=0, num_classes=10).module, size=64)
    assert sum(most_removable(davit.stages, davit.units, 1).values()) == 12 - 4
