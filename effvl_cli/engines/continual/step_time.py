"""What owners cost in a training step of the run's own network, beside what the bytes that they move predict."""

import copy
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from effvl_cli.core import bench
from effvl_cli.core.optim import Optimizers
from effvl_cli.engines.continual.context import HEAD, Context
from effvl_cli.engines.continual.live import owned_optimizers
from effvl_cli.engines.continual.plain import optimizers
from effvl_cli.techniques.continual.owned_network import OwnedNetwork

COPIED = 2**23  # numbers of the copy that tells the speed of the memory
BYTES = {False: 24 + 12 + 24, True: 52 + 36 + 24 + 28}
"""Read and written a weight, without and with picks: masked sum, masked gradient, delta and momentum; Adam."""


def record(context: Context) -> None:
    """Put `step_time_ratio`, its 95 % interval and its prediction into the costs of the report.

    Timed is the second task of a network of width 1 that has released half of its weights, on noise, with and without
    owners in turn; few steps, so that a run takes no longer for it. `make bench-continual` times many.
    """
    config, device = context.config, context.run.device
    size = config.batch_size or 1
    images = bench.noise(context.network.preprocess.size, device)(size)
    plain, other = (copy.deepcopy(context.network.module).to(device).train() for _ in range(2))
    labels = torch.arange(size, device=device) % HEAD
    network = OwnedNetwork(other, exclude=context.excluded)
    picks = config.method == "cpg" and config.pick_lr > 0
    network.claim(1)
    network.prune(0.5)
    network.commit()
    network.claim(2, picks=picks)
    owned = owned_optimizers(network, config, config.lr, config.pick_lr if picks else 0.0)
    buffer, target = (torch.ones(COPIED, device=device) for _ in range(2))
    arms: dict[str, Callable[[], object]] = {
        "plain": partial(_step, plain, images, labels, optimizers(context, plain, config)),
        "owned": partial(_step, other, images, labels, owned, network),
        "copy": lambda: target.copy_(buffer),
    }
    found = bench.timed(arms, device, seconds=0.0)
    share = bench.ratio(found["owned"], found["plain"])
    count = sum(weight.base.numel() for weight in network.tensors.values())
    moved = BYTES[picks] * count * found["copy"].median_ms / (8 * COPIED)
    context.run.report.efficiency.update(
        step_time_ratio=share.value,
        step_time_ratio_ci95=[share.low, share.high],
        step_time_ratio_predicted=1 + moved / found["plain"].median_ms,
    )


@torch.inference_mode(False)
def _step(
    module: nn.Module, images: Tensor, labels: Tensor, parts: Optimizers, network: OwnedNetwork | None = None
) -> None:
    """One training step; timing runs without gradients otherwise."""
    with torch.enable_grad():
        F.cross_entropy(module(images), labels).backward()
    for part in parts.parts:
        part.step()
    if network is not None:
        network.after_step(parts.parts)
    for part in parts.parts:
        part.zero_grad()
