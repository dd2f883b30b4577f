"""Measured gains of token pruning at ViT-B/16 224 beside those that the multiply-adds imply: `make bench-prune-tokens`.

Random weights: time does not depend on them. Exits 1 if a measured gain is below 0.9 of the implied one, or if the
search by its fast paths ranks otherwise than without them. Wants an idle machine.
"""

import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass

import open_clip
import torch
from torch import Tensor

from effvl_cli.core.measure import Latency, interleaved_latency, ratio
from effvl_cli.models.openclip_tower import OpenClipTower, self_check, tower_of
from effvl_cli.techniques.prune_tokens.macs import TowerShape
from effvl_cli.techniques.prune_tokens.predictor import MixerPredictor
from effvl_cli.techniques.prune_tokens.ranking import CandidateRunner, golden_ranking
from effvl_cli.techniques.prune_tokens.tower import PrunedVision, gather_patches, num_keep

MODEL, BATCH, KEEP, LAYER, GROUP = "ViT-B-16", 8, 0.6, 3, 10
SAMPLED = 16  # of the 1,288 candidates of one image's search
ASKED = 0.9


@dataclass(frozen=True)
class Row:
    """One measured gain: what is compared, and times of the slower and the faster arm."""

    name: str
    slow: Latency
    fast: Latency
    implied: float

    def show(self) -> bool:
        """Print it; True if it is what was asked for."""
        gain = ratio(self.slow, self.fast)
        good = gain.value >= ASKED * self.implied
        times = "  ".join(f"{t.median_ms:7.0f} ({t.p10_ms:.0f}-{t.p90_ms:.0f})" for t in (self.slow, self.fast))
        print(
            f"{self.name:44} {times:44} {gain.value:5.2f}x ({gain.low:.2f}-{gain.high:.2f})"
            f"   MACs {self.implied:.2f}x   {gain.value / self.implied:.2f}   {'PASS' if good else 'FAIL'}",
            flush=True,
        )
        return good


def pruned_tower(tower: OpenClipTower, shape: TowerShape, keep: int) -> Row:
    """Dense against pruned, input at hand."""
    pruned = PrunedVision(tower, layer=LAYER, num_keep=keep, selector=MixerPredictor(shape.num_patches, 1)).eval()
    images = torch.randn(BATCH, 3, 224, 224)
    cpu = torch.device("cpu")
    times = interleaved_latency({"dense": lambda: tower.module(images), "pruned": lambda: pruned(images)}, cpu)
    implied = shape.dense() / (shape.pruned(keep, LAYER) + shape.mixer(64))
    return Row(f"tower, batch {BATCH}, keep {KEEP}: dense / pruned", times["dense"], times["pruned"], implied)


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
    times = interleaved_latency(arms, torch.device("cpu"))
    kept_counts = [kept.shape[1] for kept in rounds for _ in kept]
    cost = sum(shape.candidate(kept, LAYER) for kept in kept_counts)
    through_all = sum(shape.pruned(kept, LAYER) - shape.embed for kept in kept_counts)
    name = f"search, {len(kept_counts)} candidates of one image: "
    return [
        Row(name + "dense", times["dense"], times["search"], len(kept_counts) * shape.dense() / cost),
        Row(name + "naive", times["naive"], times["search"], through_all / cost),
    ]


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
        f"gain that the multiply-adds imply; measured / implied (asked: {ASKED}).",
        flush=True,
    )
    good = [pruned_tower(tower, shape, keep).show()]
    good += [row.show() for row in search(tower, shape, keep)]
    good.append(same_ranks())
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
