"""Tables of a run of continual."""

from collections.abc import Mapping
from typing import Any

from effvl_cli.core.report import Report
from effvl_cli.core.table import Cell, Table, counted, percent, points, times

COLUMNS = {
    "individual_test_acc": "alone %",
    "individual_matched_test_acc": "alone, as long %",
    "finetune_test_acc": "fine-tuned %",
}
LATER = "tasks as this run left them: `effvl continual inspect RUN` lists those of its state/ now, added ones included"


def tasks(report: Report) -> Table:
    """One row a task: goal, width, released share, accuracies."""
    technique = report.technique
    rows: list[Mapping[str, Any]] = technique["tasks"]
    shown = [name for name in COLUMNS if any(name in row for row in rows)]
    owning = technique["method"] not in ("individual", "finetune")
    columns: tuple[str, ...] = ("task", "classes", "test %")
    if owning:
        columns = ("task", "classes", "goal %", "width", "released %", "own %", "picked %", "val %", "test %")
    final = technique["R"][-1]
    cells = tuple(
        (*_row(row, value, owning=owning), *(percent(row.get(name)) for name in shown))
        for row, value in zip(rows, final, strict=True)
    )
    title = (
        f"continual {technique['method']}: {report.model.name if report.model else ''}, {counted(len(rows), 'task')}"
    )
    return Table(title, (*columns, *(COLUMNS[name] for name in shown)), cells, tuple(_notes(report)))


def _row(row: Mapping[str, Any], final: float, *, owning: bool) -> tuple[Cell, ...]:
    if not owning:
        return row["name"], len(row["classes"]), percent(final)
    return (
        row["name"],
        len(row["classes"]),
        percent(row["goal"]["value"]),
        f"{row['width_at_commit']:g}",
        percent(row["ratio_chosen"], 0),
        percent(row["own_fraction"], 0),
        percent(row["picked_fraction"], 0),
        percent(row["val_acc"]),
        percent(final),
    )


def _notes(report: Report) -> list[str]:
    metrics = {name: metric.value for name, metric in report.metrics.items()}
    moved = "" if metrics["bwt"] is None else f", backward transfer {points(metrics['bwt'])} points"
    notes = [f"mean of the final test accuracies {percent(metrics['avg_acc'])} %{moved}"]
    compared = {
        "individual_avg_acc": "networks of one task alone",
        "individual_matched_avg_acc": "the same, trained as long as the tasks were",
        "finetune_avg_acc": "one network fine-tuned from task to task",
    }
    notes += [f"{text}: {percent(metrics[name])} %" for name, text in compared.items() if name in metrics]
    if metrics.get("finetune_bwt") is not None:
        notes[-1] += f", backward transfer {points(metrics['finetune_bwt'])} points"
    if metrics.get("expansion_factor") is not None:
        text = f"{times(metrics['expansion_factor'])} the weights of one network"
        if metrics.get("total_bytes_factor") is not None:
            text += f", {times(metrics['total_bytes_factor'])} its bytes"
        if metrics.get("free_fraction") is not None:
            text += f"; {percent(metrics['free_fraction'])} % of the weights are free"
        notes.append(text)
    if metrics.get("tensor_digest_equal") is not None:
        logits = metrics.get("logits_equal")
        said = "unchanged" if metrics["tensor_digest_equal"] == 1 and logits != 0 else "NOT unchanged"
        what = "tensors" if logits is None else "tensors and logits"
        notes.append(f"{what} of every earlier task after each later one: {said}")
        if logits is None:
            notes.append("no logits were compared: they were committed with another torch, device or number of threads")
    if report.technique["storage"]:
        notes.append(LATER)
    if report.technique["selection_split"] == "test":
        notes.append("W-SELECT-ON-TEST: goals, growth and ratios were decided on the test images")
    return notes
