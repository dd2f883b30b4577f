"""A training step of learned prompts, as it is run, against the plain one: `make bench-prompt-tune`.

The plain step runs the image encoder and all 77 positions of every prompt; ours has the image features at hand, leaves
out what follows the prompts, computes once what all of them begin with, and in the last block only the row that is
read. ViT-B/32, 100 classes of four tokens, 16 context tokens, batch 32; random weights: time does not depend on them.
Then both are trained for 20 steps (of fewer classes and images), and the contexts compared. Exits 1 if the gain is
below 12, or below 0.85 of what the multiply-adds say, or if the contexts differ. About seven minutes on an idle core.
"""

import logging
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from effvl_cli.core.bench import ratio, timed
from effvl_cli.core.measure import count_macs
from effvl_cli.models import network as networks
from effvl_cli.models.network import Network
from effvl_cli.models.openclip_prompts import prompt_tower
from effvl_cli.techniques.prompt_tune.learner import PromptLearner, random_context
from effvl_cli.techniques.prompt_tune.pieces import Pieces
from effvl_cli.techniques.prompt_tune.text_cost import text_cost

MODEL, BATCH, CLASSES, CONTEXT, NAME = "ViT-B-32", 32, 100, 16, 4
STEPS, FEW_CLASSES, FEW_IMAGES = 20, 8, 4  # of the comparison
GAIN, SHARE = 12.0, 0.85
CLOSE = 1e-3
LR, MOMENTUM, DECAY, SCALE = 0.002, 0.9, 5e-4, 100.0


@dataclass(frozen=True)
class Arm:
    """A learner and its training step."""

    learner: PromptLearner
    step: Callable[[], None]


def pieces(network: Network, count: int) -> Pieces:
    """Names of four random tokens each."""
    words = torch.randint(1000, (count, NAME), generator=torch.Generator().manual_seed(0)).tolist()
    row = network.tokenize([""])[0]
    start, end, period = int(row[0]), int(row.max()), int(network.tokenize(["."])[0, 1])
    names = tuple(f"class {number}" for number in range(count))
    return Pieces(names, tuple(map(tuple, words)), (start,), (period,), (end,), 0, len(row))


def learner_of(network: Network, classes: int, context: int, device: torch.device, **options: object) -> PromptLearner:
    """A learner whose context is the same for all options."""
    tower = prompt_tower(network)
    rows = random_context(context, tower.width, torch.Generator().manual_seed(1))
    return PromptLearner(tower, pieces(network, classes), rows, **options).to(device)


def step_of(learner: PromptLearner, features: Callable[[], Tensor], labels: Tensor) -> Callable[[], None]:
    """Forward and backward pass and update of a training step; unit image features (B, E) come from `features`."""
    optimizer = torch.optim.SGD(learner.parameters(), lr=LR, momentum=MOMENTUM, weight_decay=DECAY)

    def step() -> None:
        with torch.inference_mode(False), torch.enable_grad():
            optimizer.zero_grad()
            F.cross_entropy(SCALE * features() @ learner().T, labels).backward()
            optimizer.step()

    return step


def arms(network: Network, batch: int, classes: int, context: int) -> dict[str, Arm]:
    """The plain step and ours, on the same images."""
    device = torch.device("cpu")
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(batch, 3, *network.preprocess.size, generator=generator)
    labels = torch.randint(classes, (batch,), generator=generator)

    def encoded() -> Tensor:
        with torch.no_grad():
            return F.normalize(network.module.encode_image(images), dim=-1)

    cached = encoded()
    plain = learner_of(network, classes, context, device, prefix_share="off", text_chunk=None, truncate=False)
    ours = learner_of(network, classes, context, device)
    return {
        "plain": Arm(plain, step_of(plain, encoded, labels)),
        "ours": Arm(ours, step_of(ours, lambda: cached, labels)),
    }


def gain(network: Network) -> bool:
    """Time both steps in turn, print the gain beside the implied one; whether it is what was asked for."""
    both = arms(network, BATCH, CLASSES, CONTEXT)
    image = BATCH * count_macs(network.module.visual, torch.randn(1, 3, *network.preprocess.size))
    plain = image + text_cost(both["plain"].learner).step
    ours = text_cost(both["ours"].learner).step
    times = timed({name: arm.step for name, arm in both.items()}, torch.device("cpu"))
    found, implied = ratio(times["plain"], times["ours"]), plain / ours
    good = found.value >= GAIN and found.value >= SHARE * implied
    for name, macs in (("plain", plain), ("ours", ours)):
        spent = times[name]
        print(f"{name:6} {spent.median_ms:8.0f} ms ({spent.p10_ms:.0f}-{spent.p90_ms:.0f})  {macs / 1e9:7.1f} GMACs")
    interval, share = f"({found.low:.2f}-{found.high:.2f})", found.value / implied
    print(
        f"gain {found.value:.2f}x {interval}   MACs {implied:.2f}x   {share:.2f}"
        f"   asked {GAIN:.0f}x and {SHARE} of the MACs'   {'PASS' if good else 'FAIL'}",
        flush=True,
    )
    return good


def same_contexts(network: Network) -> bool:
    """Train both for 20 steps and compare their contexts."""
    both = arms(network, FEW_IMAGES, FEW_CLASSES, CONTEXT)
    start = both["ours"].learner.context.detach().clone()
    for arm in both.values():
        for _ in range(STEPS):
            arm.step()
    one, other = (arm.learner.context.detach() for arm in both.values())
    moved, apart = float((one - start).abs().max()), float((one - other).abs().max())
    good = apart < CLOSE < moved
    print(
        f"contexts after {STEPS} steps ({FEW_CLASSES} classes, {FEW_IMAGES} images): moved by {moved:.1e}, "
        f"apart by {apart:.1e}, asked < {CLOSE:.0e}   {'PASS' if good else 'FAIL'}",
        flush=True,
    )
    return good


def main() -> int:
    """Run everything."""
    logging.disable(logging.WARNING)  # open_clip: random weights
    network = networks.build(f"openclip:{MODEL}", seed=0)
    print(
        f"{MODEL} {network.preprocess.size[0]}, float32, {torch.get_num_threads()} threads, "
        f"load {os.getloadavg()[0]:.1f}, {CLASSES} classes of {NAME} tokens, {CONTEXT} context tokens, batch {BATCH}; "
        f"milliseconds of a step.",
        flush=True,
    )
    good = [same_contexts(network), gain(network)]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
