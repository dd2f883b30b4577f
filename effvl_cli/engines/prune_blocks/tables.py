"""The printed tables of prune-blocks, made from a report alone."""

from collections.abc import Mapping, Sequence
from typing import Any

from effvl_cli.core import bench
from effvl_cli.core.metrics import binomial_error
from effvl_cli.core.report import Report
from effvl_cli.core.table import Cell, Table, percent, points, times
from effvl_cli.techniques.prune_blocks.step_row import treatment_of

STEPS = ("step", "removed", "params", "- %", "MMACs", "- %", "test top-1 %", "± SE", "scoring top-1 %")
TREATED = STEPS.index("± SE")  # position of the accuracy after a treatment, if there was one
UNITS = ("index", "unit", "stage", "shortcut", "params", "MMACs")
SCORES = ("index", "unit", "importance", "95 %", "loss", "95 %", "tied", "images")


def steps(report: Report) -> Table:
    """A row for the original network and for each step."""
    technique, metrics = report.technique, report.metrics
    treatment, n = (
        treatment_of([row.get("treatment", "fine-tuned") for row in technique["steps"]]),
        metrics["top1_baseline"].n,
    )
    columns = (*STEPS[:TREATED], *([treatment] if treatment else []), *STEPS[TREATED:])
    rows: list[tuple[Cell, ...]] = []
    for row in technique["steps"]:
        names = ", ".join(removal["original_path"] for removal in row["removed"])
        rows.append(
            (
                row["k"],
                names + (" (taken back)" if row.get("rejected") else ""),
                f"{row['params']:,}",
                percent(row["params_removed"]),
                f"{row['macs'] / 1e6:.1f}",
                percent(row["macs_removed"]),
                percent(row["top1_test_before_ft"]),
                *([percent(row["top1_test_after_ft"])] if treatment else []),
                percent(binomial_error(row["top1_test_after_ft"], n), 2),
                percent(row["top1_score_after_ft"]),
            )
        )
    title = f"{_leak(report)}prune-blocks: {report.model.name if report.model else ''} on {report.data[0].name}"
    before, after = metrics["top1_baseline"].value, metrics["top1_pruned"].value
    change = points(after - before) if before is not None and after is not None else None
    notes = [
        f"top-1 {_with_error(before, n)} % before, {_with_error(after, n)} % at the end ({change} points), n = {n}",
        f"parameters - {percent(metrics['params_removed'].value)} %, multiply-adds - "
        f"{percent(metrics['macs_removed'].value)} %, latency at batch 1 {_latency(report)}",
        f"FLOPs are twice the multiply-adds: {2 * (metrics['macs_pruned'].value or 0) / 1e6:.1f} M at the end",
        _scoring(report),
        f"stopped: {technique['stopped'].replace('_', ' ')}",
    ]
    return Table(title, columns, tuple(rows), tuple(note for note in notes if note))


def _with_error(value: float | None, n: int | None) -> str:
    error = percent(binomial_error(value, n), 1)
    return f"{percent(value)}" + (f" ± {error}" if error else "")


def _latency(report: Report) -> str:
    """Time of one image over the original's, with its interval."""
    rows = [row for row in bench.rows_from(report.technique["bench"]) if row.batch == 1]
    return f"{times(rows[-1].ratio)} ({bench.span(rows[-1].ratio_ci95)})" if rows else "not measured"


def _leak(report: Report) -> str:
    return "LEAKED, no result: " if report.technique.get("leak") else ""


def _scoring(report: Report) -> str:
    speedup, model = report.metrics.get("scoring_speedup"), report.technique.get("cost_model")
    if speedup is None or speedup.value is None or not model:
        return ""
    equal = "bit-equal to" if report.metrics["scoring_bit_equal"].value else "NOT equal to"
    return f"scoring {times(speedup.value)} as fast as naive ({times(model['ratio'])} by multiply-adds), {equal} it"


def units(name: str, described: Mapping[str, Any]) -> Table:
    """Table of what can be removed, and the cost of scoring."""
    rows = tuple(
        (u["index"], u["path"], u["stage"], u["shortcut"], f"{u['params']:,}", f"{u['macs'] / 1e6:.2f}")
        for u in described["valid_units"]
    )
    costs = {"unit": described["cost_model"], "pair": described.get("cost_of_pairs")}
    notes = [f"{len(rows)} removable, {len(described['rejected'])} rejected"] + [
        f"scoring each {what}, for one image: {cost['naive_macs'] / 1e6:.1f} MMACs naively, "
        f"{cost['cached_macs'] / 1e6:.1f} shared ({times(cost['ratio'])})"
        for what, cost in costs.items()
        if cost
    ]
    return Table(f"blocks of {name}", UNITS, rows, tuple(notes))


def scores(report: Report) -> Table:
    """Importance of each unit, in the order of removal."""
    technique = report.technique
    found: Sequence[Mapping[str, Any]] = technique["importance"]
    rows = tuple(_score(index, found[index], technique["metric"]) for index in technique["order"])
    title = f"{_leak(report)}importance by {technique['criterion']}: {report.model.name if report.model else ''}"
    return Table(title, SCORES, rows, ("the first row would be removed first",))


def _score(index: int, row: Mapping[str, Any], metric: str) -> tuple[Cell, ...]:
    if row["impact_acc"] is None:
        value = row["importance"]
        return (index, row["path_original"], None if value is None else f"{value:.4g}", *[None] * 5)
    low, high = row["ci95"]
    loss, of_loss = row["impact_loss"], row.get("ci95_loss")
    return (
        index,
        row["path_original"],
        points(row["impact_acc"], 2),
        f"{100 * low:+.2f} to {100 * high:+.2f}",
        None if loss is None else f"{loss:+.4f}",
        None if of_loss is None else f"{of_loss[0]:+.4f} to {of_loss[1]:+.4f}",
        "yes" if row["tied_with_best"] else "",
        row["n_used"],
    )
