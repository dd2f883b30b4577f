"""Residual networks for CIFAR, and torchvision's classifiers."""

import numpy as np
import pytest
import torch
import torchvision.models as theirs
from PIL import Image

from effvl_cli.core.checkpoint import save_model
from effvl_cli.core.errors import ModelError, UsageError
from effvl_cli.models import network as networks
from effvl_cli.models.cifar_resnet import BasicBlock


def load(spec, weights="none", **more):
    return networks.load(spec, weights, default="tiny:resnet", kind="classifier", **more)


def count(module):
    return sum(p.numel() for p in module.parameters())


def by_formula(depth, classes=10):
    """Parameters of the paper's table of layers: 3x3 kernels, two numbers a channel for batch norm, a linear layer."""
    n = (depth - 2) // 6
    total = 3 * 16 * 9 + 2 * 16
    for inputs, width in ((16, 16), (16, 32), (32, 64)):
        total += inputs * width * 9 + (2 * n - 1) * width * width * 9 + 2 * n * 2 * width
    return total + 64 * classes + classes


# Table 6 rounds to 0.27, 0.46, 0.66, 0.85 and 1.7 million.
@pytest.mark.parametrize(("depth", "millions"), [(20, "0.27"), (32, "0.46"), (44, "0.66"), (56, "0.85"), (110, "1.7")])
def test_sizes_are_those_of_the_paper(depth, millions):
    found = count(networks.build(f"cifar-resnet:{depth}", seed=0).module)
    assert found == by_formula(depth)
    assert f"{found / 1e6:.{len(millions) - 2}f}" == millions
    if depth == 20:  # stem, stages, linear
        assert found == 464 + 14_016 + 51_072 + 203_520 + 650 == 269_722


def test_depth_counts_the_layers_with_weights_and_the_stages_halve_the_image():
    network = networks.build("cifar-resnet:20", seed=0, num_classes=7)
    weighted = [m for m in network.module.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    assert len(weighted) == 20
    shapes = []
    for name in ("bn1", "layer1", "layer2", "layer3"):
        getattr(network.module, name).register_forward_hook(lambda m, x, out: shapes.append(tuple(out.shape)))
    assert network.module(torch.zeros(2, 3, 32, 32)).shape == (2, 7)
    assert shapes == [(2, 16, 32, 32), (2, 16, 32, 32), (2, 32, 16, 16), (2, 64, 8, 8)]
    assert network.describe()["num_classes"] == 7 and network.preprocess.size == (32, 32)


def test_convolutions_start_with_the_spread_of_he_et_al():
    module = networks.build("cifar-resnet:20", seed=0).module
    weight = module.layer3[1].conv1.weight  # 36864 numbers: their deviation is known to 0.4 %
    assert weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)
    assert abs(weight.mean().item()) < 0.002


