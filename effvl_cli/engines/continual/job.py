"""The whole job: the tasks in order, the controls, measurement, pictures."""

from collections.abc import Sequence

from effvl_cli.config.continual_learn import ContinualConfig
from effvl_cli.core import distributed
from effvl_cli.core.run import Run
from effvl_cli.engines.continual import controls, pictures, results, sequence, tables
from effvl_cli.engines.continual.context import Context, Job, open_context
from effvl_cli.engines.continual.individual import Individuals
from effvl_cli.engines.continual.results import Outcome
from effvl_cli.engines.continual.state import STATE
from effvl_cli.engines.continual.tasks import read_tasks

table = tables.tasks
UNOWNED = ("individual", "finetune")
"""Methods in which weights have no owners."""


def run(config: ContinualConfig, run: Run) -> None:
    """Learn the tasks, and measure all of them at the end."""
    context = open_context(config, run)
    jobs = [context.job(task, number) for number, task in enumerate(read_tasks(config), 1)]
    individuals = Individuals(context)
    if config.method in UNOWNED:
        outcome = controls.alone(context, jobs, individuals)
    else:
        sequence.learn(context, jobs, individuals)
        distributed.barrier()
        outcome = results.of_state(context, jobs, run.path(STATE))
    used = {row["name"]: row["epochs_used"] for row in outcome.tasks}
    found = controls.measured(context, jobs, individuals, used)
    results.report(context, jobs, outcome, found)
    _draw(context, jobs, outcome)


def _draw(context: Context, jobs: Sequence[Job], outcome: Outcome) -> None:
    run, names = context.run, [job.task.name for job in jobs]
    pictures.accuracies(run, outcome.accuracy, names)
    pictures.controls(run, outcome.tasks, context.config.method)
    if outcome.layers:
        pictures.capacity(run, outcome.layers, names)
        pictures.compaction(run, outcome.tasks)
        pictures.picked(run, outcome.tasks)
