"""Functions timed side by side: one protocol, one kind of row, one table and one picture for every command.

The protocol is that of architecture.md, section 13: inference mode, arms in turn (A B A B), at least two warm-up passes
each, then until 10 s or 50 passes an arm, at least 5; medians, percentiles, and the ratio of medians with a bootstrap
interval. The code that builds an arm puts its network into evaluation mode.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from effvl_cli.core import distributed, plots, seeds
from effvl_cli.core.loop import autocast
from effvl_cli.core.report import Report
from effvl_cli.core.run import Run
from effvl_cli.core.table import Cell, Table, times

SECONDS = 10.0
MAX_PASSES, MIN_PASSES, WARM_UPS = 50, 5, 2
DRAWS = 2000  # resamples of the bootstrap
TORCH = "torch"

Pass = Callable[[], Any]


@dataclass(frozen=True)
class Latency:
    """Milliseconds of the passes of one arm."""

    samples: tuple[float, ...]

    @property
    def median_ms(self) -> float:
        """Middle pass."""
        return float(np.median(self.samples))

    @property
    def p10_ms(self) -> float:
        """Tenth percentile."""
        return float(np.percentile(self.samples, 10))

    @property
    def p90_ms(self) -> float:
        """Ninetieth percentile."""
        return float(np.percentile(self.samples, 90))


@dataclass(frozen=True)
class Ratio:
    """A ratio of medians with a 95 % bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Arm:
    """Something to time.

    Attributes:
        name: shown in the rows.
        prepare: makes the pass for a batch size.
        macs: its multiply-adds over those of the reference arm, where that is known.
        about: what a reader wants to know besides the name, e.g. the keep rate; columns of the table.
    """

    name: str
    prepare: Callable[[int], Pass]
    macs: float | None = None
    about: Mapping[str, Cell] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Row:
    """An arm at a batch size.

    Attributes:
        arm: its name.
        about: see `Arm`.
        runtime: what ran it.
        batch: images in a pass.
        median_ms: time of a pass.
        p10_ms: tenth percentile.
        p90_ms: ninetieth percentile.
        passes: number of timed passes.
        images_per_s: at the median.
        ratio: median time over that of the reference arm.
        ratio_ci95: its bootstrap interval.
        mac_ratio: what the multiply-adds predict for it.
        peak_mb: peak memory of a pass, weights included; on CUDA only.
        precision: autocast type.
        device: its type.
        threads: number of torch's threads.
    """

    arm: str
    about: Mapping[str, Cell]
    runtime: str
    batch: int
    median_ms: float
    p10_ms: float
    p90_ms: float
    passes: int
    images_per_s: float
    ratio: float
    ratio_ci95: tuple[float, float]
    mac_ratio: float | None
    peak_mb: float | None
    precision: str
    device: str
    threads: int

    @property
    def speedup(self) -> float:
        """How many times as fast as the reference arm it is."""
        return 1 / self.ratio

    @property
    def speedup_ci95(self) -> tuple[float, float]:
        """Interval of the speed-up."""
        low, high = self.ratio_ci95
        return 1 / high, 1 / low

    def to_dict(self) -> dict[str, Any]:
        """For a report."""
        return dataclasses.asdict(self) | {"about": dict(self.about), "ratio_ci95": list(self.ratio_ci95)}