@pytest.mark.parametrize(("inputs", "outputs", "stride"), [(3, 6, 2), (4, 4, 1), (2, 4, 1)])
def test_the_shortcut_is_every_other_pixel_and_channels_of_zeros(inputs, outputs, stride):
    x = torch.randn(2, inputs, 5, 4, generator=torch.Generator().manual_seed(0))
    block = BasicBlock(inputs, outputs, stride)
    expected = np.zeros((2, outputs, -(-5 // stride), -(-4 // stride)), np.float32)
    for b, c, i, j in np.ndindex(2, inputs, *expected.shape[2:]):
        expected[b, c, i, j] = x[b, c, stride * i, stride * j]
    assert torch.equal(block.shortcut(x), torch.from_numpy(expected))
    # With the last norm at zero the convolutions vanish: what is left is the shortcut, rectified.
    torch.nn.init.zeros_(block.bn2.weight)
    assert torch.equal(block(x), torch.from_numpy(expected.clip(min=0)))


def test_a_block_without_change_of_shape_is_torchvisions():
    ours, peer = BasicBlock(8, 8).eval(), theirs.resnet.BasicBlock(8, 8).eval()
    peer.load_state_dict(ours.state_dict())
    x = torch.randn(2, 8, 6, 6)
    assert torch.equal(ours(x), peer(x))


@pytest.mark.parametrize(
    ("depth", "near"),
    [
        ("55", "cifar-resnet:50 or cifar-resnet:56"),
        ("18", "cifar-resnet:14 or cifar-resnet:20"),
        ("2", "cifar-resnet:8"),
        ("0", "cifar-resnet:8"),
    ],
)
def test_a_depth_that_is_none_is_refused_and_its_neighbours_named(depth, near):
    with pytest.raises(UsageError, match=f"cifar-resnet:{depth} ") as caught:
        load(f"cifar-resnet:{depth}")
    assert caught.value.hint == f"Nearest: {near}"


@pytest.mark.parametrize("depth", ["", "x", "-20", "20.0"])
def test_a_depth_that_is_no_number_is_refused(depth):
    with pytest.raises(UsageError, match="has no depth"):
        networks.build(f"cifar-resnet:{depth}", seed=0)


def test_a_checkpoint_of_ours_comes_back(tmp_path):
    network = networks.build("cifar-resnet:8", seed=3, num_classes=4)
    save_model(tmp_path / networks.CHECKPOINT, network.module.state_dict(), network.describe())
    found = load(None, str(tmp_path))
    assert found.name == "cifar-resnet:8" and found.preprocess == network.preprocess
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(found.module.eval()(x), network.module.eval()(x))


# --- torchvision -----------------------------------------------------------------------------------------------------


def test_torchvisions_state_dict_loads_and_computes_the_same(tmp_path):
    torch.manual_seed(1)
    peer = theirs.resnet18(num_classes=5).eval()
    torch.save(peer.state_dict(), tmp_path / "resnet18.pth")
    found = load("torchvision:resnet18", str(tmp_path / "resnet18.pth"), num_classes=5)
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(found.module.eval()(x), peer(x))
    back = theirs.resnet18(num_classes=5)
    back.load_state_dict(found.module.state_dict())
    assert found.describe()["num_classes"] == 5
    with pytest.raises(ModelError, match=r"fc.weight \(5, 512\) for \(1000, 512\)"):
        load("torchvision:resnet18", str(tmp_path / "resnet18.pth"))


def test_files_from_before_torch_counted_batches_load(tmp_path):
    state = {k: v for k, v in theirs.resnet18().state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "old.pth")
    found = load("torchvision:resnet18", str(tmp_path / "old.pth"))
    assert torch.equal(found.module.fc.weight, state["fc.weight"])


def test_the_old_spelling_of_densenet_files_loads(tmp_path):
    state = theirs.densenet121(num_classes=3).state_dict()
    old = {
        k.replace("norm1", "norm.1").replace("norm2", "norm.2").replace("conv1", "conv.1").replace("conv2", "conv.2")
        if "denselayer" in k
        else k: v
        for k, v in state.items()
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in old and old.keys() != state.keys()
    torch.save(old, tmp_path / "old.pth")
    found = load("torchvision:densenet121", str(tmp_path / "old.pth"), num_classes=3).module.state_dict()
    assert all(torch.equal(found[key], value) for key, value in state.items())


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_released_files_with_auxiliary_heads_load(name, tmp_path):
    peer = getattr(theirs, name)(num_classes=3, aux_logits=True, transform_input=True, init_weights=True)
    torch.save(peer.state_dict(), tmp_path / "w.pth")
    found = load(f"torchvision:{name}", str(tmp_path / "w.pth"), num_classes=3)
    x = torch.randn(2, 3, *found.preprocess.size)
    with torch.no_grad():
        assert torch.equal(found.module.eval()(x), peer.eval()(x))
        assert found.module.train()(x).shape == (2, 3)  # one output while training too


@pytest.mark.parametrize(
    "name", ["resnet50", "efficientnet_b1", "inception_v3", "vgg11_bn", "swin_v2_t", "regnet_x_400mf"]
)
def test_preprocess_is_that_of_the_reference_weights(name):
    network = networks.build(f"torchvision:{name}", seed=0)
    transform = theirs.get_model_weights(name)["IMAGENET1K_V1"].transforms()
    noise = np.random.default_rng(0).integers(0, 256, (350, 420, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    ours = network.preprocess.normalise(network.preprocess.to_uint8(image)[None])[0]
    assert torch.allclose(ours, transform(image), atol=1e-6)


def test_every_listed_classifier_has_a_preprocess_and_the_large_vit_its_own_size():
    from effvl_cli.models.torchvision import _preprocess

    sizes = {name: _preprocess(name).size for name in theirs.list_models(module=theirs)}
    assert len(sizes) > 70
    assert sizes["resnet50"] == sizes["vit_h_14"] == (224, 224) and sizes["inception_v3"] == (299, 299)


def test_a_thousand_classes_by_default():
    network = networks.build("torchvision:squeezenet1_1", seed=0)
    assert network.describe()["num_classes"] == 1000
    assert network.module.eval()(torch.zeros(1, 3, 224, 224)).shape == (1, 1000)


def test_weights_are_random_by_seed():
    one, same, other = (load("torchvision:resnet18", seed=s).weights_sha256 for s in (1, 1, 2))
    assert one == same != other


@pytest.mark.parametrize(("name", "hint"), [("resnet5O", "'resnet50'"), ("fcn_resnet50", "resnet50"), ("", "resnet50")])
def test_an_unknown_classifier_is_refused_and_near_ones_named(name, hint):
    with pytest.raises(UsageError, match="unknown classifier") as caught:
        load(f"torchvision:{name}")
    assert hint in caught.value.hint
