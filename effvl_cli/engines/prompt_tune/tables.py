"""The printed tables of prompt-tune, made from a report alone."""

import math
from typing import Any

from effvl_cli.core.report import Report
from effvl_cli.core.table import Cell, Table, percent, points

COLUMNS = ("method", "noise", "top-1 %", "SE", "± zero-shot", "SE", "top-5 %", "macro %", "F1 %", "ECE %", "learned")


def results(report: Report) -> Table:
    """A row for each method and noise rate."""
    rows = report.technique.get("results", [])
    name = report.model.name if report.model else ""
    data = next((row.name for row in report.data if row.split == "test"), "")
    notes = (*_pseudo(report.technique.get("pseudo")), *_notes(rows))
    return Table(f"{report.command}: {name} on {data}", COLUMNS, tuple(_cells(row) for row in rows), notes)


def _pseudo(found: dict[str, Any] | None) -> tuple[str, ...]:
    """How good the pseudo-labels are, where there are any."""
    if found is None:
        return ()
    right = "how many are right is not known" if found["acc"] is None else f"{percent(found['acc'])} % are right"
    return (f"pseudo-labels: {found['n']} images by {found['select']}, {right}",)


def _cells(row: dict[str, Any]) -> tuple[Cell, ...]:
    is_reference = row["method"] == "zero-shot"
    return (
        title_of(row),
        None if row["rate"] is None else f"{row['rate']:g}",
        percent(row["top1"]),
        percent(row["se"], 2),
        None if is_reference else points(row["delta"]),
        None if is_reference else percent(row["delta_se"], 2),
        percent(row["top5"]),
        percent(row["macro_acc"]),
        percent(row["macro_f1"]),
        percent(row["ece15"]),
        percent(row["memorisation"]["train_acc_given_on_flipped"]),
    )


def title_of(row: dict[str, Any]) -> str:
    """A method as readers name it."""
    return " + ".join(filter(None, (row["method"], row["loss"])))


def _notes(rows: list[dict[str, Any]]) -> tuple[str, ...]:
    notes = []
    if any(row["memorisation"]["train_acc_given_on_flipped"] is not None for row in rows):
        notes.append("learned: training images with a wrong label that are predicted as they are labelled")
    notes += [_penalty(row) for row in rows if row["about"].get("tried")]
    worse = [f"{title_of(row)}{_at(row)}" for row in rows if row["method"] != "zero-shot" and row["delta"] <= 0]
    if worse:
        notes.append(f"no better than zero-shot: {', '.join(worse)}")
    return tuple(notes)


def _at(row: dict[str, Any]) -> str:
    """At which share of wrong labels, where it is known."""
    return "" if row["rate"] is None else f" at {row['rate']:g}"


def _penalty(row: dict[str, Any]) -> str:
    """What a sweep of penalties has chosen, and from what."""
    tried, chosen = row["about"]["tried"], row["about"]["c"]
    values = [found["top1_val"] for found in tried]
    best = next(found["top1_val"] for found in tried if math.isclose(found["c"], chosen, rel_tol=1e-5))
    return (
        f"{title_of(row)}{_at(row)}: C = {chosen:.3g}, {100 * best:.1f} % of the validation images; "
        f"{len(tried)} tried, {100 * min(values):.1f} to {100 * max(values):.1f} %"
    )
