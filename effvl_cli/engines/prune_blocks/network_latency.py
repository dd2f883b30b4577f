"""Times networks side by side."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from effvl_cli.config.options import RunOptions
from effvl_cli.core import bench
from effvl_cli.core.errors import NumericalError
from effvl_cli.core.loop import autocast
from effvl_cli.core.measure import count_macs
from effvl_cli.engines.prune_blocks.context import NetworkContext
from effvl_cli.techniques.prune_blocks.surgery import ORIGINAL, bypassed
from effvl_cli.techniques.prune_blocks.unit import Unit

PER_ARM_SECONDS = 5.0
PER_UNIT_SECONDS = 1.0
PER_STEP_SECONDS = 2.0  # where latency is a target


def arms(context: NetworkContext[RunOptions], networks: Mapping[str, nn.Module]) -> list[bench.Arm]:
    """Of networks, the original first; on noise that is on the device already."""
    images = bench.noise(context.network.preprocess.size, context.run.device)
    macs = {name: count_macs(network, images(1)) for name, network in networks.items()}

    def arm(name: str, network: nn.Module) -> bench.Arm:
        def prepare(batch: int) -> bench.Pass:
            pixels = images(batch)
            return lambda: network(pixels)

        return bench.Arm(name, prepare, macs[name] / macs[ORIGINAL])

    return [arm(name, network) for name, network in networks.items()]


def measure(
    context: NetworkContext[RunOptions],
    networks: Mapping[str, nn.Module],
    batches: Sequence[int],
    *,
    seconds: float = PER_ARM_SECONDS,
) -> list[bench.Row]:
    """Time networks beside the original."""
    return compare(context, arms(context, networks), batches, seconds=seconds)


def compare(
    context: NetworkContext[RunOptions],
    of: Sequence[bench.Arm],
    batches: Sequence[int],
    *,
    seconds: float = PER_ARM_SECONDS,
) -> list[bench.Row]:
    """The same of arms that are there already."""
    return bench.compare(of, batches, context.run, precision=context.config.precision, seconds=seconds)


def saved(context: NetworkContext[RunOptions], module: nn.Module, units: Sequence[Unit]) -> list[float]:
    """Milliseconds saved for one image without each unit; not below 0."""
    image = context.noise(1)

    def without(skipped: list[Unit]) -> bench.Pass:
        def call() -> Any:
            with bypassed(module, skipped):
                return module(image)

        return call

    passes = {"": without([])} | {unit.path: without([unit]) for unit in units}
    with autocast(context.run.device, context.config.precision):
        times = bench.timed(passes, context.run.device, seconds=PER_UNIT_SECONDS)
    return [max(0.0, times[""].median_ms - times[unit.path].median_ms) for unit in units]


def share_of(context: NetworkContext[RunOptions], module: nn.Module) -> float:
    """Latency of one image, relative to the original network.

    Raises:
        NumericalError: it does not fit in memory.
    """
    rows = measure(context, {ORIGINAL: context.module, "pruned": module}, [1], seconds=PER_STEP_SECONDS)
    if not rows:
        raise NumericalError("out of memory with one image", "Use --device cpu, or leave out --target-latency")
    return rows[-1].ratio


def by_network(rows: Sequence[bench.Row]) -> dict[tuple[str, str], tuple[float, float, float]]:
    """Milliseconds of one image and both ends of their interval, that of the ratio, by network and runtime."""
    found = {}
    for row in (row for row in reversed(rows) if row.batch == 1):
        low, high = (row.median_ms / row.ratio * end for end in row.ratio_ci95)
        found[row.arm, row.runtime] = (row.median_ms, low, high)
    return found
