"""Times dense and pruned towers side by side."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from effvl_cli.core import bench
from effvl_cli.data import load
from effvl_cli.data.decoded import Decoded
from effvl_cli.data.loader import loader_workers
from effvl_cli.engines.prune_tokens.context import AnyContext
from effvl_cli.engines.prune_tokens.evaluation import pooled
from effvl_cli.models.network import zero_shot_classifier
from effvl_cli.techniques.prune_tokens.selector_table import Arm, macs_of
from effvl_cli.techniques.prune_tokens.tower import num_keep

LAUNCH_BOUND = 1.03  # a speed-up below this at batch 1 gives a warning
DENSE = "dense"

Call = Callable[[Tensor, Tensor], Any]
"""Normalised images (B, 3, H, W) and numbers of the samples (B,) through a tower."""


def compare(
    context: AnyContext,
    pruned: Sequence[Arm],
    batches: Sequence[int],
    *,
    compiled: bool = False,
    channels_last: bool = False,
    end_to_end: bool = False,
) -> None:
    """Time the dense and the pruned towers in turn, and report the times.

    Args:
        context: of the run.
        pruned: the towers to compare with the dense one.
        batches: batch sizes.
        compiled: compile every tower first.
        channels_last: use that layout for images and patch embedding.
        end_to_end: decode and resize test images and encode the class texts in every pass; else images are noise that
            is on the device already, and only the tower runs.
    """
    layout = torch.channels_last if channels_last else torch.contiguous_format
    context.tower.module.to(memory_format=layout)
    prepare = _whole(context, layout) if end_to_end else _tower_alone(context, layout)

    def passes(call: Call) -> Callable[[int], bench.Pass]:
        call = _compiled(call) if compiled else call
        return lambda batch: prepare(call, batch)

    arms = [bench.Arm(DENSE, passes(lambda images, ids: context.tower.module(images)))]
    for arm in pruned:
        share = macs_of(context.place, arm.selector, arm.keep) / context.shape.dense()
        patches = {"patches": num_keep(arm.keep, context.shape.num_patches)}
        arms.append(bench.Arm(arm.name, passes(arm.vision), share, patches))
    rows = bench.compare(arms, batches, context.run, precision=context.config.precision)
    bench.record(context.run, rows)
    named = {arm.name: arm for arm in pruned}
    measured = [(named[row.arm], row) for row in rows if row.arm != DENSE]
    for arm, row in measured:
        context.run.report.metric(arm.metric(row.batch, alone=len(pruned) == 1), row.speedup, unit="ratio")
    slow = [row for _, row in measured if row.batch == 1 and row.speedup < LAUNCH_BOUND]
    if slow:
        gains = ", ".join(f"{row.speedup:.2f}x ({row.arm})" for row in slow)
        context.run.warn(f"at batch 1 pruning gains nothing: {gains}. The tower is too small for it to pay off there")


def _compiled(call: Call) -> Call:
    compiled: Call = torch.compile(call, dynamic=False)
    return compiled


def _tower_alone(context: AnyContext, layout: torch.memory_format) -> Callable[[Call, int], bench.Pass]:
    device = context.run.device
    noise = bench.noise(context.network.preprocess.size, device, layout)

    def prepare(call: Call, batch: int) -> bench.Pass:
        images, ids = noise(batch), torch.arange(batch, device=device)
        return lambda: call(images, ids)

    return prepare


def _whole(context: AnyContext, layout: torch.memory_format) -> Callable[[Call, int], bench.Pass]:
    """From files to classes."""
    config, device, preprocess = context.config, context.run.device, context.network.preprocess
    source = load(config.data, "test", root=config.data_root, seed=0)
    workers = loader_workers(config.workers, device.type)

    def prepare(call: Call, batch: int) -> bench.Pass:
        indices, ids = np.arange(batch) % len(source), torch.arange(batch, device=device)

        def run() -> Tensor:
            read = Decoded.read(source, preprocess, indices, workers=workers, on_bad=config.on_bad)
            images = preprocess.normalise(read.pixels.to(device)).to(memory_format=layout)
            classifier = zero_shot_classifier(context.network, context.classes, context.templates, device)
            return (F.normalize(pooled(call(images, ids)), dim=-1) @ classifier).argmax(1)

        return run

    return prepare
