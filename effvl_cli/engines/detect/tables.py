"""The printed tables of the job, of `train` and of `eval`, made from a report alone."""

from collections.abc import Mapping
from typing import Any

from effvl_cli.core.report import Report
from effvl_cli.core.table import Cell, Table, percent, points

COLUMNS = ("what", "AP %", "AP50 %", "AP75 %", "day AP %", "night AP %", "day - night", "boxes", "steps", "CPU s")


def results(report: Report) -> Table:
    """A row for each arm, and one for each class of the last one."""
    about = report.technique
    rows = [_arm(name, arm) for name, arm in about.get("arms", {}).items()]
    rows += [_class(name, found) for name, found in about.get("per_class", {}).items()]
    return Table(_title(report), COLUMNS, tuple(rows), _notes(report))


def _title(report: Report) -> str:
    data = " ".join(dict.fromkeys(row.name for row in report.data))
    model = report.model.name if report.model else ""
    return f"{report.command}: {model} on {data}, {report.technique.get('split', '')} images"


def _arm(name: str, arm: Mapping[str, Any]) -> tuple[Cell, ...]:
    figures = arm["figures"]
    shown = [percent(figures.get(key)) for key in ("ap", "ap50", "ap75", "ap_day", "ap_night")]
    seconds = arm.get("cpu_s")
    return (
        name,
        *shown,
        _gap(figures),
        arm.get("n_gt"),
        arm.get("steps"),
        None if seconds is None else f"{seconds:.0f}",
    )


def _class(name: str, found: Mapping[str, Any]) -> tuple[Cell, ...]:
    shown = [percent(found.get(key)) for key in ("ap", "ap50", "ap75", "ap_day", "ap_night")]
    return (f"  {name}", *shown, _gap(found), found.get("n_gt"), None, None)


def _gap(found: Mapping[str, Any]) -> str | None:
    day, night = found.get("ap_day"), found.get("ap_night")
    return None if day is None or night is None else points(day - night)


def _notes(report: Report) -> tuple[str, ...]:
    notes = []
    figure = report.metrics.get("ap50")
    if figure is not None and figure.se is not None:
        notes.append(f"standard error of AP50 over images: {percent(figure.se)}")
    few = [
        name for name, found in report.technique.get("per_class", {}).items() if 0 < found.get("n_gt", 0) < FEW_BOXES
    ]
    if few:
        notes.append(f"fewer than {FEW_BOXES} boxes, not to be read: {', '.join(few)}")
    return tuple(notes)


FEW_BOXES = 30
