"""The accuracy that a task has to reach before the next one is learned."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from effvl_cli.config.continual_learn import UNOWNED, TaskOptions
from effvl_cli.core.errors import UsageError
from effvl_cli.engines.continual.context import Context, Job
from effvl_cli.engines.continual.individual import Individuals, drawn_origins


@dataclass(frozen=True)
class Goal:
    """An accuracy on the images that decide, and where it comes from.

    Attributes:
        source: as in --goal.
        value: of the source; None: any accuracy is enough.
        slack: how far below it an accuracy still counts.
    """

    source: str
    value: float | None
    slack: float = 0.0

    @property
    def least(self) -> float | None:
        """Smallest accuracy that counts."""
        return None if self.value is None else self.value - self.slack

    def reached(self, accuracy: float) -> bool:
        """Whether an accuracy is enough."""
        return self.least is None or accuracy >= self.least


def goal_of(context: Context, job: Job, earlier: Sequence[Job], individuals: Individuals) -> Goal:
    """The goal of a task, whose networks are trained for it where it asks for some.

    Args:
        context: run.
        job: the task.
        earlier: tasks before it, with their data.
        individuals: trains networks of one task.

    Raises:
        UsageError: --goal file without the task, or --goal finetune-* where earlier tasks have no data.
    """
    config = job.config
    refuse_goal(job, known=len(earlier))
    if not _wanted(config):
        return Goal("none", None)
    if config.goal == "value":
        return Goal("value", config.goal_value, config.goal_slack)
    if config.goal == "file":
        return Goal("file", _from_file(config, job.task.name), config.goal_slack)
    if config.goal == "individual" or job.number == 1:
        return Goal(config.goal, individuals.of(job).val, config.goal_slack)
    values = [individuals.of(job, origin=origin).val for origin in drawn_origins(context, job, list(earlier))]
    for other in earlier:
        other.release()
    value = max(values) if config.goal == "finetune-max" else sum(values) / len(values)
    return Goal(config.goal, value, config.goal_slack)


def refuse_goal(job: Job, *, known: int) -> None:
    """Check that a task's goal can be found out, before anything is trained.

    Args:
        job: the task.
        known: tasks before it whose data are here.

    Raises:
        UsageError: --goal file without the task, or --goal finetune-* where earlier tasks have no data.
    """
    if not _wanted(job.config):
        return
    if job.config.goal == "file":
        _from_file(job.config, job.task.name)
    if job.config.goal.startswith("finetune") and known < job.number - 1:
        raise UsageError(
            f"--goal {job.config.goal} begins with networks of earlier tasks, whose data are not here",
            "Give --goal individual, or --goal value --goal-value ACCURACY",
        )


def _wanted(config: TaskOptions) -> bool:
    return config.method not in ("packnet", *UNOWNED) and config.goal != "none"


def _from_file(config: TaskOptions, task: str) -> float:
    path = Path(config.goal_file or "")
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"--goal-file {path} cannot be read: {error}", "Give a JSON object of accuracies") from error
    if not isinstance(found, dict) or task not in found:
        raise UsageError(f"--goal-file {path} has no accuracy of task {task!r}", "Add it, or give --goal individual")
    value = found[task]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        percent = isinstance(value, int | float) and 1 < value <= 100
        hint = f"Percent are divided by 100: {value / 100:g}" if percent else "Give a number above 0, at most 1"
        raise UsageError(f"--goal-file {path}: the accuracy of task {task!r} is {value!r}", hint)
    return float(value)
