"""The printed tables of the job and of `train`, made from a report alone."""

from collections.abc import Mapping, Sequence
from typing import Any

from effvl_cli.core.report import Report
from effvl_cli.core.table import Cell, Table, percent

COLUMNS = ("what", "with", "R@1 %", "SE", "precision %", "recall, median class %", "R@1 same colours %")
ARMS = {"infonce": "InfoNCE", "coclr": "CoCLR, one view", "cpr": "CPR, cascade"}


def results(report: Report) -> Table:
    """A row for each arm, and one for each way of mining, before and after."""
    technique = report.technique
    rows = [_arm(report, arm, turns) for arm, turns in technique.get("arms", {}).items()]
    for when, mined in technique.get("mining", {}).items():
        rows += [_mined(row, when) for row in mined]
    return Table(f"{report.command}: {_name(report)}", COLUMNS, tuple(rows), _notes(report))


def _name(report: Report) -> str:
    model = report.model.name if report.model else ""
    data = report.data[0].name if report.data else ""
    return f"{model} on {data}"


def _arm(report: Report, arm: str, turns: Sequence[Mapping[str, Any]]) -> tuple[Cell, ...]:
    figure, colours = report.metrics.get(f"r1_{arm}"), report.metrics.get(f"same_palette_{arm}")
    found = turns[-1]["stages"] if turns else ""
    right = [row["mined_precision"] for row in turns[-1]["mined"]] if turns else []
    return (
        ARMS.get(arm, arm),
        found or None,
        percent(figure.value) if figure else None,
        percent(figure.se) if figure else None,
        percent(right[-1]) if right else None,
        None,
        percent(colours.value) if colours else None,
    )


def _mined(row: Mapping[str, Any], when: str) -> tuple[Cell, ...]:
    name = row["name"]
    title = f"mining {when}: {name.replace('_', ', main view ') if '_' in name else name}"
    return (
        title,
        row["stages"],
        None,
        None,
        percent(row["mean"]["precision"]),
        percent(row["median"]["recall"]),
        None,
    )


def _notes(report: Report) -> tuple[str, ...]:
    technique = report.technique
    notes = ["an arm's precision is that of the positives mined in training, from the queues, with the last k"]
    if technique.get("siblings") == "positive":
        notes.append("--siblings positive: older keys of a video and its siblings count as positives")
    if technique.get("mining"):
        notes.append("mining: over all training clips, in middle clips, with labels that it does not see")
    return tuple(notes)


def training(report: Report) -> Table:
    """A row for each training of `train`."""
    rows = []
    for turn in report.technique.get("turns", []):
        for mined in turn["mined"] or [None]:
            rows.append(
                (
                    turn["phase"],
                    ", ".join(turn["mined_with"]) or "none",
                    mined["k"] if mined else None,
                    turn["steps"],
                    percent(mined["mined_rows"]) if mined else None,
                    percent(mined["mined_precision"]) if mined else None,
                    f"{turn['images_per_s']:.1f}" if turn["images_per_s"] else None,
                    percent(turn["data_wait_fraction"]) if turn["data_wait_fraction"] is not None else None,
                )
            )
    columns = ("training", "mined with", "k", "steps", "rows mined %", "precision %", "clips/s", "waiting %")
    return Table(f"{report.command}: {_name(report)}", columns, tuple(rows))
