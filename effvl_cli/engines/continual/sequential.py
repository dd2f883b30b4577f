"""Fine-tuning one network from task to task: it forgets, which is what the other methods are compared with."""

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any

from torch import nn

from effvl_cli.core.loop import FitResult
from effvl_cli.engines.continual import phase_training, rates
from effvl_cli.engines.continual.context import Context, Job
from effvl_cli.engines.continual.heads import head_path, put_head
from effvl_cli.engines.continual.phase_training import Course
from effvl_cli.engines.continual.plain import new_head, optimizers, plain_network
from effvl_cli.engines.continual.trail import Trail


def fine_tuned(context: Context, jobs: Sequence[Job]) -> list[list[float]]:
    """Learn tasks one after another in one network, with one trunk and a head for each task.

    Returns:
        Row i: test accuracy of tasks 1 to i after task i was learned.
    """
    return _Sequence(context, jobs).run()


class _Sequence:
    def __init__(self, context: Context, jobs: Sequence[Job]) -> None:
        self.context, self.jobs = context, jobs
        self.module = plain_network(context, jobs[0])
        self.heads: list[nn.Linear] = []
        self.trail = Trail(context.phases, lambda: self.module, self.module.load_state_dict)

    def run(self) -> list[list[float]]:
        rows, before = [], None
        for job in self.jobs:
            phase = f"{job.prefix}-finetune"
            if self.heads and self.trail.known(phase) is None:
                put_head(self.module, copy.deepcopy(self.heads[-1]))
                self.trail.hold(before)
            new_head(self.context, self.module, job)
            fit = partial(self._fit, job, phase)
            rows.append(list(self.trail.follow(phase, fit, partial(self._row, phase))["row"]))
            self.heads.append(self._head(phase))
            job.release()
            if before is not None:
                self.trail.forget(before)
            before = phase
        if before is not None:
            self.trail.forget(before)
        return rows

    def _fit(self, job: Job, phase: str) -> FitResult:
        context, config = self.context, job.config
        stream = (job.task.name, "learn", 0)  # the order of the images in which the others learn, too
        course = Course(phase, stream, job.length, rates.learning(config), **context.plateau(config))
        parts = optimizers(context, self.module, config)
        return phase_training.fit(config, context.run, context.accuracy, job.data, self.module, parts, course)

    def _row(self, phase: str, fitted: FitResult) -> dict[str, Any]:
        """Test accuracy of the tasks so far, each with its head; the newest head is stored first."""
        row = []
        newest = self._head(phase)
        for head, job in zip([*self.heads, newest], self.jobs, strict=False):
            put_head(self.module, head)
            row.append(self.context.accuracy.of(self.module, job.test))
        return {"row": row}

    def _head(self, phase: str) -> nn.Linear:
        """The head that a phase ended with: that of the network, or the stored one."""
        head = copy.deepcopy(self.module.get_submodule(head_path(self.module)))
        assert isinstance(head, nn.Linear)
        head.load_state_dict(self.context.phases.tensors(f"{phase} head", head.state_dict))
        return head
