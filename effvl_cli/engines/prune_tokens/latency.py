"""Dense and pruned towers timed side by side."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from effvl_cli.core import distributed
from effvl_cli.core.loop import autocast
from effvl_cli.core.measure import Latency, interleaved_latency, ratio
from effvl_cli.data import load
from effvl_cli.data.decoded import Decoded
from effvl_cli.data.loader import loader_workers
from effvl_cli.engines.prune_tokens.context import Context
from effvl_cli.engines.prune_tokens.evaluation import macs_of, pooled
from effvl_cli.models.network import zero_shot_classifier
from effvl_cli.techniques.prune_tokens.tower import WrappedTower, num_keep

LAUNCH_BOUND = 1.03  # a speed-up below this at batch 1 is called out
DENSE = "dense"

Call = Callable[[Tensor, Tensor], Any]
"""Normalised images (B, 3, H, W) and numbers of the samples (B,) through a tower."""
Pass = Callable[[], Any]


@dataclass(frozen=True)
class Arm:
    """A pruned tower that is timed beside the dense one."""

    selector: str
    keep: float
    vision: WrappedTower


def measure(
    context: Context,
    arms: Sequence[Arm],
    batches: Sequence[int],
    *,
    compiled: bool = False,
    channels_last: bool = False,
    end_to_end: bool = False,
) -> list[dict[str, Any]]:
    """Time the dense and the pruned towers in turn, on rank 0 alone.

    Args:
        context: of the run.
        arms: what is compared with the dense tower.
        batches: batch sizes.
        compiled: compile every tower first.
        channels_last: lay images and patch embedding out that way.
        end_to_end: decode and resize test images and encode the class texts in every pass; else images are noise that
            is on the device already, and only the tower runs.

    Returns:
        A row for each arm and batch size that fits into the memory.
    """
    if not distributed.is_main():
        return []
    calls: dict[str, Call] = {DENSE: lambda images, ids: context.tower.module(images)}
    calls |= {str(number): arm.vision for number, arm in enumerate(arms)}
    if compiled:
        calls = {name: _compiled(call) for name, call in calls.items()}
    layout = torch.channels_last if channels_last else torch.contiguous_format
    context.tower.module.to(memory_format=layout)
    prepare = _whole if end_to_end else _tower_alone
    rows = []
    with context.run.progress("latency", len(batches)) as progress:
        for done, batch in enumerate(batches, 1):
            try:
                passes = {name: prepare(context, call, batch, layout) for name, call in calls.items()}
                rows += _rows(context, arms, passes, batch)
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not _out_of_memory(error):
                    raise
                context.run.warn(f"latency at batch {batch} left out: out of memory")
            progress.update(done)
            context.run.check_stop()
    _warn_slow(context, rows)
    return rows


def _compiled(call: Call) -> Call:
    compiled: Call = torch.compile(call, dynamic=False)
    return compiled


def _out_of_memory(error: BaseException) -> bool:
    """Of a device or of the machine, whose allocator raises no class of its own."""
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)


def _tower_alone(context: Context, call: Call, batch: int, layout: torch.memory_format) -> Pass:
    device = context.run.device
    noise = torch.randn(batch, 3, *context.network.preprocess.size, generator=torch.Generator().manual_seed(0))
    images, ids = noise.to(device, memory_format=layout), torch.arange(batch, device=device)
    return lambda: call(images, ids)


def _whole(context: Context, call: Call, batch: int, layout: torch.memory_format) -> Pass:
    """From files to classes."""
    config, device, preprocess = context.config, context.run.device, context.network.preprocess
    source = load(config.data, "test", root=config.data_root, seed=0)
    indices, ids = np.arange(batch) % len(source), torch.arange(batch, device=device)
    workers = loader_workers(config.workers, device.type)

    def run() -> Tensor:
        read = Decoded.read(source, preprocess, indices, workers=workers, on_bad=config.on_bad)
        images = preprocess.normalise(read.pixels.to(device)).to(memory_format=layout)
        classifier = zero_shot_classifier(context.network, context.classes, context.templates, device)
        return (F.normalize(pooled(call(images, ids)), dim=-1) @ classifier).argmax(1)

    return run


def _rows(context: Context, arms: Sequence[Arm], passes: dict[str, Pass], batch: int) -> list[dict[str, Any]]:
    device = context.run.device
    with autocast(device, context.config.precision):
        memory = {name: _peak_mb(run, device) for name, run in passes.items()}
        times = interleaved_latency(passes, device)
    rows = []
    for number, arm in enumerate(arms):
        own = {"selector": arm.selector, "keep": arm.keep, "K": num_keep(arm.keep, context.shape.num_patches)}
        ratio_of_macs = macs_of(context, arm.selector, arm.keep) / context.shape.dense()
        row = own | _row(context, batch, times[DENSE], times[str(number)]) | {"mac_ratio": ratio_of_macs}
        rows.append(row | {"peak_mb": memory[str(number)], "dense_peak_mb": memory[DENSE]})
    return rows


def _peak_mb(run: Pass, device: torch.device) -> float | None:
    """Most memory that a pass holds, weights included; on CUDA only."""
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    with torch.inference_mode():
        run()
    return torch.cuda.max_memory_allocated(device) / 2**20


def _row(context: Context, batch: int, dense: Latency, pruned: Latency) -> dict[str, Any]:
    gain = ratio(dense, pruned)
    return {
        "batch": batch,
        "dense_ms": dense.median_ms,
        "pruned_ms": pruned.median_ms,
        "p10": pruned.p10_ms,
        "p90": pruned.p90_ms,
        "img_s": 1000 * batch / pruned.median_ms,
        "dense_img_s": 1000 * batch / dense.median_ms,
        "speedup": gain.value,
        "speedup_ci95": [gain.low, gain.high],
        "passes": len(pruned.samples),
        "precision": context.config.precision,
        "threads": torch.get_num_threads(),
    }


def _warn_slow(context: Context, rows: Sequence[dict[str, Any]]) -> None:
    slow = [row for row in rows if row["batch"] == 1 and row["speedup"] < LAUNCH_BOUND]
    if slow:
        gains = ", ".join(f"{row['speedup']:.2f}x ({row['selector']}, keep {row['keep']:g})" for row in slow)
        context.run.warn(f"at batch 1 pruning gains nothing: {gains}. The tower is too small to be worth it there")
