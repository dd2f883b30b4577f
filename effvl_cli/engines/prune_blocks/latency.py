"""Networks timed side by side."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from effvl_cli.core import distributed
from effvl_cli.core.measure import interleaved_latency, ratio
from effvl_cli.engines.prune_blocks.context import Context
from effvl_cli.techniques.prune_blocks.surgery import Removal, apply_removals, bypassed
from effvl_cli.techniques.prune_blocks.unit import Unit

ORIGINAL = "original"
PER_ARM_SECONDS = 5.0
PER_UNIT_SECONDS = 1.0


def along_steps(module: nn.Module, removals: Sequence[Removal]) -> dict[str, nn.Module]:
    """The original network and the one after each step; weights do not matter for time.

    Args:
        module: the original.
        removals: in order.
    """
    networks = {ORIGINAL: module}
    for step in dict.fromkeys(removal.step for removal in removals):
        made = [removal for removal in removals if removal.step <= step]
        networks[f"step {step}"] = apply_removals(copy.deepcopy(module), made).eval()
    return networks


def measure(context: Context, networks: Mapping[str, nn.Module], batches: Sequence[int]) -> list[dict[str, Any]]:
    """Time networks at some batch sizes, on noise that is on the device already; on rank 0 alone.

    Returns:
        A row for each network and batch size that fits into the memory; `ratio` is to the original's time.
    """
    if not distributed.is_main():
        return []
    rows = []
    with context.run.progress("latency", len(batches)) as progress:
        for done, batch in enumerate(batches, 1):
            images = context.noise(batch)
            try:
                arms = {name: _call(network, images) for name, network in networks.items()}
                rows += rows_of(arms, context.run.device, batch, "torch")
            except torch.OutOfMemoryError:
                context.run.warn(f"latency at batch {batch} left out: out of memory")
            progress.update(done)
    return rows


def saved(context: Context, module: nn.Module, units: Sequence[Unit]) -> list[float]:
    """Milliseconds that one image needs less without each unit; not below 0."""
    image = context.noise(1)

    def without(skipped: list[Unit]) -> Callable[[], Any]:
        def call() -> Any:
            with bypassed(module, skipped):
                return module(image)

        return call

    arms = {"": without([])} | {unit.path: without([unit]) for unit in units}
    times = interleaved_latency(arms, context.run.device, seconds=PER_UNIT_SECONDS)
    return [max(0.0, times[""].median_ms - times[unit.path].median_ms) for unit in units]


def rows_of(
    arms: Mapping[str, Callable[[], Any]], device: torch.device, batch: int, runtime: str
) -> list[dict[str, Any]]:
    """Time functions in turn; one of them is `original`."""
    times = interleaved_latency(dict(arms), device, seconds=PER_ARM_SECONDS)
    rows = []
    for name, latency in times.items():
        share = ratio(latency, times[ORIGINAL])
        rows.append(
            {
                "network": name,
                "runtime": runtime,
                "batch": batch,
                "median_ms": latency.median_ms,
                "p10_ms": latency.p10_ms,
                "p90_ms": latency.p90_ms,
                "passes": len(latency.samples),
                "ratio": share.value,
                "ratio_ci95": [share.low, share.high],
                "threads": torch.get_num_threads(),
            }
        )
    return rows


def _call(network: nn.Module, images: torch.Tensor) -> Callable[[], Any]:
    return lambda: network(images)
