"""`rebuild.py` and `model.pt2` without effvl, and which plain code is found for which network."""

import importlib.util
import json
import subprocess
import sys

import pytest
import timm
import torch
import torchvision.models as theirs
from timm.models.swin_transformer import SwinTransformer
from torch import nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt

from effvl_cli.core.checkpoint import save_model
from effvl_cli.core.errors import CheckError, ModelError
from effvl_cli.core.measure import count_parameters, unfused_attention
from effvl_cli.data.transforms import Preprocess
from effvl_cli.models import geometry
from effvl_cli.models import network as networks
from effvl_cli.models.constructors import NoConstructorError
from effvl_cli.models.edits import apply_edits
from effvl_cli.models.geometry import Geometry
from effvl_cli.models.network import Network
from effvl_cli.models.program import PROGRAM, save_program, trace
from effvl_cli.models.rebuild import REBUILD, write_rebuild
from effvl_cli.models.removed_blocks import blocks_removed
from effvl_cli.techniques.prune_blocks.surgery import Removal

pytestmark = pytest.mark.usefixtures("repeated_numbers")
IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def _fused_attention():
    """On, as torch begins with; a `rebuild.py` that is run here switches it off for its process."""
    torch.backends.mha.set_fastpath_enabled(True)
    yield
    torch.backends.mha.set_fastpath_enabled(True)


def small(name, module=None, size=(32, 32)):
    """A network for small images, with weights that initialisation does not give."""
    if module is None:
        module = networks.build(name, seed=0, num_classes=4).module
    generator = torch.Generator().manual_seed(3)
    for value in module.state_dict().values():
        if value.is_floating_point():
            noise = torch.rand(value.shape, generator=generator) / 10
            value.mul_(1 + noise).add_(noise / 100)  # mild: deep networks do not normalise it away
    return Network(name, "classifier", module.eval(), Preprocess(size, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)))


def without(network, *paths, mode="delete"):
    network.edits = [blocks_removed([Removal(path, path, mode, step) for step, path in enumerate(paths, 1)])]
    apply_edits(network.module, network.edits)
    return network


def write(network, folder):
    """Checkpoint and rebuild.py; the text."""
    save_model(folder / networks.CHECKPOINT, network.module.state_dict(), network.describe())
    write_rebuild(network, folder)
    return (folder / REBUILD).read_text()


def logits(module, images=IMAGES):
    with torch.no_grad():
        return module(images)


def rebuilt(folder):
    specification = importlib.util.spec_from_file_location("rebuilt", folder / REBUILD)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module.build()


def tiny_vit(layers=3):
    return theirs.VisionTransformer(32, 8, layers, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=4)


def tiny_convnext():
    stages = [CNBlockConfig(8, 16, 2), CNBlockConfig(16, None, 3)]
    module = ConvNeXt(stages, stochastic_depth_prob=0.2, num_classes=4)
    module.num_classes = 4
    return module