def rows_from(found: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Rows as a report or a phase stores them."""
    return [Row(**{**row, "ratio_ci95": tuple(row["ratio_ci95"])}) for row in found]


# --- measuring -------------------------------------------------------------------------------------------------------


def compare(
    arms: Sequence[Arm],
    batches: Sequence[int],
    run: Run,
    *,
    precision: str = "fp32",
    seconds: float | None = None,
    runtime: str = TORCH,
    device: torch.device | None = None,
) -> list[Row]:
    """Time arms in turn, on the first process alone.

    Args:
        arms: the first one is the reference.
        batches: batch sizes.
        run: progress, warnings and stop requests.
        precision: autocast type of the passes.
        seconds: limit for each arm and batch size (default: the protocol's).
        runtime: what runs them, for the rows.
        device: where to time; default: the device of the run.

    Returns:
        A row for each arm and batch size that fits in memory, on every process.
    """
    rows: list[Row] = []
    device = device or run.device
    if distributed.is_main():
        with distributed.solo(), run.progress(f"latency, {runtime}", len(batches)) as progress:
            for done, batch in enumerate(batches, 1):
                try:
                    rows += _at_batch(arms, batch, precision, seconds, runtime, device)
                except (torch.OutOfMemoryError, RuntimeError) as error:
                    if not is_out_of_memory(error):
                        raise
                    run.warn(f"latency at batch {batch} left out: out of memory")
                progress.update(done)
                if run.stop_signal():
                    break
    distributed.barrier_max(0)  # the others may wait long
    run.check_stop()
    return rows_from(distributed.broadcast_json([row.to_dict() for row in rows]))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on a device or on the machine, whose allocator raises no class of its own."""
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)


def noise(
    size: tuple[int, int], device: torch.device, layout: torch.memory_format = torch.contiguous_format
) -> Callable[[int], Tensor]:
    """Normal images (batch, 3, H, W) on a device, the same for all arms of a comparison; the last batch is kept."""

    @functools.lru_cache(1)
    def images(batch: int) -> Tensor:
        drawn = torch.randn(batch, 3, *size, generator=seeds.generator(0, "noise"))
        return drawn.to(device, memory_format=layout)

    return images


def timed(
    functions: Mapping[str, Pass], device: torch.device, *, seconds: float | None = None, passes: int | None = None
) -> dict[str, Latency]:
    """Time functions in turn, so that a drift of the machine's speed affects all alike; see the protocol above.

    Every process of the group makes as many passes, so that the functions may talk to each other.

    Args:
        functions: by name.
        device: synchronised before and after each pass.
        seconds: limit for each function (default: the protocol's).
        passes: limit for each function, likewise.
    """
    spent: dict[str, list[float]] = {name: [] for name in functions}
    longest, most = 1000 * (SECONDS if seconds is None else seconds), passes or MAX_PASSES
    with torch.inference_mode():
        for _ in range(WARM_UPS):
            for function in functions.values():
                function()
        while distributed.all_reduce_max(int(not all(_enough(samples, longest, most) for samples in spent.values()))):
            for name, function in functions.items():
                spent[name].append(_one_pass(function, device))
    return {name: Latency(tuple(samples)) for name, samples in spent.items()}


def _enough(samples: Sequence[float], longest: float, most: int) -> bool:
    return len(samples) >= min(MIN_PASSES, most) and (len(samples) >= most or sum(samples) >= longest)


def _one_pass(function: Pass, device: torch.device) -> float:
    _synchronise(device)
    started = time.perf_counter()
    function()
    _synchronise(device)
    return 1000 * (time.perf_counter() - started)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak_mb(function: Pass, device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    torch.cuda.reset_peak_memory_stats(device)
    with torch.inference_mode():
        function()
    return torch.cuda.max_memory_allocated(device) / 2**20


def ratio(slow: Latency, fast: Latency) -> Ratio:
    """Median of `slow` over median of `fast`; passes made in the same turn are resampled together."""
    pairs = np.array(list(zip(slow.samples, fast.samples, strict=False)))
    picks = np.random.default_rng(0).integers(0, len(pairs), (DRAWS, len(pairs)))
    medians = np.median(pairs[picks], axis=1)
    low, high = np.percentile(medians[:, 0] / medians[:, 1], [2.5, 97.5])
    return Ratio(slow.median_ms / fast.median_ms, float(low), float(high))


def _at_batch(
    arms: Sequence[Arm], batch: int, precision: str, seconds: float | None, runtime: str, device: torch.device
) -> list[Row]:
    passes = {arm.name: arm.prepare(batch) for arm in arms}
    with autocast(device, precision):
        peaks = {name: _peak_mb(function, device) for name, function in passes.items()}
        found = timed(passes, device, seconds=seconds)
    first, rows = arms[0], []
    for arm in arms:
        latency = found[arm.name]
        share = ratio(latency, found[first.name])
        rows.append(
            Row(
                arm=arm.name,
                about=arm.about,
                runtime=runtime,
                batch=batch,
                median_ms=latency.median_ms,
                p10_ms=latency.p10_ms,
                p90_ms=latency.p90_ms,
                passes=len(latency.samples),
                images_per_s=1000 * batch / latency.median_ms,
                ratio=share.value,
                ratio_ci95=(share.low, share.high),
                mac_ratio=1.0 if arm is first else arm.macs,
                peak_mb=peaks[arm.name],
                precision=precision,
                device=device.type,
                threads=torch.get_num_threads(),
            )
        )
    return rows


# --- showing ---------------------------------------------------------------------------------------------------------


def table(report: Report) -> Table:
    """The rows of a report's `technique.bench`."""
    rows = rows_from(report.technique["bench"])
    about = list(dict.fromkeys(key for row in rows for key in row.about))
    columns = (
        *("arm", *about, "runtime", "batch", "ms", "p10-p90", "images/s", "speed-up", "95 %"),
        *("MACs say", "measured / MACs"),
    )
    title = f"{report.command}: {report.model.name if report.model else ''}"
    if not rows:
        return Table(title, columns, (), ("nothing fitted in memory",))
    threads = f"{rows[0].precision} on {rows[0].device}, threads: {rows[0].threads}"
    return Table(title, columns, tuple(_cells(row, about) for row in rows), (threads,))


def _cells(row: Row, about: Sequence[str]) -> tuple[Cell, ...]:
    return (
        row.arm,
        *(row.about.get(key) for key in about),
        row.runtime,
        row.batch,
        f"{row.median_ms:.2f}",
        f"{row.p10_ms:.2f}-{row.p90_ms:.2f}",
        f"{row.images_per_s:.0f}",
        times(row.speedup),
        span(row.speedup_ci95),
        times(1 / row.mac_ratio) if row.mac_ratio else None,
        f"{row.speedup * row.mac_ratio:.2f}" if row.mac_ratio else None,
    )


def span(bounds: tuple[float, float]) -> str:
    """An interval, e.g. "0.98-1.07"."""
    return "-".join(f"{bound:.2f}" for bound in bounds)


def described(rows: Sequence[Row]) -> str:
    """Speed-ups of some rows with their intervals, on one line."""
    return ", ".join(f"{times(row.speedup)} ({span(row.speedup_ci95)}) at batch {row.batch}" for row in rows)


def record(run: Run, rows: Sequence[Row]) -> None:
    """Put a comparison into the report, and its picture beside it."""
    run.report.technique["bench"] = [row.to_dict() for row in rows]
    if rows:
        bars(run, rows)


def bars(run: Run, rows: Sequence[Row]) -> None:
    """`plots/latency.png`: measured speed-ups over the first arm beside what the multiply-adds say."""
    shown = [row for row in rows if row.arm != rows[0].arm and row.mac_ratio]
    if not shown:
        return
    one, runtimes = len({row.arm for row in shown}) == 1, {row.runtime for row in shown}
    labels = []
    for row in shown:
        parts = ("" if one else row.arm, f"batch {row.batch}", row.runtime if len(runtimes) > 1 else "")
        labels.append("\n".join(part for part in parts if part))
    spread = [(row.speedup - row.speedup_ci95[0], row.speedup_ci95[1] - row.speedup) for row in shown]
    run.plot(
        "latency",
        plots.paired_bars,
        labels,
        {
            "measured": [row.speedup for row in shown],
            "by multiply-adds": [1 / row.mac_ratio for row in shown if row.mac_ratio],
        },
        title=f"Speed-up over {rows[0].arm} on {rows[0].device} (threads: {rows[0].threads})",
        ylabel=f"time of {rows[0].arm} / time",
        errors={"measured": [(max(0.0, low), max(0.0, high)) for low, high in spread]},
        level=1.0,
    )
