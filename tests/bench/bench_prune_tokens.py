"""Measured gains of token pruning at ViT-B/16 224 beside those that the multiply-adds imply: `make bench-prune-tokens`.

The pruned tower against the dense one and against ToMe at equal multiply-adds, the predictor's own time, the pruned
against the dense ONNX file in onnxruntime, and the search against two plainer ones. Random weights: time does not
depend on them. Exits 1 if a gain is below what is asked for, if the search by its fast paths ranks otherwise than
without them, or if the ONNX file is not the pruned tower. Wants an idle machine.
"""

import logging
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import open_clip
import torch
from torch import Tensor

from effvl_cli.core.bench import Latency, ratio, timed
from effvl_cli.models.onnx import export_onnx, session
from effvl_cli.models.openclip_tower import OpenClipTower, self_check, tower_of
from effvl_cli.models.program import trace
from effvl_cli.models.token_parity import Embedder, Parity
from effvl_cli.techniques.prune_tokens.macs import TowerShape
from effvl_cli.techniques.prune_tokens.predictor import MixerPredictor
from effvl_cli.techniques.prune_tokens.ranking import CandidateRunner, golden_ranking
from effvl_cli.techniques.prune_tokens.tome import MergedVision, merge_schedule
from effvl_cli.techniques.prune_tokens.tower import Context, PrunedVision, gather_patches, keep_indices, num_keep

MODEL, BATCH, KEEP, LAYER, GROUP = "ViT-B-16", 8, 0.6, 3, 10
SAMPLED = 16  # of the 1,288 candidates of one image's search
ASKED = 0.9
OVERHEAD = 0.02  # of the pruned tower's time, at most, for the predictor and the choice
REPEATS = 32  # of the choice in a pass, which is short
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Row:
    """One measured gain: what is compared, times of the slower and the faster arm, and the least gain asked for."""

    name: str
    slow: Latency
    fast: Latency
    implied: float
    asked: float

    def show(self) -> bool:
        """Print it; True if it is what was asked for."""
        gain = ratio(self.slow, self.fast)
        good = gain.value >= self.asked
        times = "  ".join(f"{t.median_ms:7.0f} ({t.p10_ms:.0f}-{t.p90_ms:.0f})" for t in (self.slow, self.fast))
        print(
            f"{self.name:44} {times:44} {gain.value:5.2f}x ({gain.low:.2f}-{gain.high:.2f})"
            f"   MACs {self.implied:.2f}x   {gain.value / self.implied:.2f}"
            f"   asked {self.asked:.2f}x   {'PASS' if good else 'FAIL'}",
            flush=True,
        )
        return good


def towers(tower: OpenClipTower, shape: TowerShape, keep: int) -> list[Row]:
    """The pruned tower against the dense one and against merging at its cost, input at hand; the predictor apart."""
    predictor = MixerPredictor(shape.num_patches, 1).eval()
    pruned = PrunedVision(tower, layer=LAYER, num_keep=keep, selector=predictor).eval()
    schedule = merge_schedule(shape, tower.num_heads, keep, LAYER)
    merged = MergedVision(tower, layer=LAYER, schedule=schedule).eval()
    images = torch.randn(BATCH, 3, 224, 224)
    with torch.inference_mode():
        states, context = pruned.states(images), Context(tower, LAYER)
    times = timed(
        {
            "dense": lambda: tower.module(images),
            "merged": lambda: merged(images),
            "pruned": lambda: pruned(images),
            "choice": lambda: [keep_indices(predictor.score(states, context), keep) for _ in range(REPEATS)],
        },
        CPU,
    )
    choice = Latency(tuple(ms / REPEATS for ms in times["choice"].samples))
    cost = shape.pruned(keep, LAYER) + shape.mixer(64)
    implied, equal = shape.dense() / cost, shape.merged(schedule, LAYER, tower.num_heads) / cost
    name = f"tower, batch {BATCH}, keep {KEEP}: "
    return [
        Row(name + "dense / pruned", times["dense"], times["pruned"], implied, ASKED * implied),
        Row(name + "ToMe / pruned", times["merged"], times["pruned"], equal, 1.0),
        Row(name + "pruned / predictor", times["pruned"], choice, cost / shape.mixer(64), 1 / OVERHEAD),
    ]


class Dense(torch.nn.Module):
    """The untouched tower as an embedder: images to embeddings and the ids of all patches."""

    def __init__(self, tower: OpenClipTower) -> None:
        super().__init__()
        whole = PrunedVision(tower, layer=0, num_keep=tower.grid[0] * tower.grid[1], selector=MixerPredictor(196, 1))
        self.embedder = Embedder(whole)

    def forward(self, images: Tensor) -> Tensor:
        return self.embedder(images)[0]