# The constructor's changed argument, and that the structure is what other code of the same library gives.
FAMILIES = {
    "torchvision:resnet18": (None, ["layer1.0", "layer3.1"], "ResNet(BasicBlock, [1, 2, 1, 2], num_classes=4"),
    "torchvision:wide_resnet50_2": (
        None,
        ["layer3.4"],
        "ResNet(Bottleneck, [3, 4, 5, 3], num_classes=4, groups=1, width_per_group=128",
    ),
    "torchvision:mobilenet_v2": (None, ["features.3", "features.5"], "[6, 24, 1, 2],\n            [6, 32, 2, 2],"),
    "torchvision:vit_b_16": (tiny_vit, ["encoder.layers.encoder_layer_1"], "num_layers=2,"),
    "torchvision:convnext_tiny": (tiny_convnext, ["features.3.1"], "CNBlockConfig(16, None, 2)"),
    "timm:test_resnet": (None, [], 'timm.create_model("test_resnet", num_classes=4)'),
    "timm:resnet18": (None, ["layer1.0"], "num_classes=4, layers=[1, 2, 2, 2])"),
    "timm:convnext_atto": (None, ["stages.2.blocks.1"], "num_classes=4, depths=[2, 2, 5, 2])"),
    "timm:regnety_002": (None, ["s4.b3"], 'delete_child(network.get_submodule("s4"), "b3")'),
    "torchvision:regnet_x_400mf": (None, ["trunk_output.block3.block3-1"], "depths=[1, 2, 6, 12],"),
    "torchvision:regnet_y_400mf": (None, ["trunk_output.block4.block4-2"], "se_ratio=0.25,"),
    "torchvision:efficientnet_b0": (None, ["features.2.1", "features.6.2"], "MBConvConfig(6, 3, 2, 16, 24, 1),"),
    "torchvision:efficientnet_v2_s": (None, ["features.1.1"], "FusedMBConvConfig(1, 3, 1, 24, 24, 1),"),
    "torchvision:shufflenet_v2_x0_5": (None, ["stage3.2"], 'delete_child(network.get_submodule("stage3"), "2")'),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_most_readable_code_that_gives_the_logits(name, tmp_path):
    make, paths, expected = FAMILIES[name]
    network = without(small(name, make and make()), *paths) if paths else small(name, make and make())
    text = write(network, tmp_path)
    assert expected in text and "effvl_cli" not in text
    assert ("delete_child" in text) == ("delete_child" in expected)
    found = rebuilt(tmp_path)
    assert not found.training and torch.equal(logits(found), logits(network.module))
    assert list(found.state_dict()) == list(network.module.state_dict())
    rates = [m.p for m in network.module.modules() if type(m).__name__ == "StochasticDepth"]
    assert [m.p for m in found.modules() if type(m).__name__ == "StochasticDepth"] == pytest.approx(rates)


@pytest.mark.parametrize("name", ["cifar-resnet:8,width=4", "smallcnn:width=4", "torchvision:resnet18"])
def test_names_of_a_module_are_imported_once(name, tmp_path):
    lines = [line for line in write(small(name), tmp_path).splitlines() if line.startswith(("import ", "from "))]
    modules = [line.split()[1] for line in lines]
    assert len(modules) == len(set(modules)) and "torch" in modules


def test_a_depth_of_timms_vit(tmp_path):
    network = small("timm:test_vit", size=(160, 160))
    blocks = len(network.module.blocks)
    text = write(without(network, "blocks.1"), tmp_path)
    assert f"num_classes=4, depth={blocks - 1})" in text


def tiny_swin(**options):
    options = {"depths": (4, 2), **{key: value for key, value in options.items() if key in ("depths", "num_classes")}}
    return SwinTransformer(img_size=32, patch_size=2, window_size=4, embed_dim=16, num_heads=(2, 4), **options)


def test_code_that_loads_without_an_error_but_computes_something_else_is_not_taken(tmp_path, monkeypatch):
    """Swin's blocks alternate: with the second gone, a shallower network shifts the windows of other blocks."""
    monkeypatch.setattr(timm, "create_model", lambda name, **options: tiny_swin(**options))
    network = without(small("timm:tiny_swin", tiny_swin(num_classes=4)), "layers.0.blocks.1")
    other = tiny_swin(num_classes=4, depths=(3, 2)).eval()
    other.load_state_dict(network.module.state_dict())
    assert not torch.equal(logits(other), logits(network.module))
    assert 'delete_child(network.get_submodule("layers.0.blocks"), "1")' in write(network, tmp_path)
    assert torch.equal(logits(rebuilt(tmp_path)), logits(network.module))


@pytest.mark.parametrize(("mode", "line"), [("relu", "nn.ReLU()"), ("identity", "nn.Identity()")])
def test_a_module_that_stands_in(mode, line, tmp_path):
    network = without(small("torchvision:resnet18"), "layer2.1", mode=mode)
    text = write(network, tmp_path)
    assert f'network.get_submodule("layer2").add_module("1", {line})' in text
    assert torch.equal(logits(rebuilt(tmp_path)), logits(network.module))


def test_cifar_resnets_are_printed_whole(tmp_path):
    network = without(small("cifar-resnet:14,width=8"), "layer1.0", "layer1.0", "layer3.1")
    text = write(network, tmp_path)
    assert "CifarResNet(depths=(0, 2, 1), num_classes=4, width=8)" in text and "class BasicBlock" in text
    assert torch.equal(logits(rebuilt(tmp_path)), logits(network.module))


def test_shared_tensors_are_tied_again(tmp_path):
    class Tied(nn.Module):
        """Stands for a classifier of timm with two names for one tensor."""

        def __init__(self):
            super().__init__()
            self.num_classes = 4
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)
            self.second.weight = self.first.weight
            self.head = nn.Linear(3, 4)

        def forward(self, images):
            return self.head(self.second(self.first(images.mean((2, 3)))))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timm, "create_model", lambda name, **options: Tied())
        network = small("timm:tied", Tied())
        assert 'weights["second.weight"] = weights["first.weight"]' in write(network, tmp_path)
        found = rebuilt(tmp_path)
    assert torch.equal(logits(found), logits(network.module))
    assert found.second.weight is found.first.weight


