"""Pictures of a run of prune-blocks."""

from collections.abc import Mapping, Sequence
from typing import Any

from effvl_cli.core import plots
from effvl_cli.core.metrics import binomial_error
from effvl_cli.core.run import Run
from effvl_cli.engines.prune_blocks.tables import treatment_of

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


def along_steps(run: Run, steps: Sequence[Mapping[str, Any]], before: float, after: float, n: int) -> None:
    """Draw test top-1 on n images before and after the treatment of each step, from original network to result."""
    if not steps:
        return

    def point(k: float, top1: float) -> plots.Point:
        return float(k), 100 * top1, 100 * (binomial_error(top1, n) or 0.0)

    treatment = treatment_of(steps)
    shown = {treatment: "top1_test_after_ft"} if treatment else {}
    series = {
        name: [point(0, before), *(point(row["k"], row[key]) for row in steps)]
        for name, key in (shown | {"just removed": "top1_test_before_ft"}).items()
    }
    kept = [row for row in steps if not row.get("rejected")]
    if kept and after != kept[-1]["top1_test_after_ft"]:
        series["after the final fine-tuning"] = [point(kept[-1]["k"], after)]
    ylabel = f"test top-1 %  (bars: SE, {n} images)"
    run.plot("accuracy", plots.curves, series, title="Accuracy along the steps", xlabel="step", ylabel=ylabel)


def pareto(run: Run, rows: Sequence[Mapping[str, Any]], n: int | None) -> None:
    """Accuracy on n images against parameters, multiply-adds and latency."""
    costs = {
        "million parameters": ("params", 1e6),
        "million multiply-adds": ("macs", 1e6),
        "ms at batch 1, torch": ("latency_torch", 1.0),
        "ms at batch 1, onnxruntime": ("latency_ort", 1.0),
    }
    points = {
        label: [
            (row[key] / unit, 100 * row["top1"], str(row["step"]), 100 * (binomial_error(row["top1"], n) or 0.0))
            for row in rows
            if row[key] is not None
        ]
        for label, (key, unit) in costs.items()
    }
    run.plot(
        "pareto",
        plots.fronts,
        {label: found for label, found in points.items() if found},
        title="Cost and accuracy of each step (0: the original network; final: after further training)",
        ylabel=f"test top-1 %  (bars: SE, {n} images)" if n else "test top-1 %",
    )
