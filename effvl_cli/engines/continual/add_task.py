"""`effvl continual add-task`: one more task on a finished state, which equals the longer run digest for digest."""

from dataclasses import replace
from pathlib import Path

from effvl_cli.config.continual_add_task import AddTaskConfig
from effvl_cli.config.identity import to_yaml_mapping
from effvl_cli.core import distributed
from effvl_cli.core.errors import UsageError
from effvl_cli.core.find_run import find_holding
from effvl_cli.core.report import read_report
from effvl_cli.core.run import Run, unopened
from effvl_cli.core.run_files import REPORT
from effvl_cli.core.table import Table
from effvl_cli.engines.continual import controls, pictures, results, tables
from effvl_cli.engines.continual.context import Context, Job, open_context
from effvl_cli.engines.continual.individual import Individuals
from effvl_cli.engines.continual.open_state import refuse_unfinished
from effvl_cli.engines.continual.preview import preview_task
from effvl_cli.engines.continual.sequence import check, learn_next, take_up
from effvl_cli.engines.continual.state import STATE, State, writer
from effvl_cli.engines.continual.tasks import Task, row_task

table = tables.tasks
MOST_TASKS = 2**15 - 1
OF_ALL_TASKS = ("exclude", "own-patch-embed", "grow-round")
"""Options that say which weights are shared and how the network grows."""


def run(config: AddTaskConfig, run: Run) -> None:
    """Learn the task, commit it to the state of RUN, and measure it."""
    folder = _folder(config)
    _refuse_in_use(folder)
    state = State.read(folder / STATE)
    _refuse_other_network(config, state)
    context = open_context(replace(config, model=state.model), run)
    job = context.job(_task(config), _number(config, run, state))
    check(context, [job])
    individuals = Individuals(context)
    known = context.phases.once("state", lambda: [record.tensor_digest for record in state.tasks[: job.number - 1]])
    if known != [record.tensor_digest for record in state.tasks[: job.number - 1]]:
        raise _changed(folder)
    if len(state.tasks) < job.number:
        state = learn_next(context, job, state, [], _reserve(config, state), individuals, added=run.report.run_id)
    _commit(state, folder)
    take_up(context, state.tasks[-1:], [job])
    outcome = results.of_state(context, [job], folder / STATE)
    used = {job.task.name: outcome.tasks[-1]["epochs_used"]}
    results.report(context, outcome, controls.measured(context, [job], individuals, used))
    _draw(context, job, outcome)


def refuse(config: AddTaskConfig, folder: Path, fresh: bool) -> None:
    """Show no stored result of a task that is not in the state.

    Raises:
        UsageError: this run has added its task, and an earlier state was put back since.
    """
    report = folder / REPORT
    if fresh or not report.is_file() or read_report(report).status != "completed":
        return
    state = State.read(_folder(config) / STATE)
    if (config.task, folder.name) not in {(record.name, record.added) for record in state.tasks}:
        raise UsageError(
            f"{_folder(config) / STATE} no longer holds the task {config.task!r} that the run in {folder} added",
            "Give --fresh to learn it again",
        )


def preview(config: AddTaskConfig) -> list[Table]:
    """What `--dry-run` shows besides the options."""
    state = State.read(_folder(config) / STATE)
    _refuse_other_network(config, state)
    number = _number(config, unopened("continual add-task", config), state)
    return preview_task(config, _task(config), number, state.model)


def _refuse_other_network(config: AddTaskConfig, state: State) -> None:
    """Check that the task is to be learned in the network of the others.

    Raises:
        UsageError: an option asks for another one.
    """
    asked, stored = to_yaml_mapping(config), state.config
    if config.model not in (None, state.model, stored.get("model")):
        raise UsageError(f"--model is {config.model}, and the tasks share {state.model}", "Leave it out")
    for key in OF_ALL_TASKS:
        if asked[key] != stored.get(key, asked[key]):
            shown = [
                repr(value) if isinstance(value, str) else str(value).lower() for value in (asked[key], stored[key])
            ]
            raise UsageError(f"--{key} is {shown[0]}, and {shown[1]} for the tasks that are there", "Leave it out")


def _refuse_in_use(folder: Path) -> None:
    """Learn no task for a state that another process will have changed by then.

    Raises:
        UsageError: another process works in that folder, or its run has not finished.
    """
    if distributed.is_main():
        with writer(folder):
            refuse_unfinished(folder)
    distributed.barrier()


def _folder(config: AddTaskConfig) -> Path:
    return find_holding(config.run_holds, "continual add-task", config.run)


def _task(config: AddTaskConfig) -> Task:
    row = {"name": config.task, "data": config.data}
    if config.classes:
        row["classes"] = ",".join(config.classes)
    if config.coarse:
        row["coarse"] = config.coarse
    return row_task(row, "the options", config)


def _number(config: AddTaskConfig, run: Run, state: State) -> int:
    """Id of the task: the next one, or the last one where an earlier attempt of this run has committed it.

    Raises:
        UsageError: the state holds a task of that name, or as many as it can.
    """
    names = [record.name for record in state.tasks]
    if config.task in names:
        if state.tasks[-1].name == config.task and state.tasks[-1].added == run.report.run_id and run.attempt > 1:
            return len(names)
        raise UsageError(f"--task {config.task} is in the state already", "Give the new task another name")
    if len(names) >= MOST_TASKS:
        raise UsageError(f"the state holds {len(names)} tasks, the most that it can", "Begin another run")
    return len(names) + 1


def _reserve(config: AddTaskConfig, state: State) -> int:
    """Tasks expected after this one: as many as the longer run would expect."""
    if config.num_reserve_tasks is not None:
        return config.num_reserve_tasks
    added = sum(bool(record.added) for record in state.tasks)
    return max(0, int(state.config.get("num-reserve-tasks") or 0) - added - 1)


def _commit(state: State, folder: Path) -> None:
    """Write the state under the lock of its run; one that was written before only loses what a kill left behind.

    Raises:
        UsageError: another process works in that folder, or has changed the state meanwhile.
    """
    if distributed.is_main():
        with writer(folder):
            there = [record.tensor_digest for record in State.read(folder / STATE).tasks]
            ours = [record.tensor_digest for record in state.tasks]
            if there not in (ours, ours[:-1]):
                raise _changed(folder)
            state.commit(folder / STATE)
    distributed.barrier()


def _changed(folder: Path) -> UsageError:
    return UsageError(
        f"{folder / STATE} has changed since this run began", "Give --fresh to learn the task on what is there now"
    )


def _draw(context: Context, job: Job, outcome: results.Outcome) -> None:
    run, names = context.run, [row["name"] for row in outcome.tasks]
    pictures.capacity(run, outcome.layers, names)
    pictures.compaction(run, outcome.tasks)
    pictures.picked(run, outcome.tasks)