def test_networks_without_public_code_are_refused(tmp_path):
    for name in ("tiny:resnet", "vit:nano", "mine"):
        network = Network(name, "classifier", nn.Flatten(), Preprocess((8, 8), (0.5,) * 3, (0.5,) * 3))
        (tmp_path / networks.CHECKPOINT).write_bytes(b"")
        with pytest.raises(NoConstructorError, match="no constructor outside effvl"):
            write_rebuild(network, tmp_path)
    halved = small("torchvision:vit_b_16", tiny_vit())
    halved.edits = [{"kind": "halves"}]
    with pytest.raises(NoConstructorError, match="split in halves"):
        write_rebuild(halved, tmp_path)
    assert not (tmp_path / REBUILD).exists()


def test_other_logits_write_nothing(tmp_path):
    """The checkpoint of one network and the logits of another."""
    folder = tmp_path / "there"
    text = write(small("cifar-resnet:8"), folder)
    before, state = sorted(folder.iterdir()), torch.get_rng_state()
    other = small("cifar-resnet:8")
    other.module.fc.bias.data[0] += 1e-3
    with pytest.raises(CheckError, match="other logits") as caught:
        write_rebuild(other, folder)
    assert caught.value.exit_code == 8
    assert (folder / REBUILD).read_text() == text and sorted(folder.iterdir()) == before
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ModelError, match=networks.CHECKPOINT):
        write_rebuild(other, tmp_path)


ELSEWHERE = """
import contextlib, io, json, runpy, sys
from pathlib import Path
import torch
from safetensors.torch import load_file, save_file

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "effvl_cli":
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Block())
try:
    import effvl_cli
except ImportError:
    pass
else:
    sys.exit("effvl_cli is there")
images = load_file("images.safetensors")["images"]
for folder in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        build = runpy.run_path(f"{folder}/rebuild.py", run_name="__main__")["build"]
    with torch.no_grad():
        plain = build()(images)
        program = torch.export.load(f"{folder}/model.pt2").module()(images)
    save_file({"plain": plain, "program": program}, f"{folder}/logits.safetensors")
    Path(folder, "printed.txt").write_text(printed.getvalue())
assert not any(name.startswith("effvl_cli") for name in sys.modules)
"""


def test_a_reader_without_effvl_gets_the_same_bits(workdir):
    from safetensors.torch import load_file, save_file

    pruned = {
        "cifar": without(small("cifar-resnet:14"), "layer1.1", "layer3.1"),
        "torchvision": without(small("torchvision:resnet18"), "layer3.1"),
        "timm": without(small("timm:regnety_002"), "s4.b3"),
    }
    save_file({"images": IMAGES}, workdir / "images.safetensors")
    for name, network in pruned.items():
        write(network, workdir / name)
        save_program(trace(network.module, (32, 32)), workdir / name / PROGRAM)
    line = [sys.executable, "-c", ELSEWHERE, json.dumps(list(pruned))]
    done = subprocess.run(line, cwd=workdir, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for name, network in pruned.items():
        found = load_file(workdir / name / "logits.safetensors")
        expected = logits(network.module)
        assert torch.equal(found["plain"], expected) and torch.equal(found["program"], expected)
        assert int((workdir / name / "printed.txt").read_text()) == count_parameters(network.module)


@pytest.mark.parametrize(
    "name", ["smallcnn", "vgg:11,width=4,hidden=24", "vgg:11,width=4,hidden=24,size=64", "cifar-resnet:8,width=4"]
)
@pytest.mark.parametrize("width", [1.0, 1.5])
def test_networks_of_continual_at_their_widths(tmp_path, name, width):
    network = geometry.build(Geometry(name, width), num_classes=3, seed=0)
    write(network, tmp_path)
    size = network.preprocess.size[0]
    images = torch.randn(2, 3, size, size)
    assert torch.equal(logits(rebuilt(tmp_path), images), logits(network.module.eval(), images))


def test_attention_is_rebuilt_without_its_fused_inference(tmp_path):
    network = without(small("torchvision:vit_b_16", tiny_vit()), "encoder.layers.encoder_layer_1")
    assert "set_fastpath_enabled(False)" in write(network, tmp_path)
    assert torch.backends.mha.get_fastpath_enabled()
    with unfused_attention():
        expected = logits(network.module)
    assert torch.equal(logits(rebuilt(tmp_path)), expected)
