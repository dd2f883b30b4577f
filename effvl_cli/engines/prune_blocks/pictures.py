"""Pictures of a run of prune-blocks."""

from collections.abc import Mapping, Sequence
from typing import Any

from effvl_cli.core import distributed, plots
from effvl_cli.core.run import Run
from effvl_cli.engines.prune_blocks.latency import ORIGINAL

MOST_SHOWN = 60  # units
TIMED_BATCH = 1


def importance(run: Run, rows: Sequence[Mapping[str, Any]], criterion: str, marked: Sequence[str]) -> None:
    """What the removal of each unit costs, with 95 % intervals where they are known."""
    if not distributed.is_main() or not rows:
        return
    measured = rows[0]["impact_acc"] is not None
    values = {}
    for row in rows[:MOST_SHOWN]:
        if measured:
            values[row["path_original"]] = tuple(100 * v for v in (row["impact_acc"], *row["ci95"]))
        else:
            values[row["path_original"]] = (row["importance"],) * 3
    path = run.folder / "plots" / "importance.png"
    plots.intervals(
        path,
        values,
        title="Importance of each block",
        xlabel="points of top-1 lost without it, 95 % interval" if measured else criterion,
        marked=marked,
    )
    run.report.artifact(path, run.folder)


def along_steps(run: Run, steps: Sequence[Mapping[str, Any]], baseline: Mapping[str, Any]) -> None:
    """Accuracy before and after fine-tuning, at each step."""
    if not distributed.is_main() or not steps:
        return
    first = [(0.0, 100 * baseline["test"]["top1"], 0.0)]
    series = {
        name: first + [(float(row["k"]), 100 * row[key], 0.0) for row in steps]
        for name, key in (("fine-tuned", "top1_test_after_ft"), ("just removed", "top1_test_before_ft"))
    }
    path = run.folder / "plots" / "accuracy.png"
    plots.curves(path, series, title="Accuracy along the steps", xlabel="step", ylabel="test top-1 %")
    run.report.artifact(path, run.folder)


def pareto_points(
    steps: Sequence[Mapping[str, Any]],
    baseline: Mapping[str, Any],
    original: Mapping[str, int],
    bench: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """A row for the original network and for each step: cost and accuracy; None where nothing was measured."""

    def latency(name: str, runtime: str) -> float | None:
        found = (r["median_ms"] for r in bench if (r["network"], r["runtime"]) == (name, runtime) and r["batch"] == 1)
        return next(found, None)

    rows = [{"step": 0, **original, "top1": baseline["test"]["top1"]}]
    rows += [
        {
            "step": row["removed"][0]["step"],
            "params": row["params"],
            "macs": row["macs"],
            "top1": row["top1_test_after_ft"],
        }
        for row in steps
        if not row.get("rejected")
    ]
    for row in rows:
        name = f"step {row['step']}" if row["step"] else ORIGINAL
        row |= {
            f"latency_{short}": latency(name, runtime)
            for short, runtime in (("torch", "torch"), ("ort", "onnxruntime"))
        }
    return rows


def pareto(run: Run, rows: Sequence[Mapping[str, Any]]) -> None:
    """Accuracy against parameters, multiply-adds and latency."""
    if not distributed.is_main():
        return
    costs = {
        "million parameters": ("params", 1e6),
        "million multiply-adds": ("macs", 1e6),
        "ms at batch 1, torch": ("latency_torch", 1.0),
        "ms at batch 1, onnxruntime": ("latency_ort", 1.0),
    }
    points = {
        label: [(row[key] / unit, 100 * row["top1"], str(row["step"])) for row in rows if row[key] is not None]
        for label, (key, unit) in costs.items()
    }
    path = run.folder / "plots" / "pareto.png"
    plots.fronts(
        path,
        {label: found for label, found in points.items() if found},
        title="Cost and accuracy of each step (0: the original network)",
        ylabel="test top-1 %",
    )
    run.report.artifact(path, run.folder)
