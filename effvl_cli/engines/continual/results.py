"""What a run reports: accuracies after every task, forgetting, the controls, and what the state takes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from effvl_cli.core.metrics import binomial_error
from effvl_cli.core.report import ReportBuilder
from effvl_cli.engines.continual.committing import unchanged
from effvl_cli.engines.continual.context import Context, Job
from effvl_cli.engines.continual.materialised import materialised
from effvl_cli.engines.continual.state import State

Rows = list[list[float | None]]
"""Row i: accuracy of each task after task i was learned; None for those to come."""
GUARANTEED = ("cpg", "pae", "packnet")  # methods that forget nothing


@dataclass
class Outcome:
    """What a method did on a sequence of tasks.

    Attributes:
        accuracy: row i: test accuracy of each task after task i was learned; None for those to come.
        source: of the rows but the last: "evaluated", or "digest" where the tensors and logits were the same.
        tasks: figures of each task.
        sizes: expansion, bytes and free weights.
        checks: whether tensors and logits of earlier tasks were the same throughout.
        layers: weights of each tensor by owner, 0 being free.
    """

    accuracy: Rows
    source: str
    tasks: list[dict[str, Any]]
    sizes: dict[str, float | None] = field(default_factory=dict)
    checks: dict[str, float | None] = field(default_factory=dict)
    layers: dict[str, dict[str, int]] = field(default_factory=dict)


def report(context: Context, jobs: Sequence[Job], outcome: Outcome, controls: Mapping[str, Any]) -> None:
    """Record the metrics and everything else that the run knows."""
    builder, last = context.run.report, [float(value) for value in outcome.accuracy[-1] if value is not None]
    images = sum(row["n_test"] for row in outcome.tasks)
    mean = _average(outcome.accuracy)
    builder.metric("avg_acc", mean, unit="fraction", split="test", n=images, se=_error(last, outcome.tasks))
    builder.metric("bwt", _transfer(outcome.accuracy), unit="fraction", split="test")
    _controls(builder, outcome, controls)
    for name, value in outcome.sizes.items():
        unit = "fraction" if name == "free_fraction" else "ratio"
        builder.metric(name, value, unit=unit, higher_is_better=name in ("free_fraction", "redundancy"))
    for name, value in outcome.checks.items():
        builder.metric(name, value, unit="difference" if name == "max_abs_diff" else "boolean")
    forgotten = _forgotten(outcome.accuracy)
    for row, value in zip(outcome.tasks, forgotten, strict=True):
        row["forgetting"] = value
    builder.technique.update(
        method=context.config.method,
        selection_split=context.config.select_on,
        tasks=outcome.tasks,
        R=outcome.accuracy,
        R_source=outcome.source,
        fwt=None,
        controls=dict(controls),
        layers=outcome.layers,
    )


def _error(accuracies: Sequence[float], tasks: Sequence[Mapping[str, Any]]) -> float | None:
    """Standard error of the mean of accuracies on separate images."""
    errors = [binomial_error(value, row["n_test"]) or 0.0 for value, row in zip(accuracies, tasks, strict=True)]
    return float(sum(error**2 for error in errors) ** 0.5 / len(errors)) if errors else None


def _controls(builder: ReportBuilder, outcome: Outcome, controls: Mapping[str, Any]) -> None:
    for name in ("individual", "individual_matched"):
        if name in controls:
            values = controls[name]
            builder.metric(f"{name}_avg_acc", sum(values) / len(values), unit="fraction", split="test")
            for row, value in zip(outcome.tasks, values, strict=True):
                row[f"{name}_test_acc"] = value
    if "individual" in controls:
        gained = [row["test_acc"] - row["individual_test_acc"] for row in outcome.tasks]
        builder.metric("transfer_vs_individual", sum(gained) / len(gained), unit="fraction", split="test")
    if "finetune" in controls:
        rows = controls["finetune"]
        builder.metric("finetune_avg_acc", _average(rows), unit="fraction", split="test")
        builder.metric("finetune_bwt", _transfer(rows), unit="fraction", split="test")
        for row, value in zip(outcome.tasks, rows[-1], strict=True):
            row["finetune_test_acc"] = value


def of_state(context: Context, jobs: Sequence[Job], state: State) -> Outcome:
    """Accuracies and sizes of a state, each task's network made from it and measured once more."""
    rows, last = [dict(record.figures) for record in state.tasks], []
    for job, record in zip(jobs, state.tasks, strict=True):
        plain = materialised(state, record.id, context.run.device)
        last.append(context.accuracy.of(plain.module, job.data.test))
        del plain
    learned = [float(row["test_acc"]) for row in rows]
    count = len(rows)
    accuracy: Rows = [[*learned[: number + 1], *[None] * (count - number - 1)] for number in range(count)]
    accuracy[-1] = list(last)
    layers = {
        name: {str(owner): int(n) for owner, n in enumerate(torch.bincount(value.flatten().long()))}
        for name, value in state.owner.items()
    }
    checks: dict[str, float | None] = dict(unchanged(context, state))
    return Outcome(accuracy, "digest", rows, {}, checks, layers)


def _average(rows: Rows) -> float:
    last = [float(value) for value in rows[-1] if value is not None]
    return sum(last) / len(last)


def _transfer(rows: Rows) -> float:
    """Mean over the earlier tasks of the change since each was learned; 0 for a single task."""
    changes = [float(rows[-1][k] or 0.0) - float(rows[k][k] or 0.0) for k in range(len(rows) - 1)]
    return sum(changes) / len(changes) if changes else 0.0


def _forgotten(rows: Rows) -> list[float]:
    """For each task, its best accuracy at any time less the final one."""
    return [max(float(row[k] or 0.0) for row in rows[k:]) - float(rows[-1][k] or 0.0) for k in range(len(rows))]
