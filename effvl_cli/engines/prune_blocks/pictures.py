"""Pictures of a run of prune-blocks."""

from collections.abc import Mapping, Sequence
from typing import Any

from effvl_cli.core import plots
from effvl_cli.core.metrics import binomial_error
from effvl_cli.core.run import Run
from effvl_cli.techniques.prune_blocks.pareto import ParetoPoint
from effvl_cli.techniques.prune_blocks.step_row import StepRow, treatment_of

MOST_SHOWN = 60  # units


def importance(run: Run, rows: Sequence[Mapping[str, Any]], criterion: str, marked: Sequence[str]) -> None:
    """Draw the cost in accuracy of removing each unit, with 95 % intervals where they are known."""
    if not rows:
        return
    measured = rows[0]["impact_acc"] is not None
    known = [row for row in rows if row["importance"] is not None]
    least = sorted(known, key=lambda row: row["importance"])[:MOST_SHOWN]
    values = {}
    for row in (row for row in known if row in least):
        if measured:
            values[row["path_original"]] = tuple(100 * v for v in (row["impact_acc"], *row["ci95"]))
        else:
            values[row["path_original"]] = (row["importance"],) * 3
    run.plot(
        "importance",
        plots.intervals,
        values,
        title="Importance of each block",
        xlabel="points of top-1 lost without it, 95 % interval" if measured else criterion,
        marked=marked,
    )


def along_steps(run: Run, steps: Sequence[StepRow], before: float, after: float, n: int) -> None:
    """Draw test top-1 on n images before and after the treatment of each step, from original network to result."""
    if not steps:
        return

    def point(k: float, top1: float) -> plots.Point:
        return float(k), 100 * top1, 100 * (binomial_error(top1, n) or 0.0)

    treatment = treatment_of([row.treatment for row in steps])
    start, series = point(0, before), {}
    if treatment:
        series[treatment] = [start, *(point(row.k, row.top1_test_after_ft) for row in steps)]
    series["just removed"] = [start, *(point(row.k, row.top1_test_before_ft) for row in steps)]
    kept = [row for row in steps if not row.rejected]
    if kept and after != kept[-1].top1_test_after_ft:
        series["after the final fine-tuning"] = [point(kept[-1].k, after)]
    ylabel = f"test top-1 %  (bars: SE, {n} images)"
    run.plot("accuracy", plots.curves, series, title="Accuracy along the steps", xlabel="step", ylabel=ylabel)


def pareto(run: Run, points: Sequence[ParetoPoint], n: int | None) -> None:
    """Accuracy on n images against parameters, multiply-adds and latency, with the intervals of both."""
    costs: dict[str, list[tuple[float | None, ...]]] = {
        "million parameters": [(point.params / 1e6,) * 3 for point in points],
        "million multiply-adds": [(point.macs / 1e6,) * 3 for point in points],
        "ms at batch 1, torch": [(p.latency_torch, p.latency_torch_low, p.latency_torch_high) for p in points],
        "ms at batch 1, onnxruntime": [(p.latency_ort, p.latency_ort_low, p.latency_ort_high) for p in points],
    }
    panels: dict[str, list[plots.Costed]] = {}
    for label, places in costs.items():
        for point, (cost, low, high) in zip(points, places, strict=True):
            if cost is not None and low is not None and high is not None:
                error = 100 * (binomial_error(point.top1, n) or 0.0)
                found = plots.Costed(cost, 100 * point.top1, str(point.step), error, (low, high))
                panels.setdefault(label, []).append(found)
    run.plot(
        "pareto",
        plots.fronts,
        panels,
        title="Cost and accuracy of each step (0: the original network; final: after further training)",
        ylabel=f"test top-1 %  (bars: SE, {n} images)" if n else "test top-1 %",
    )
