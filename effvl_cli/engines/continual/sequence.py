"""Tasks learned one after another into a state on disk."""

from collections.abc import Sequence
from pathlib import Path

from effvl_cli.config.identity import to_yaml_mapping
from effvl_cli.core import distributed
from effvl_cli.core.errors import CheckError
from effvl_cli.engines.continual.committing import add_to, unchanged
from effvl_cli.engines.continual.context import Context, Job
from effvl_cli.engines.continual.goal import goal_of
from effvl_cli.engines.continual.individual import Individuals
from effvl_cli.engines.continual.learner import Learner
from effvl_cli.engines.continual.state import STATE, State
from effvl_cli.engines.continual.state_files import MANIFEST
from effvl_cli.engines.continual.trail import forget_all

CHECKS = ("tensor_digest_equal", "logits_equal")


def learn(context: Context, jobs: Sequence[Job], individuals: Individuals) -> State:
    """Learn the tasks that the state of the run does not hold yet, each on top of those before it.

    Raises:
        CheckError: a task changed what an earlier one computes, or misses its goal under the policy to fail.
    """
    folder = context.run.path(STATE)
    state = _begun(context, folder)
    for record, job in zip(state.tasks, jobs, strict=False):
        forget_all(context.phases, job.prefix)
        for text in record.figures["warnings"]:
            context.run.warn(text)
    for job in jobs[len(state.tasks) :]:
        context.run.check_stop()
        goal = goal_of(context, job, jobs[: job.number - 1], individuals)
        remaining = len(jobs) - job.number + (context.config.num_reserve_tasks or 0)
        found = Learner(context, job, state, goal, remaining).learn()
        state = add_to(context, job, found, state)
        checks = unchanged(context, state)
        if min(checks.values()) < 1:
            raise CheckError(f"task {job.task.name!r} changed what an earlier task computes", "Please report this")
        if distributed.is_main():
            state.commit(folder)
        distributed.barrier()
        forget_all(context.phases, job.prefix)
        job.release()
    return state


def _begun(context: Context, folder: Path) -> State:
    """The state of an earlier attempt of this run, or an empty one."""
    if (folder / MANIFEST).is_file():
        return State.read(folder)
    report = context.run.report
    return State.empty(context.network.name, config=to_yaml_mapping(context.config), config_sha256=report.config_sha256)
