"""Who counts, probes, checks or times a network leaves every part of it in its mode and its buffers as they were."""

import importlib.util

import pytest
import torch
from torch import Tensor, nn

from effvl_cli.core.checkpoint import save_model
from effvl_cli.core.measure import count_macs
from effvl_cli.data.transforms import Preprocess
from effvl_cli.models import network as networks
from effvl_cli.models.edits import apply_edits
from effvl_cli.models.onnx import export_onnx, parity
from effvl_cli.models.openclip_tower import self_check, tower_of
from effvl_cli.models.program import load_program, on_cpu, same_bits, save_program, trace
from effvl_cli.models.rebuild import write_rebuild
from effvl_cli.models.token_parity import Embedder, Parity
from effvl_cli.techniques.prune_blocks import criteria
from effvl_cli.techniques.prune_blocks.discover import discover, with_relus
from effvl_cli.techniques.prune_blocks.recalibrate import recalibrated
from effvl_cli.techniques.prune_blocks.score import Scorer
from effvl_cli.techniques.prune_blocks.scoring_cost import measure_costs
from effvl_cli.techniques.prune_blocks.surgery import original_paths, prune, take_out
from effvl_cli.techniques.prune_blocks.trace import Trace, calls
from effvl_cli.techniques.prune_blocks.unit import Unit
from effvl_cli.techniques.prune_tokens.selectors import GridSelector
from effvl_cli.techniques.prune_tokens.tower import PrunedVision

SIZE = (16, 16)
UNITS = [Unit("layer1.0", "layer1"), Unit("layer2.1", "layer2")]


