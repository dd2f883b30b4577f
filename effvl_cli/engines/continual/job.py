"""The whole job: the tasks in order, the controls, measurement, pictures."""

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from effvl_cli.config.continual_learn import UNOWNED, ContinualConfig
from effvl_cli.core import distributed
from effvl_cli.core.errors import UsageError
from effvl_cli.core.files import write_json
from effvl_cli.core.run import Run
from effvl_cli.core.table import Table
from effvl_cli.engines.continual import controls, pictures, results, sequence, step_time, tables
from effvl_cli.engines.continual.context import Context, Job, open_context
from effvl_cli.engines.continual.individual import Individuals
from effvl_cli.engines.continual.preview import preview_job
from effvl_cli.engines.continual.results import Outcome
from effvl_cli.engines.continual.state import STATE
from effvl_cli.engines.continual.state_files import MANIFEST
from effvl_cli.engines.continual.tasks import Task, read_tasks, refuse_changed

table = tables.tasks
TASKS = "tasks.json"


def run(config: ContinualConfig, run: Run) -> None:
    """Learn the tasks, and measure all of them at the end."""
    context = open_context(config, run)
    jobs = [context.job(task, number) for number, task in enumerate(read_tasks(config), 1)]
    sequence.check(context, jobs)
    run.write(TASKS, write_json, [job.task.to_dict() for job in jobs])  # from here on the list stays
    individuals = Individuals(context)
    if config.method in UNOWNED:
        outcome = controls.alone(context, jobs, individuals)
    else:
        sequence.learn(context, jobs, individuals, shared_format=config.shared_format)
        distributed.barrier()
        outcome = results.of_state(context, jobs, run.path(STATE))
    used = {row["name"]: row["epochs_used"] for row in outcome.tasks}
    found = controls.measured(context, jobs, individuals, used)
    results.report(context, outcome, found)
    if config.method not in UNOWNED:
        step_time.record(context)
    _draw(context, jobs, outcome)


def preview(config: ContinualConfig) -> list[Table]:
    """What `--dry-run` shows besides the options: the cost, and what the state will take."""
    return preview_job(config)


def refuse(config: ContinualConfig, folder: Path, fresh: bool) -> None:
    """Keep the tasks that others have added to a run, and refuse to continue one with other tasks.

    Raises:
        UsageError: the state holds added tasks, or the list has changed.
    """
    added = [record["name"] for record in _records(folder / STATE / MANIFEST) if record.get("added")]
    if fresh and added:
        raise UsageError(
            f"--fresh would delete {folder / STATE}, to which add-task added {', '.join(added)}", "Give another --out"
        )
    if not fresh and (folder / TASKS).is_file():
        stored = [Task.from_dict(row) for row in json.loads((folder / TASKS).read_text())]
        refuse_changed(stored, read_tasks(config))


def _records(path: Path) -> list[dict[str, Any]]:
    """Descriptions of the tasks in a state, as far as it can be read."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        return list(json.loads(path.read_text())["tasks"])
    return []


def _draw(context: Context, jobs: Sequence[Job], outcome: Outcome) -> None:
    run, names = context.run, [job.task.name for job in jobs]
    pictures.accuracies(run, outcome.accuracy, names)
    pictures.controls(run, outcome.tasks, context.config.method)
    if outcome.layers:
        pictures.capacity(run, outcome.layers, names)
        pictures.compaction(run, outcome.tasks)
        pictures.picked(run, outcome.tasks)
