"""What a run will do and cost, before it does it: the table behind the options that `--dry-run` prints."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from effvl_cli.core import bench
from effvl_cli.core.loop import autocast
from effvl_cli.core.measure import count_parameters
from effvl_cli.core.modes import as_found
from effvl_cli.core.probe import seconds_for, training_bytes
from effvl_cli.core.table import Cell, Table

TRAINING = 3  # multiply-adds of a forward and a backward pass, over those of the forward pass
COMPARED = 64  # images, at most, on which an exported file and its network are compared
STATES = {"sgd": 3, "adam": 4, "adamw": 4, "muon": 4}  # copies of the parameters: weights, gradients, moments


@dataclass(frozen=True)
class Part:
    """One part of a run's work.

    Attributes:
        name: of the part.
        work: how much, in words, e.g. "313 steps of 64 images".
        macs: multiply-adds in all.
        seconds: on this device, estimated by a probe.
    """

    name: str
    work: str
    macs: float
    seconds: float


def part(name: str, work: str, macs: float, speed: float) -> Part:
    """A part whose multiply-adds are done at this number a second."""
    return Part(name, work, macs, macs / speed)


def timings(macs: Sequence[float], batches: Sequence[int], speed: float, seconds: float = bench.SECONDS) -> Part:
    """Latencies as `core.bench` measures them.

    Args:
        macs: of one image through each arm.
        batches: batch sizes.
        speed: multiply-adds a second.
        seconds: limit for each arm and batch size.
    """
    total = 0.0
    for batch in batches:
        turn = batch * sum(macs)  # a pass of each arm
        passes = min(bench.MAX_PASSES, max(bench.MIN_PASSES, math.ceil(seconds * len(macs) * speed / turn)))
        total += (bench.WARM_UPS + passes) * turn
    return part("latency", f"{len(macs)} networks in turn, batches of {', '.join(map(str, batches))}", total, speed)


def written(formats: Sequence[str], macs: float, speed: float) -> Part:
    """Files that are read back and compared with a network on images of noise; `macs` are of one image."""
    work = f"{', '.join(formats)}: each read back and compared, besides the time of tracing"
    return part("files", work, 2 * COMPARED * len(formats) * macs, speed)


def cost_table(title: str, parts: Sequence[Part], device: torch.device, *, memory: int, notes: Sequence[str]) -> Table:
    """Table of the parts and their sum.

    Args:
        title: of the table.
        parts: in order.
        device: the probed device.
        memory: approximate peak in bytes.
        notes: further lines.
    """
    rows: list[tuple[Cell, ...]] = [(part.name, part.work, _macs(part.macs), duration(part.seconds)) for part in parts]
    if len(parts) > 1:
        total = sum(part.macs for part in parts), sum(part.seconds for part in parts)
        rows.append(("all", "", _macs(total[0]), duration(total[1])))
    return Table(title, ("part", "work", "multiply-adds", "time"), tuple(rows), (*notes, note_of(device, memory)))


def note_of(device: torch.device, memory: int) -> str:
    """Note on the probed device and the memory."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    threads = f" with {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    return f"times from a short probe on {name}{threads}, without decoding; memory about {memory / 2**20:,.0f} MiB"


def training_memory(module: nn.Module, optimizer: str, loss: Callable[[int], Any], count: int) -> int:
    """Bytes of weights, gradients and moments, and of what the backward pass needs.

    Args:
        module: in training mode meanwhile.
        optimizer: its name.
        loss: of a number of samples.
        count: samples of a step on this process.
    """
    with as_found(module, training=True):
        activations = training_bytes(loss, count)
    return int(4 * STATES[optimizer] * count_parameters(module) + activations)


def duration(seconds: float) -> str:
    """A readable duration: "0.4 s", "12 s", "3.5 min", "7.2 h", "4.1 days"."""
    for limit, unit, word in ((90, 1, "s"), (5400, 60, "min"), (36 * 3600, 3600, "h")):
        if seconds < limit:
            return f"{seconds / unit:.{0 if seconds >= 10 and unit == 1 else 1}f} {word}"
    return f"{seconds / 86400:.1f} days"


def _macs(macs: float) -> str:
    for limit, unit, word in ((1e9, 1e6, "M"), (1e12, 1e9, "G"), (1e15, 1e12, "T")):
        if macs < limit:
            return f"{macs / unit:.3g} {word}"
    return f"{macs / 1e15:.4g} P"


def speed_of(
    call: Callable[[Tensor], Any], module: nn.Module, images: Tensor, macs: float, precision: str = "fp32"
) -> float:
    """Multiply-adds a second of a network in evaluation mode.

    Args:
        call: from images (b, 3, H, W) through the network.
        module: the network.
        images: (B, 3, H, W) on its device, B of them the most at a time.
        macs: of one image.
        precision: autocast type.
    """
    device = images.device

    def run(count: int) -> None:
        with as_found(module, training=False), torch.inference_mode(), autocast(device, precision):
            call(images[:count])

    return len(images) * macs / seconds_for(run, len(images), device)
