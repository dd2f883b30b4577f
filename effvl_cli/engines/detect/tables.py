"""The printed tables of the job, of `train` and of `eval`, made from a report alone."""

from collections.abc import Mapping
from typing import Any

from effvl_cli.core.report import Report
from effvl_cli.core.table import Cell, Table, percent, points, shortened
from effvl_cli.engines.detect.near_duplicates import rule_text

FIGURES = ("ap", "ap50", "ap75", "ap_day", "ap_night")
COLUMNS = ("what", "AP %", "AP50 %", "AP75 %", "day AP %", "night AP %", "day - night", "boxes")
FEW_BOXES = 30  # of a class below which its figures are not read


def results(report: Report) -> Table:
    """A row for each arm, and one for each class of the last one."""
    about = report.technique
    arms = {"detector" if name == "train" else name: arm for name, arm in about.get("arms", {}).items()}
    rows = [(*_row(name, arm["figures"], arm["n_gt"]), *_cost(arm)) for name, arm in arms.items()]
    classes = about.get("per_class", {}).items()
    rows += [(*_row(f"  {name}", found, found["n_gt"]), None, None) for name, found in classes]
    return Table(_title(report), (*COLUMNS, "steps", "CPU s"), tuple(rows), _notes(report))


def evaluated(report: Report) -> Table:
    """A row for all images, one for each class and one for each part."""
    about = report.technique
    rows = [_row(name, arm["figures"], arm["n_gt"]) for name, arm in about.get("arms", {}).items()]
    rows += [_row(f"  {name}", found, found["n_gt"]) for name, found in about.get("per_class", {}).items()]
    rows += [_row(f"  {name}", found, found["n_gt"]) for name, found in about.get("per_part", {}).items()]
    return Table(_title(report), COLUMNS, tuple(rows), _notes(report))


def _title(report: Report) -> str:
    data = " ".join(dict.fromkeys(row.name for row in report.data))
    model = f"{report.model.name.partition(',')[0]} on " if report.model else ""
    return f"{report.command}: {model}{data}, {report.technique.get('split', '')} images"


def _row(name: str, found: Mapping[str, Any], boxes: int) -> tuple[Cell, ...]:
    day, night = found.get("ap_day"), found.get("ap_night")
    gap = None if day is None or night is None else points(day - night)
    return (shortened(name), *(percent(found.get(key)) for key in FIGURES), gap, boxes)


def _cost(arm: Mapping[str, Any]) -> tuple[Cell, Cell]:
    seconds = arm.get("cpu_s")
    return arm.get("steps"), None if seconds is None else f"{seconds:.0f}"


def _notes(report: Report) -> tuple[str, ...]:
    notes = []
    errors = [(name, report.metrics.get(name)) for name in ("ap", "ap50", "ap75")]
    known = [f"{name.upper()} {percent(metric.se)}" for name, metric in errors if metric and metric.se is not None]
    if known:
        notes.append(f"standard errors over images, in points: {', '.join(known)}")
    if (skipped := report.technique.get("dedup")) and "params" in skipped:
        rule = rule_text(skipped["params"])
        notes.append(f"{skipped['n_kept']} of {skipped['n_in']} training images are used; near-duplicates {rule}")
    classes = report.technique.get("per_class", {}).items()
    few = [name for name, found in classes if 0 < found["n_gt"] < FEW_BOXES]
    if few:
        notes.append(f"fewer than {FEW_BOXES} boxes, not to be read: {', '.join(few)}")
    return tuple(notes)
