"""Gains of block removal beside those that the multiply-adds imply: `make bench-prune-blocks`.

Scoring of ResNet-56 with and without sharing, CPU time; latency of a pruned ResNet-50 in onnxruntime beside its
multiply-adds; parameters and multiply-adds beside torch-pruning's counters. Random weights: time and size do not
depend on them. Exits 1 if scoring shared costs more than is allowed or gives another bit, or if a count differs.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch_pruning.utils import count_ops_and_params

from effvl_cli.core.bench import ratio, timed
from effvl_cli.core.measure import count_macs, count_parameters
from effvl_cli.models.network import build
from effvl_cli.models.onnx import INPUT, export_onnx, session
from effvl_cli.models.program import trace
from effvl_cli.techniques.prune_blocks.discover import discover
from effvl_cli.techniques.prune_blocks.score import BatchScores, Scorer
from effvl_cli.techniques.prune_blocks.scoring_cost import cost_model, measure_costs
from effvl_cli.techniques.prune_blocks.surgery import original_paths, prune
from effvl_cli.techniques.prune_blocks.unit import Unit

ALLOWED = 0.6  # of the naive CPU time
BATCH, ROUNDS = 64, 3
PEER = (
    "cifar-resnet:20",
    "cifar-resnet:56",
    "torchvision:resnet18",
    "torchvision:resnet50",
    "torchvision:mobilenet_v2",
)
REMOVED = ("layer3.4", "layer4.1", "layer4.2")  # the published cut of 39.29 % of ResNet-50's parameters
CPU = torch.device("cpu")


def noise(batch: int, size: int) -> Tensor:
    """(B, 3, size, size)."""
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))


def scoring() -> bool:
    """Scoring of all blocks of ResNet-56, in turn naively and shared."""
    network = build("cifar-resnet:56", seed=0).module.eval()
    images, labels = noise(BATCH, 32), torch.arange(BATCH) % 10
    units = discover(network, images[:2]).units
    implied = cost_model(*measure_costs(network, units, images[:1], count_macs)).ratio
    scorers = {name: Scorer(network, units, sharing) for name, sharing in (("naive", "off"), ("shared", "auto"))}
    found: dict[str, BatchScores] = {}
    seconds = dict.fromkeys(scorers, 0.0)
    for number in range(1 + ROUNDS):
        for name, scorer in scorers.items():
            started = time.process_time()
            found[name] = scorer.batch(images, labels)
            seconds[name] += (time.process_time() - started) if number else 0.0  # the first warms up
    equal = torch.equal(found["naive"].loss, found["shared"].loss)
    equal &= torch.equal(found["naive"].correct, found["shared"].correct)
    share = seconds["shared"] / seconds["naive"]
    good = share <= ALLOWED and equal
    print(
        f"scoring ResNet-56, {len(units)} blocks, {scorers['shared'].sharing}, {BATCH} images: "
        f"naive {seconds['naive'] / ROUNDS:.2f} s, shared {seconds['shared'] / ROUNDS:.2f} s: {share:.3f} of it, "
        f"multiply-adds imply {1 / implied:.3f}, allowed {ALLOWED}; bit-equal: {equal}   {'PASS' if good else 'FAIL'}",
        flush=True,
    )
    return good


def latency() -> None:
    """ResNet-50 with and without three blocks."""
    network = build("torchvision:resnet50", seed=0).module.eval()
    units = [Unit(path, path.partition(".")[0]) for path in REMOVED]
    pruned = prune(
        network, units, noise(2, 224), count_macs=count_macs, originals=original_paths(network), step=1
    ).network
    macs = count_macs(pruned, noise(1, 224)) / count_macs(network, noise(1, 224))
    networks = {"original": network, "pruned": pruned}
    with tempfile.TemporaryDirectory() as folder:
        sessions = {}
        for name, module in networks.items():
            export_onnx(trace(module, (224, 224)), Path(folder) / f"{name}.onnx", noise(4, 224))
            sessions[name] = session(Path(folder) / f"{name}.onnx")
        images = noise(1, 224)
        in_torch = {name: _call(module, images) for name, module in networks.items()}
        in_ort = {name: _call(lambda x, s=s: s.run(None, {INPUT: x.numpy()}), images) for name, s in sessions.items()}
        for runtime, arms in (("torch", in_torch), ("onnxruntime", in_ort)):
            times = timed(arms, CPU)
            found = ratio(times["pruned"], times["original"])
            print(
                f"ResNet-50 without {', '.join(REMOVED)}, batch 1, {runtime}: "
                f"{times['original'].median_ms:.1f} to {times['pruned'].median_ms:.1f} ms, ratio {found.value:.3f} "
                f"({found.low:.3f}-{found.high:.3f}), multiply-adds {macs:.3f}",
                flush=True,
            )


def _call(function: Callable[[Tensor], object], images: Tensor) -> Callable[[], object]:
    return lambda: function(images)


def counters(spec: str) -> bool:
    """Ours beside torch-pruning's, whose counts of convolutions and linear layers include the additions of biases."""
    built = build(spec, seed=0)
    network, image = built.module.eval(), noise(1, built.preprocess.size[0])
    ours = count_macs(network, image), count_parameters(network)
    everything, params, by_layer, _ = count_ops_and_params(network, image, layer_wise=True)
    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert all(layer.bias is None for layer in layers if isinstance(layer, nn.Conv2d))
    biases = sum(layer.bias.numel() for layer in layers if layer.bias is not None)
    theirs = sum(int(by_layer[layer]) for layer in layers) - biases
    good = ours == (theirs, params)
    print(
        f"{spec:26} MACs {ours[0]:>13,} ours {theirs:>13,} torch-pruning ({int(everything):,} with norms, "
        f"activations and pooling)   parameters {ours[1]:>10,} ours {int(params):>10,} torch-pruning   "
        f"{'PASS' if good else 'FAIL'}",
        flush=True,
    )
    return good


def main() -> int:
    """Run all; 0 if everything is as asked for."""
    print(f"{torch.get_num_threads()} thread(s), torch {torch.__version__}")
    good = [scoring(), *map(counters, PEER)]
    latency()
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
