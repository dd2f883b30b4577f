"""Dense and pruned towers timed side by side."""

from typing import Any

import torch

from effvl_cli.core import distributed
from effvl_cli.core.loop import autocast
from effvl_cli.core.measure import interleaved_latency, ratio
from effvl_cli.engines.prune_tokens.evaluation import macs_of
from effvl_cli.engines.prune_tokens.setup import Setup
from effvl_cli.techniques.prune_tokens.tower import PrunedVision

LAUNCH_BOUND = 1.03  # a speed-up below this at batch 1 is called out


def measure(setup: Setup, vision: PrunedVision, keep: float, batches: tuple[int, ...]) -> list[dict[str, Any]]:
    """Time both towers at some batch sizes, on noise that is on the device already; on rank 0 alone.

    Returns:
        A row for each batch size that fits into the memory.
    """
    if not distributed.is_main():
        return []
    rows = []
    macs = macs_of(setup, "predictor", keep) / setup.shape.dense()
    with setup.run.progress("latency", len(batches)) as progress:
        for done, batch in enumerate(batches, 1):
            try:
                rows.append(_row(setup, vision, batch) | {"mac_ratio": macs})
            except torch.OutOfMemoryError:
                setup.run.warn(f"latency at batch {batch} left out: out of memory")
            progress.update(done)
    slow = next((row for row in rows if row["batch"] == 1 and row["speedup"] < LAUNCH_BOUND), None)
    if slow:
        setup.run.warn(
            f"at batch 1 pruning gains nothing ({slow['speedup']:.2f}x): the tower is too small to be worth it"
        )
    return rows


def _row(setup: Setup, vision: PrunedVision, batch: int) -> dict[str, Any]:
    device, precision = setup.run.device, setup.config.precision
    height, width = setup.network.preprocess.size
    images = torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0)).to(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with autocast(device, precision):
        arms = {"dense": lambda: setup.tower.module(images), "pruned": lambda: vision(images)}
        times = interleaved_latency(arms, device)
    dense, pruned = times["dense"], times["pruned"]
    gain = ratio(dense, pruned)
    return {
        "batch": batch,
        "dense_ms": dense.median_ms,
        "pruned_ms": pruned.median_ms,
        "p10": pruned.p10_ms,
        "p90": pruned.p90_ms,
        "img_s": 1000 * batch / pruned.median_ms,
        "speedup": gain.value,
        "speedup_ci95": [gain.low, gain.high],
        "passes": len(pruned.samples),
        "precision": precision,
        "threads": torch.get_num_threads(),
        "peak_mb": torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None,
    }
