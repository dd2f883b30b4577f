"""--precision is that of training, scoring and evaluation alike: what every large batch really computes in."""

import contextlib

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from effvl_cli.config.pretrain import PretrainConfig
from effvl_cli.data import load
from effvl_cli.data.decoded import Decoded
from effvl_cli.data.loader import Batch
from effvl_cli.data.view_maker import ViewMaker
from effvl_cli.models import network as networks
from effvl_cli.models.cifar_resnet import CifarResNet
from effvl_cli.techniques.pretrain.view_sizes import Sizes
from effvl_cli.techniques.prune_blocks import criteria
from effvl_cli.techniques.prune_blocks.score import Scorer
from effvl_cli.techniques.prune_blocks.unit import Unit

LARGE = 40  # images: more than any check or counter looks at
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LINES = {
    "supervised": (
        *("pretrain", "--method", "supervised", "--data", "digits", "--steps", 1, "--batch-size", 8),
        *("--model", "cifar-resnet:8,width=4"),
    ),
    "clip": ("pretrain", "--method", "clip", "--steps", 1, "--batch-size", 8),
}


@contextlib.contextmanager
def evaluated():
    """Types of the outputs of linear layers and kernels in evaluation mode, for batches of at least `LARGE` images."""
    found = set()

    def note(module, inputs, output):
        if isinstance(module, nn.Linear | nn.Conv2d) and not module.training and len(output) >= LARGE:
            found.add(output.dtype)

    handle = register_module_forward_hook(note)
    try:
        yield found
    finally:
        handle.remove()


@pytest.mark.usefixtures("few_images")
@pytest.mark.parametrize("precision", TYPES)
@pytest.mark.parametrize("name", LINES)
def test_large_batches_are_evaluated_in_the_precision_asked_for(name, precision, effvl):
    with evaluated() as found:
        outcome = effvl(*LINES[name], "--precision", precision, "--out", "run")
    assert outcome.code == 0, outcome.err
    assert found == {TYPES[precision]}


@pytest.mark.parametrize("precision", TYPES)
def test_scores_of_blocks_are_in_the_precision_asked_for(precision, effvl):
    """The stored loss of every scored image, against one pass of the same random network by hand."""
    model = "cifar-resnet:14,width=4"
    line = ("prune-blocks", "score", "--weights", "none", "--model", model, "--data", "digits", "--force")
    outcome = effvl(*line, "--precision", precision, "--score-batch-size", 512, "--out", "run")
    assert outcome.code == 0, outcome.err
    stored = load_file("run/scores/step_1.safetensors")
    network = networks.build(model, seed=0, num_classes=10)
    images = Decoded.read(load("digits", "val", seed=0), network.preprocess)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        logits = network.module.eval()(network.preprocess.normalise(images[stored["order"]]))
    loss = F.cross_entropy(logits.double(), images.labels[stored["order"]], reduction="none")
    assert torch.equal(stored["loss"][0], loss)


@pytest.mark.parametrize("precision", TYPES)
def test_sr_init_draws_are_answered_in_the_precision_asked_for(precision, effvl, monkeypatch):
    line = ("prune-blocks", "score", "--weights", "none", "--model", "cifar-resnet:14,width=4", "--data", "digits")
    line = (*line, "--score-size", 6)  # of each class
    real, types = criteria.sr_init, set()

    def noted(*args, **more):
        with evaluated() as found:
            counts = real(*args, **more)
        types.update(found)
        return counts

    monkeypatch.setattr(criteria, "sr_init", noted)
    outcome = effvl(*line, "--force", "--criterion", "sr-init", "--precision", precision, "--out", "run")
    assert outcome.code == 0, outcome.err
    assert types == {TYPES[precision]}


@pytest.mark.parametrize("sharing", ["off", "chain", "replay"])
def test_scores_are_those_of_a_pass_under_autocast(sharing):
    torch.manual_seed(0)
    network = CifarResNet((2, 2, 2), num_classes=10, width=8).eval()
    units = [Unit(f"layer{k}.1", f"layer{k}") for k in (1, 2)]
    images, labels = torch.randn(6, 3, 16, 16), torch.arange(6)
    found = Scorer(network, units, sharing, autocast=torch.bfloat16).batch(images, labels)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = network(images)
    assert torch.equal(found.loss[0], F.cross_entropy(logits.double(), labels, reduction="none"))
    plain = Scorer(network, units, sharing).batch(images, labels)
    assert not torch.equal(plain.loss[0], found.loss[0])
    naive = Scorer(network, units, "off", autocast=torch.bfloat16).batch(images, labels)
    assert torch.equal(naive.loss, found.loss)


@pytest.mark.parametrize("method", ["simclr", "mocov3"])
def test_pictures_are_augmented_in_float32_whatever_the_networks_compute_in(method):
    """Crops are products of matrices and blurs convolutions: autocast would round 8-bit colours to 8 bits of mantissa
    and mix types."""
    preprocess = networks.build("vit:nano/8@72", seed=0).preprocess
    sizes = Sizes(image_size=72, local_size=24, policy="strict")
    maker = ViewMaker.of(PretrainConfig(method=method), sizes, preprocess, depth=2)
    images = torch.randint(0, 256, (4, 3, 72, 72), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    batch = Batch(images, torch.zeros(4, dtype=torch.int64), torch.arange(4))
    plain = maker.pixels(batch, 8, 0)
    with torch.autocast("cpu", torch.bfloat16):
        found = maker.pixels(batch, 8, 0)
    assert all(torch.equal(one, other) for one, other in zip(found, plain, strict=True))
