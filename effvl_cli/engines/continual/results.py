"""What a run reports: accuracies after every task, forgetting, the controls, and what the state takes."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from effvl_cli.core.report import ReportBuilder
from effvl_cli.engines.continual.accuracy import mean_error
from effvl_cli.engines.continual.context import Context, Job
from effvl_cli.engines.continual.digests import compared, figures
from effvl_cli.engines.continual.materialised import Materialised, materialised, probe_images
from effvl_cli.engines.continual.state import State
from effvl_cli.engines.continual.storage import stored_bytes
from effvl_cli.techniques.continual import accounting, tasknet

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
        storage: bytes on disk by what they hold.
    """

    accuracy: Rows
    source: str
    tasks: list[dict[str, Any]]
    sizes: dict[str, float | None] = field(default_factory=dict)
    checks: dict[str, float | None] = field(default_factory=dict)
    layers: dict[str, dict[str, int]] = field(default_factory=dict)
    storage: dict[str, int] = field(default_factory=dict)


def report(context: Context, outcome: Outcome, controls: Mapping[str, Any]) -> None:
    """Record the metrics and everything else that the run knows."""
    builder, last = context.run.report, [float(value) for value in outcome.accuracy[-1] if value is not None]
    images = [row["n_test"] for row in outcome.tasks]
    mean = accounting.average_accuracy(outcome.accuracy)
    builder.metric("avg_acc", mean, unit="fraction", split="test", n=sum(images), se=mean_error(last, images))
    builder.metric("bwt", accounting.backward_transfer(outcome.accuracy), unit="fraction", split="test")
    _controls(builder, outcome, controls)
    for name, value in outcome.sizes.items():
        unit = "fraction" if name == "free_fraction" else "ratio"
        builder.metric(name, value, unit=unit, higher_is_better=name in ("free_fraction", "redundancy"))
    for name, value in outcome.checks.items():
        difference = name == "max_abs_diff"
        unit = "difference" if difference else "boolean"
        builder.metric(name, value, unit=unit, higher_is_better=not difference)
    forgotten = accounting.forgetting(outcome.accuracy)
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
        storage=outcome.storage,
    )


def _controls(builder: ReportBuilder, outcome: Outcome, controls: Mapping[str, Any]) -> None:
    for name in ("individual", "individual_matched"):
        if name in controls:
            values = controls[name]
            builder.metric(f"{name}_avg_acc", sum(values) / len(values), unit="fraction", split="test")
            for row, value in zip(outcome.tasks[-len(values) :], values, strict=True):
                row[f"{name}_test_acc"] = value
    if "individual" in controls:
        compared = [row for row in outcome.tasks if "individual_test_acc" in row]
        gained = [row["test_acc"] - row["individual_test_acc"] for row in compared]
        builder.metric("transfer_vs_individual", sum(gained) / len(gained), unit="fraction", split="test")
    if "finetune" in controls:
        rows = controls["finetune"]
        builder.metric("finetune_avg_acc", accounting.average_accuracy(rows), unit="fraction", split="test")
        builder.metric("finetune_bwt", accounting.backward_transfer(rows), unit="fraction", split="test")
        for row, value in zip(outcome.tasks, rows[-1], strict=True):
            row["finetune_test_acc"] = value


def of_state(context: Context, jobs: Sequence[Job], folder: Path) -> Outcome:
    """Accuracies and sizes of the state in a folder; the networks of these tasks are measured once more."""
    state = State.read(folder)
    rows = [{"final_test_acc": record.figures["test_acc"], **record.figures} for record in state.tasks]
    asked, same = {job.number: job for job in jobs}, []
    for record, row in zip(state.tasks, rows, strict=True):
        plain = materialised(state, record.id, context.run.device)
        same.append(compared(plain, record))
        if record.id in asked:
            _measure_again(context, asked[record.id], state, plain, row)
    learned, last = ([float(row[name]) for row in rows] for name in ("test_acc", "final_test_acc"))
    count = len(rows)
    accuracy: Rows = [[*learned[: number + 1], *[None] * (count - number - 1)] for number in range(count)]
    accuracy[-1] = list(last)
    checks = figures(same)
    checks["max_abs_diff"] = 0.0 if checks["logits_equal"] else None
    layers = {
        name: {str(owner): int(n) for owner, n in enumerate(torch.bincount(value.flatten().long()))}
        for name, value in state.owner.items()
    }
    storage = stored_bytes(folder, state)
    return Outcome(accuracy, "digest", rows, _sizes(context, state, storage), checks, layers, storage)


def _measure_again(context: Context, job: Job, state: State, plain: Materialised, row: dict[str, Any]) -> None:
    """Test accuracy and multiply-adds of a task's network, and how long it takes to switch to it."""
    row["final_test_acc"] = context.accuracy.of(plain.module, job.test)
    macs = accounting.multiply_adds(plain.module, probe_images(plain.network.preprocess, context.run.device)[:1])
    row |= {"dense_macs": macs.dense, "nonzero_macs": macs.nonzero}
    began = time.perf_counter()
    tasknet.materialise(plain.module, state.effective(job.number), state.task_tensors[job.number - 1])
    row["train_seconds"] = _seconds(context, job)  # not in the state, whose bytes do not depend on the time
    row["switch_ms"] = 1000 * (time.perf_counter() - began)


def _seconds(context: Context, job: Job) -> float:
    """Time that the phases of the task took, in the attempts that finished them."""
    known = context.phases.values
    phases = [name for name in known if name.startswith(f"{job.prefix}-") and name.endswith(" trained")]
    return sum(float(known[name]["seconds"]) for name in phases)


def _sizes(context: Context, state: State, storage: Mapping[str, int]) -> dict[str, float | None]:
    network = context.network.module.state_dict()
    shared = sum(network[name].numel() for name in state.owner)
    now = sum(value.numel() for value in state.owner.values())
    free = sum(int((value == 0).sum()) for value in state.owner.values())
    dense = accounting.bytes_of(network)
    # Without the manifest: text, whose length depends on the times that it tells.
    stored = sum(size for kind, size in storage.items() if kind != "manifest")
    return {
        "expansion_factor": accounting.expansion_factor(now, shared),
        "total_bytes_factor": stored / dense,
        "vs_individual_bytes": stored / (dense * len(state.tasks)),
        "free_fraction": free / now,
        "redundancy": accounting.redundancy(free, shared),
    }