def in_onnxruntime(tower: OpenClipTower, shape: TowerShape, keep: int) -> Row:
    """Both towers as ONNX; the pruned one is compared with torch before it is timed."""
    predictor, parity = MixerPredictor(shape.num_patches, 1).eval(), Parity()
    for parameter in predictor.parameters():  # scores as far apart as a trained predictor's
        parameter.data *= 3
    pruned = Embedder(PrunedVision(tower, layer=LAYER, num_keep=keep, selector=predictor).eval())
    images = torch.randn(BATCH, 3, 224, 224)
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{name}.onnx" for name in ("dense", "pruned")}
        export_onnx(trace(pruned, (224, 224)), files["pruned"], images, outputs=Embedder.OUTPUTS, compare=parity)
        export_onnx(trace(Dense(tower), (224, 224)), files["dense"], images, outputs=("embedding",))
        sessions = {name: session(file) for name, file in files.items()}
        feed = {"images": images.numpy()}
        times = timed({name: (lambda run=run: run.run(None, feed)) for name, run in sessions.items()}, CPU)
    print(
        f"ONNX of the pruned tower against torch, {parity.images} images: lowest cosine {parity.cosine:.6f}, "
        f"kept patches equal in all {parity.images - parity.ties} whose scores leave no doubt   PASS"
    )
    implied = shape.dense() / (shape.pruned(keep, LAYER) + shape.mixer(64))
    return Row(
        f"onnxruntime, batch {BATCH}, keep {KEEP}: dense / pruned", times["dense"], times["pruned"], implied, 1.0
    )


def sampled_search(num_patches: int, keep: int) -> list[Tensor]:
    """Candidates spread evenly over all that one image's search evaluates: (c, K) kept ids, a tensor for each round."""
    alive, sizes = num_patches, []
    while alive > keep:
        sizes.append(alive)
        alive -= min(GROUP, alive - keep)
    every = sum(sizes) / SAMPLED
    generator = torch.Generator().manual_seed(0)
    rounds = []
    for size in sizes:
        ids = torch.randperm(num_patches, generator=generator)[:size].sort().values
        rounds.append(torch.stack([torch.cat([ids[:out], ids[out + 1 :]]) for out in range(round(size / every))]))
    return rounds


def search(tower: OpenClipTower, shape: TowerShape, keep: int) -> list[Row]:
    """A candidate of the search against one through all blocks, and against a dense forward pass of an image."""
    rounds = sampled_search(shape.num_patches, keep)
    image = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        start = tower.embed(image)
        states = start
        for index in range(LAYER):
            states = tower.block(index, states)
        run = CandidateRunner(tower, states, LAYER, 1 << 20, fast=True)

    def naive(kept: Tensor) -> Tensor:
        x = start.expand(len(kept), -1, -1)
        for index in range(tower.depth):
            x = gather_patches(x, kept, 1, shape.num_patches) if index == LAYER else x
            x = tower.block(index, x)
        return tower.pool(x)

    def over(function: Callable[[Tensor], Tensor]) -> Callable[[], list[Tensor]]:
        return lambda: [function(kept) for kept in rounds]

    arms = {
        "dense": over(lambda kept: tower.module(image.expand(len(kept), -1, -1, -1))),
        "naive": over(naive),
        "search": over(run),
    }
    with torch.inference_mode():
        assert all(torch.allclose(a, b, atol=1e-4) for a, b in zip(arms["naive"](), arms["search"](), strict=True))
    times = timed(arms, CPU)
    kept_counts = [kept.shape[1] for kept in rounds for _ in kept]
    cost = sum(shape.candidate(kept, LAYER) for kept in kept_counts)
    through_all = sum(shape.pruned(kept, LAYER) - shape.embed for kept in kept_counts)
    name = f"search, {len(kept_counts)} candidates of one image: "
    bounds = {"dense": len(kept_counts) * shape.dense() / cost, "naive": through_all / cost}
    return [Row(name + arm, times[arm], times["search"], bound, ASKED * bound) for arm, bound in bounds.items()]


def same_ranks() -> bool:
    """Whole searches with and without the fast paths, on a 7 x 7 grid of the same network."""
    tower = tower_of(open_clip.create_model(MODEL, force_image_size=112).eval().requires_grad_(False))
    image = torch.randn(1, 3, 112, 112)
    fast, plain = (
        golden_ranking(tower, image, layer=LAYER, group=GROUP, rank_until=KEEP, exact_fast_paths=paths)
        for paths in (True, False)
    )
    equal = torch.equal(fast.rank, plain.rank)
    difference = (fast.removal_score - plain.removal_score).abs().max().item()
    print(
        f"ranks of 49 patches by {int(fast.passes[0])} passes, with and without fast paths: "
        f"{'identical' if equal else 'different'} (scores within {difference:.0e})   {'PASS' if equal else 'FAIL'}"
    )
    return equal


def main() -> int:
    """Run everything."""
    logging.disable(logging.WARNING)  # open_clip: random weights
    torch.manual_seed(0)
    tower = tower_of(open_clip.create_model(MODEL).eval().requires_grad_(False))
    self_check(tower)
    shape = TowerShape.of(tower)
    keep = num_keep(KEEP, shape.num_patches)
    print(
        f"{MODEL} 224, float32, {torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}, "
        f"{keep} of {shape.num_patches} patches after block {LAYER}.\n"
        f"Milliseconds of the slower and the faster arm, median (p10-p90); gain (95 % interval); "
        f"gain that the multiply-adds imply; measured / implied; least gain asked for.",
        flush=True,
    )
    good = [row.show() for row in towers(tower, shape, keep)]
    good.append(in_onnxruntime(tower, shape, keep).show())
    good += [row.show() for row in search(tower, shape, keep)]
    good.append(same_ranks())
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
