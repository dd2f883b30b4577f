"""What the job and `apply` report: figures before and after, latency, pictures."""

from collections.abc import Sequence
from typing import Any

from effvl_cli.core import bench
from effvl_cli.core.phases import Phases
from effvl_cli.engines.prune_blocks import network_latency, pictures
from effvl_cli.engines.prune_blocks.context import Tuning
from effvl_cli.models.pruned_network import State
from effvl_cli.techniques.prune_blocks.pareto import pareto_points, with_latencies
from effvl_cli.techniques.prune_blocks.step_row import StepRow
from effvl_cli.techniques.prune_blocks.surgery import ORIGINAL, along_steps
from effvl_cli.techniques.prune_blocks.targets import Size

Figures = dict[str, dict[str, float]]


def record(
    context: Tuning, before: Figures, final: Figures, steps: Sequence[StepRow], original: Size, now: Size
) -> None:
    """Figures of the network before and after, on the test split."""
    report, n = context.run.report, len(context.test)
    for name in ("top1", "top5", "loss"):
        about = {"split": "test", "n": n} | ({"unit": "nats", "higher_is_better": False} if name == "loss" else {})
        report.metric(f"{name}_baseline", before["test"][name], **about)
        report.metric(f"{name}_pruned", final["test"][name], **about)
    kept = [step for step in steps if not step.rejected]
    for key in ("before_ft", "after_ft"):
        values: list[float] = [getattr(step, f"top1_test_{key}") for step in kept]
        report.metric(f"top1_{key}", values[-1] if values else None, split="test", n=n)
        report.metric(f"top1_{key}_mean", sum(values) / len(values) if values else None, split="test", n=n)
    report.metric("params_pruned", now.params, unit="parameters", higher_is_better=False)
    report.metric("params_removed", 1 - now.params / original.params)
    report.metric("macs_pruned", now.macs, unit="macs", higher_is_better=False)
    report.metric("macs_removed", 1 - now.macs / original.macs)


def time(context: Tuning, start: State, state: State, phases: Phases) -> list[bench.Row]:
    """Latency after each step at batch 1, and of the first and last network at another batch size."""
    networks = along_steps(context.module, state.removals[len(start.removals) :])
    last = list(networks)[-1]

    def timed() -> list[dict[str, Any]]:
        batch, arms = context.config.latency_batch_size, network_latency.arms(context, networks)
        rows = network_latency.compare(context, arms, [1])
        ends = [arm for arm in arms if arm.name in (ORIGINAL, last)]
        rows += network_latency.compare(context, ends, [batch]) if batch != 1 else []
        return [row.to_dict() for row in rows]

    rows = bench.rows_from(phases.timed("latency", timed))
    bench.record(context.run, rows)
    ratio = next((row.ratio for row in rows if row.arm == last and row.batch == 1), None)
    context.run.report.metric("latency_ratio", ratio, unit="ratio", higher_is_better=False)
    return rows


def draw(
    context: Tuning,
    before: Figures,
    final: Figures,
    steps: Sequence[StepRow],
    original: Size,
    rows: Sequence[bench.Row],
) -> None:
    """Draw accuracy along the steps, and against the cost of the network."""
    ends = before["test"]["top1"], final["test"]["top1"]
    pictures.along_steps(context.run, steps, *ends, len(context.test))
    points = with_latencies(pareto_points(steps, *ends, original), network_latency.by_network(rows))
    context.run.report.technique["pareto"] = [point.to_dict() for point in points]
    pictures.pareto(context.run, points, len(context.test))