class Counter(nn.Module):
    """A module that counts its calls, in whatever mode."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x


def mixed(module: nn.Module) -> nn.Module:
    """Every other part in training mode, the whole too."""
    for number, part in enumerate(module.modules()):
        part.training = number % 2 == 0
    return module


@pytest.fixture
def network() -> networks.Network:
    """A ResNet with blocks that can go, its modes mixed."""
    found = networks.build("cifar-resnet:14,width=4", seed=0, num_classes=3)
    found.module = mixed(found.module)
    found.preprocess = Preprocess(SIZE, (0.5,) * 3, (0.5,) * 3)
    norms = [part for part in found.module.modules() if isinstance(part, nn.BatchNorm2d)]
    assert {norm.training for norm in norms} == {True, False}
    return found


def state_of(module: nn.Module) -> tuple[dict[str, bool], dict[str, Tensor]]:
    return (
        {path: part.training for path, part in module.named_modules()},
        {path: value.clone() for path, value in module.named_buffers()},
    )


def assert_as(module: nn.Module, before: tuple[dict[str, bool], dict[str, Tensor]]) -> None:
    modes, buffers = state_of(module)
    assert modes == before[0]
    assert [path for path, value in before[1].items() if not torch.equal(buffers[path], value)] == []


def images(count: int = 4) -> Tensor:
    return torch.randn(count, 3, *SIZE, generator=torch.Generator().manual_seed(count))


def labelled():
    return [(images(), torch.tensor([0, 1, 2, 0]))]


def _rebuild(network, folder):
    save_model(folder / networks.CHECKPOINT, network.module.state_dict(), network.describe())
    write_rebuild(network, folder)


def _parity(network, folder):
    export_onnx(trace(network.module, SIZE), folder / "m.onnx")
    parity(folder / "m.onnx", network.module, images())


def _same_bits(network, folder):
    save_program(trace(network.module, SIZE), folder / "m.pt2")
    same_bits(network.module, load_program(folder / "m.pt2"), images(), "m.pt2")


ASKED = {
    "count_macs": lambda n, _: count_macs(n.module, images(1)),
    "on_cpu": lambda n, _: on_cpu(n.module)(images()),
    "trace": lambda n, _: trace(n.module, SIZE),
    "same_bits": _same_bits,
    "write_rebuild": _rebuild,
    "parity": _parity,
    "discover": lambda n, _: discover(n.module, images(2)),
    "with_relus": lambda n, _: with_relus(n.module, discover(n.module, images(2)).units, images()),
    "calls": lambda n, _: calls(n.module, UNITS, images()),
    "Trace.of": lambda n, _: Trace.of(n.module, UNITS, images()),
    "measure_costs": lambda n, _: measure_costs(n.module, UNITS, images(1), count_macs),
    "Scorer": lambda n, _: Scorer(n.module, UNITS).batch(*labelled()[0]),
    "recalibrated": lambda n, _: recalibrated(n.module, UNITS, [images(), images(3)]),
    "l1": lambda n, _: criteria.l1(n.module, UNITS),
    "bn_scale": lambda n, _: criteria.bn_scale(n.module, UNITS),
    "block_influence": lambda n, _: criteria.block_influence(n.module, UNITS, [images()]),
    "cka": lambda n, _: criteria.cka(n.module, UNITS, [images()]),
    "sr_init": lambda n, _: criteria.sr_init(n.module, UNITS, labelled, torch.Generator(), 1),
    "take_out": lambda n, _: take_out(n.module, UNITS[1], images()),
    "prune": lambda n, _: prune(
        n.module, UNITS, images(), count_macs=count_macs, originals=original_paths(n.module), step=1
    ),
}


@pytest.mark.parametrize("name", ASKED)
def test_a_network_is_left_as_it_was_found(name, network, tmp_path):
    if name == "parity" and not importlib.util.find_spec("onnxruntime"):
        pytest.skip("the extra onnx is not installed")
    before = state_of(network.module)
    ASKED[name](network, tmp_path)
    assert_as(network.module, before)


@pytest.mark.parametrize("name", ["calls", "discover", "with_relus", "block_influence", "Scorer", "take_out"])
def test_what_a_network_counts_for_itself_is_put_back(name, network, tmp_path):
    network.module.bn1 = nn.Sequential(network.module.bn1, Counter())
    ASKED[name](network, tmp_path)
    assert int(network.module.bn1[1].calls) == 0


def test_what_a_network_gives_does_not_depend_on_its_mode(network):
    """The parts of an evaluated network, and of the same one in training mode."""
    found = [call.output for call in calls(network.module, UNITS, images())]
    network.module.eval()
    for ours, theirs in zip(found, calls(network.module, UNITS, images()), strict=True):
        assert torch.equal(ours, theirs.output)


def test_halves_of_blocks_keep_the_modes_of_their_parts():
    from timm.models.vision_transformer import VisionTransformer

    vit = mixed(VisionTransformer(img_size=16, patch_size=8, embed_dim=8, depth=2, num_heads=2, num_classes=3))
    modes = [(type(part), part.training) for block in vit.blocks for name, part in block.named_modules() if name]
    apply_edits(vit, [{"kind": "halves"}])
    assert [(type(p), p.training) for half in vit.blocks for name, p in half.named_modules() if name] == modes


# --- CLIP ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def clip() -> networks.Network:
    return networks.load("tiny:clip", None, default="", kind="clip")


def test_the_self_check_of_a_tower_leaves_it_as_it_was(clip):
    before = state_of(mixed(clip.module))
    self_check(tower_of(clip.module))
    assert_as(clip.module, before)


def test_class_weights_are_those_of_evaluation_mode_and_leave_the_text_tower_as_it_was(clip):
    asked = (["cat", "dog"], ["a photo of a {}."], torch.device("cpu"))
    expected = networks.zero_shot_classifier(clip, *asked)
    block = clip.module.transformer.resblocks[0]
    block.mlp.append(nn.Dropout(0.9))
    before = state_of(mixed(clip.module).train())
    assert torch.equal(networks.zero_shot_classifier(clip, *asked), expected)
    assert_as(clip.module, before)


def test_the_comparison_of_an_exported_tower_leaves_it_as_it_was(clip):
    tower = tower_of(clip.module)
    vision = PrunedVision(tower, layer=1, num_keep=8, selector=GridSelector())
    embedder = Embedder(vision)
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = embedder.eval()(pixels)
    before = state_of(mixed(embedder))
    Parity()(embedder, lambda _: expected, pixels, "m.pt2")
    assert_as(embedder, before)
