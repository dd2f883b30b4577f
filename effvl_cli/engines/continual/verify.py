"""`effvl continual verify`: every task is, bit for bit, what it was when it was committed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from effvl_cli.config.continual_verify import STATE_FILE, VerifyConfig
from effvl_cli.core.errors import CheckError, DataError
from effvl_cli.core.find_run import find_holding
from effvl_cli.core.report import Report
from effvl_cli.core.run import Run
from effvl_cli.core.table import Table
from effvl_cli.engines.continual.digests import Proof, prove
from effvl_cli.engines.continual.open_state import run_of
from effvl_cli.engines.continual.state import STATE, State
from effvl_cli.engines.continual.state_files import CorruptStateError


def run(config: VerifyConfig, run: Run) -> None:
    """Compare digests of files, tensors and logits, and with --against those of another run; the first fault ends it.

    Raises:
        CheckError: something differs; the message names the tensor.
    """
    folder = run_of(config)
    state = _intact(folder)
    other = _intact(find_holding(STATE_FILE, "continual", config.against)) if config.against else None
    if other is not None and not any(task.name in _names(state) for task in other.tasks):
        raise DataError(f"--against {config.against} has no task of the same name", "Give a run of the same tasks")
    proofs = []
    for task in state.tasks:
        proof = prove(state, task, run.device)
        proofs.append(proof)
        if other is not None and task.name in _names(other):
            _compare(state, other, task.name, str(config.against))
    _record(run, proofs)
    left = sorted({*_names(state)} ^ {*_names(other)}) if other is not None else []
    if left:
        run.warn(f"tasks of one run only, which are not compared: {', '.join(left)}")


def _intact(folder: Path) -> State:
    try:
        return State.read(folder / STATE)
    except CorruptStateError as error:
        raise CheckError(error.message, error.hint) from error


def _names(state: State) -> list[str]:
    return [task.name for task in state.tasks]


def _compare(state: State, other: State, name: str, where: str) -> None:
    """Refuse a task whose networks differ."""
    ours, theirs = state.task(name).tensors, other.task(name).tensors
    differing = sorted(key for key in {*ours, *theirs} if ours.get(key) != theirs.get(key))
    if differing:
        raise CheckError(
            f"task {name}: tensor {differing[0]} differs from that of {where} ({len(differing)} of {len(ours)} do)",
            "The runs learned other networks: compare their config.yaml",
        )


def _record(run: Run, proofs: list[Proof]) -> None:
    report, skipped = run.report, [proof.task for proof in proofs if proof.logits_equal is None]
    report.metric("tensor_digest_equal", 1.0, unit="boolean", n=len(proofs))
    if len(skipped) < len(proofs):
        report.metric("logits_equal", 1.0, unit="boolean", n=len(proofs) - len(skipped))
    if skipped:
        run.warn(
            f"logits of {', '.join(skipped)} were not compared: they were committed with another torch, device or "
            "number of threads"
        )
    report.technique["tasks"] = [proof.to_dict() for proof in proofs]


def table(report: Report) -> Table:
    """A row for each task."""

    def cells(row: Mapping[str, Any]) -> tuple[str, str, str]:
        logits = row["logits_equal"]
        return row["task"], "equal", "not compared" if logits is None else "equal"

    rows = tuple(map(cells, report.technique["tasks"]))
    return Table(report.command, ("task", "tensors", "logits"), rows, tuple(report.warnings))
