"""Tasks learned one after another into a state on disk."""

import fnmatch
import re
from collections.abc import Sequence
from pathlib import Path

from effvl_cli.config.identity import to_yaml_mapping
from effvl_cli.core import distributed
from effvl_cli.core.errors import CheckError, ModelError, UsageError
from effvl_cli.engines.continual.attempt import GROWING
from effvl_cli.engines.continual.committing import add_to
from effvl_cli.engines.continual.context import Context, Job
from effvl_cli.engines.continual.digests import compared
from effvl_cli.engines.continual.goal import goal_of, refuse_goal
from effvl_cli.engines.continual.individual import Individuals
from effvl_cli.engines.continual.learner import Learner
from effvl_cli.engines.continual.materialised import materialised
from effvl_cli.engines.continual.phase_training import batch_size
from effvl_cli.engines.continual.state import STATE, SharedFormat, State, TaskRecord
from effvl_cli.engines.continual.state_files import MANIFEST
from effvl_cli.engines.continual.trail import forget_all
from effvl_cli.engines.continual.widths import try_growth
from effvl_cli.models.geometry import owned_of


def learn(
    context: Context, jobs: Sequence[Job], individuals: Individuals, *, shared_format: SharedFormat = "dense"
) -> None:
    """Learn the tasks that the state of the run does not hold yet, each on top of those before it."""
    folder = context.run.path(STATE)
    state = _begun(context, folder, shared_format)
    take_up(context, state.tasks, jobs)
    for job in jobs[len(state.tasks) :]:
        remaining = len(jobs) - job.number + (context.config.num_reserve_tasks or 0)
        state = learn_next(context, job, state, jobs[: job.number - 1], remaining, individuals)
        if distributed.is_main():
            state.commit(folder)
        distributed.barrier()
        forget_all(context.phases, job.prefix)


def learn_next(
    context: Context,
    job: Job,
    state: State,
    earlier: Sequence[Job],
    remaining: int,
    individuals: Individuals,
    *,
    added: str = "",
) -> State:
    """The state with one more task; nothing is written.

    Args:
        context: run.
        job: the task.
        state: without it.
        earlier: tasks before it whose data are here.
        remaining: tasks to come.
        individuals: trains networks of one task.
        added: the run that adds the task to a finished state.

    Raises:
        CheckError: the task changed what an earlier one computes, or misses its goal under the policy to fail.
    """
    context.run.check_stop()
    goal = goal_of(context, job, earlier, individuals)
    found = Learner(context, job, state, goal, remaining).learn()
    larger = add_to(context, job, found, state, added=added)
    if larger.geometries[:-1] == state.geometries:
        _check_earlier(context, larger)
    job.release()
    return larger


def _check_earlier(context: Context, state: State) -> None:
    """Compute all tasks once more in a network that has grown.

    Where it has not, `State.add` compares every weight and owner that a network is made of, bit by bit, which says the
    same without building it; at the end all are computed again.

    Raises:
        CheckError: the newest task changed what an earlier one computes.
    """
    for record in state.tasks[:-1]:
        same = compared(materialised(state, record.id, context.run.device), record)
        if not same.tensors or same.logits is False:
            raise CheckError(
                f"task {state.tasks[-1].name!r} changed what task {record.name!r} computes", "Please report this"
            )


def take_up(context: Context, records: Sequence[TaskRecord], jobs: Sequence[Job]) -> None:
    """Report what an earlier attempt would have, and delete what it needed for tasks that are committed."""
    for record, job in zip(records, jobs, strict=False):
        forget_all(context.phases, job.prefix)
        context.reader.note(job.task)
        for name, value in context.phases.values.items():
            if re.match(rf"{re.escape(job.prefix)}-\d+-.* trained$", name):
                context.run.resumed(name, int(value["steps"]))
        for text in record.figures["warnings"]:
            context.run.warn(text)


def check(context: Context, jobs: Sequence[Job]) -> None:
    """Refuse what cannot be learned before anything is.

    Raises:
        ModelError: a network that is not the one of its name, or that cannot grow.
        UsageError: a task with fewer images than there are processes, or whose goal cannot be found out; --exclude
            that names no weight, or all of them.
    """
    config, run = context.config, context.run
    _check_excluded(context)
    for place, job in enumerate(jobs):
        refuse_goal(job, known=place)
    if context.network.edits:
        kinds = ", ".join(str(edit["kind"]) for edit in context.network.edits)
        raise ModelError(f"--weights {config.weights} are of a changed network ({kinds})", "Give those of a whole one")
    for job in jobs:
        if job.config.method in GROWING and job.config.grow_max > 1 and job.config.goal != "none":
            try_growth(context, min(1 + job.config.grow_step, job.config.grow_max))
            break
    _check_batches(context, jobs)
    if config.sync_bn and distributed.world().size > 1 and run.device.type != "cuda":
        raise UsageError(f"--sync-bn works on GPUs, and the device is {run.device.type}", "Leave it out")
    if config.select_on == "test":
        run.warn("W-SELECT-ON-TEST: the test images decide on goals, growth and ratios; no figure of this run is clean")


def _check_excluded(context: Context) -> None:
    """Check that --exclude leaves out some of the weights.

    Raises:
        UsageError: a pattern matches none, or together they match all.
    """
    names = owned_of(context.network)
    shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
    for pattern in context.config.exclude:
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
            raise UsageError(f"--exclude {pattern} names no shared weight of {context.network.name}", f"It has {shown}")
    if not context.shared:
        given = ",".join(context.config.exclude)
        raise UsageError(f"--exclude {given} leaves no weight for tasks to share", f"Leave in some of {shown}")


def _check_batches(context: Context, jobs: Sequence[Job]) -> None:
    """Say where a task has fewer images than a batch, which is smaller there.

    Raises:
        UsageError: it has fewer than there are processes.
    """
    world = distributed.world().size
    for job in jobs:
        count, asked = context.reader.counts(job.task)["train"], job.config.batch_size
        size = batch_size(job.config, count)
        if count < world:
            raise UsageError(f"task {job.task.name!r} has {count} training images for {world} processes", "Start fewer")
        if size != asked:
            context.run.log(f"--batch-size is {size}, not {asked}, for task {job.task.name}: {count} training images")


def _begun(context: Context, folder: Path, shared_format: SharedFormat) -> State:
    """The state of an earlier attempt of this run, or an empty one."""
    if (folder / MANIFEST).is_file():
        return State.read(folder)
    report = context.run.report
    return State.empty(
        context.network.name,
        config=to_yaml_mapping(context.config),
        config_sha256=report.config_sha256,
        shared_format=shared_format,
    )
