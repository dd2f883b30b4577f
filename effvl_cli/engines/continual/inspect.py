"""`effvl continual inspect`: what each task owns, picks and takes on disk, and what is free in each layer."""

from collections.abc import Mapping
from typing import Any

from effvl_cli.config.continual_verify import InspectConfig
from effvl_cli.core.report import Report
from effvl_cli.core.run import Run
from effvl_cli.core.table import Cell, Table, percent
from effvl_cli.engines.continual import pictures
from effvl_cli.engines.continual.open_state import open_state, run_of
from effvl_cli.engines.continual.state import STATE
from effvl_cli.engines.continual.storage import layer_rows, stored_bytes, task_rows


def run(config: InspectConfig, run: Run) -> None:
    """Count owners and picks; no image and no network is needed."""
    state, report = open_state(config), run.report
    tasks, layers = task_rows(state), layer_rows(state)
    total = sum(row["numel"] for row in layers)
    free = sum(row["free"] for row in layers)
    sizes = stored_bytes(run_of(config) / STATE, state)
    report.metric("free_fraction", free / total if total else None)
    report.metric("shared_weights", total, unit="count", higher_is_better=False)
    report.metric("total_bytes", sum(sizes.values()), unit="bytes", higher_is_better=False)
    report.technique |= {"model": state.model, "tasks": tasks, "layers": layers, "storage": sizes}
    report.technique["shown_layers"] = config.layers
    owners = {row["name"]: {str(k): n for k, n in enumerate((row["free"], *row["owned"]))} for row in layers}
    pictures.capacity(run, owners, [task.name for task in state.tasks])


def table(report: Report) -> Table:
    """Rows of tasks, then of layers."""
    found = report.technique
    tasks = tuple(
        (
            row["name"],
            f"{row['width']:g}",
            percent(row["ratio"]),
            percent(row["own_fraction"]),
            percent(row["picked_fraction"]),
            None,
            f"{row['bytes'] / 1e3:,.1f}",
        )
        for row in found["tasks"]
    )
    shown = found["layers"][: found["shown_layers"]]
    layers: tuple[tuple[Cell, ...], ...] = tuple(
        (
            row["name"],
            None,
            None,
            percent(1 - row["free"] / row["numel"]),
            None,
            percent(row["free"] / row["numel"]),
            None,
        )
        for row in shown
    )
    columns = ("task or layer", "width", "released %", "owned %", "picked % of older", "free %", "kB")
    left = len(found["layers"]) - len(shown)
    notes = [_sizes(found["storage"]), *([f"{left} more layers in report.json (--layers)"] if left else [])]
    return Table(f"{report.command}: {found['model']}", columns, (*tasks, *layers), tuple(notes))


def _sizes(storage: Mapping[str, Any]) -> str:
    parts = ", ".join(f"{name} {value / 1e3:,.1f}" for name, value in storage.items())
    return f"kB on disk: {sum(storage.values()) / 1e3:,.1f} ({parts})"
