"""Training of one phase of one task: what the loop calls, the optimizers, and how long."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import nn

from effvl_cli.config.continual_learn import TaskOptions
from effvl_cli.core import distributed, loop, seeds, stopping
from effvl_cli.core.loop import FitResult, StepOutput
from effvl_cli.core.optim import Optimizers
from effvl_cli.core.run import Run
from effvl_cli.data.loader import Batch
from effvl_cli.data.sampler import EpochSampler
from effvl_cli.data.transforms import augment
from effvl_cli.engines.common.batches import check_divides, loaded
from effvl_cli.engines.continual import rates
from effvl_cli.engines.continual.accuracy import Accuracy
from effvl_cli.engines.continual.rates import Curve
from effvl_cli.engines.continual.task_images import TaskSplits

VAL = "top1_val"
Hook = Callable[[int, Optimizers], None]
"""Called after an update, with how many the phase has made, and the optimizers."""


@dataclass(frozen=True)
class Course:
    """How a phase trains.

    Attributes:
        phase: its name; its checkpoints lie in a folder of this name.
        stream: names of its random stream, under the run's seed.
        epochs: how long.
        curve: of the weights' rate, which is in the optimizers.
        pick_curve: of the scores'.
        best_from: the result is the best state of those after this many epochs; None: the last one.
        patience: evaluations without a better figure that end it; 0: none.
        plateau: evaluations without a better figure after which the rate falls; 0: never.
        gamma: by this factor.
    """

    phase: str
    stream: tuple[str | int, ...]
    epochs: int
    curve: Curve
    pick_curve: Curve = rates.constant
    best_from: int | None = None
    patience: int = 0
    plateau: int = 0
    gamma: float = 1.0


class TaskTraining(loop.Task):
    """Cross entropy of one task's classes.

    Args:
        module: maps normalised images to logits.
        data: of the task.
        run: device.
        validate: accuracy on the images that decide.
        optimizers: of its parameters.
        after_backward: called between the backward passes and the update.
        after_update: called after an update that counted.
    """

    def __init__(
        self,
        module: nn.Module,
        data: TaskSplits,
        run: Run,
        validate: Callable[[nn.Module], float],
        optimizers: Optimizers,
        *,
        after_backward: Callable[[int], None],
        after_update: Hook,
    ) -> None:
        self.module, self.data, self.run = module, data, run
        self.validate, self.optimizers = validate, optimizers
        self.check, self.hook = after_backward, after_update
        self.updates = 0
        self.history: list[dict[str, float]] = []

    def train_step(self, batch: Batch, step: int) -> StepOutput:
        """Mean loss of one process's images."""
        batch = batch.to(self.run.device)
        logits = self.module(self.data.preprocess.normalise(batch.images))
        right = (logits.detach().argmax(1) == batch.labels).float().mean()
        return StepOutput(F.cross_entropy(logits.float(), batch.labels), {"top1_train": right})

    def after_backward(self, step: int) -> None:
        """Before clipping: a norm that is not a number would spread to gradients that have to be zero."""
        self.check(step)

    def after_step(self, step: int, *, counted: bool) -> None:
        """Release weights and keep others at zero; a step that was skipped moves no schedule."""
        if counted:
            self.updates += 1
            self.hook(self.updates, self.optimizers)

    def evaluate(self) -> dict[str, float]:
        """Validation accuracy."""
        figures = {VAL: self.validate(self.module)}
        self.history.append(figures)
        return figures

    def state_dict(self) -> dict[str, Any]:
        """Counts and figures that schedules depend on."""
        return {"updates": self.updates, "history": self.history}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore them."""
        self.updates, self.history = int(state["updates"]), list(state["history"])


def steps_per_epoch(config: TaskOptions, data: TaskSplits) -> int:
    """Steps of an epoch."""
    return len(data.train) // batch_size(config, len(data.train))


def batch_size(config: TaskOptions, count: int) -> int:
    """Images per step of a task with so many: all of them, in equal shares of the processes, where they are few."""
    assert config.batch_size is not None  # filled in by the options
    world = distributed.world().size
    return config.batch_size if config.batch_size <= count else max(world, count - count % world)


def fit(
    config: TaskOptions,
    run: Run,
    accuracy: Accuracy,
    data: TaskSplits,
    module: nn.Module,
    optimizers: Optimizers,
    course: Course,
    *,
    after_backward: Callable[[int], None] = lambda step: None,
    after_update: Hook = lambda updates, optimizers: None,
) -> FitResult:
    """Train `module` in place, from the newest checkpoint of the phase if there is one.

    Raises:
        NumericalError: the loss stayed non-finite; earlier tasks' weights are what they were.
    """
    per_epoch = steps_per_epoch(config, data)
    steps = course.epochs * per_epoch
    validate = partial(_validate, accuracy, data)
    task = TaskTraining(
        module, data, run, validate, optimizers, after_backward=after_backward, after_update=after_update
    )
    plan = loop.Plan(
        steps=steps,
        phase=course.phase,
        rate=lambda step: _weights_rate(course, task, step / steps),
        rates=tuple(_rates(course, task, steps, len(optimizers.parts))),
        clip_grad=config.clip_grad,
        precision=config.precision,
        eval_every=per_epoch if course.patience or course.plateau else 0,
        eval_at=frozenset(_judged(course, per_epoch)),
        save_every=config.save_every,
        log_every=config.log_every,
        best=None if course.best_from is None else VAL,
        stop=_stop(course),
        broadcast_buffers=False,  # the shared weights are buffers, equal everywhere by construction
    )
    return loop.fit(task, optimizers, _batches(config, run, data, course), run, plan)


def _weights_rate(course: Course, task: TaskTraining, t: float) -> float:
    fallen = rates.falls(task.history, VAL, course.plateau) if course.plateau else 0
    return float(course.curve(t) * course.gamma**fallen)


def _rates(course: Course, task: TaskTraining, steps: int, parts: int) -> Iterator[Callable[[int], float]]:
    """One for each optimizer: of the weights, and of the scores where they learn."""
    yield lambda step: _weights_rate(course, task, step / steps)
    if parts > 1:
        yield lambda step: course.pick_curve(step / steps)


def _judged(course: Course, per_epoch: int) -> Sequence[int]:
    """Steps after which a best state is looked for."""
    if course.best_from is None:
        return ()
    return range(max(1, course.best_from) * per_epoch, course.epochs * per_epoch + 1, per_epoch)


def _stop(course: Course) -> stopping.Rule | None:
    if course.plateau:
        return lambda history: rates.falls(history, VAL, course.plateau) >= rates.FALLS
    return stopping.patience(VAL, course.patience) if course.patience else None


def _validate(accuracy: Accuracy, data: TaskSplits, module: nn.Module) -> float:
    """On all processes alike, which from here on have the first one's running statistics."""
    distributed.share_buffers(module)
    return accuracy.of(module, data.val)


def _batches(config: TaskOptions, run: Run, data: TaskSplits, course: Course) -> Callable[[int], Iterator[Batch]]:
    size, seed = batch_size(config, len(data.train)), seeds.derive(config.seed, *course.stream)
    check_divides(size, "--batch-size")
    sampler = EpochSampler(len(data.train), size, seed)
    transform = augment(config.augment, data.preprocess)
    return loaded(data.train, sampler, config, run, seed=seed, transform=transform)


def epochs_of(result: FitResult, per_epoch: int) -> int:
    """Epochs that led to the state that a training ended in."""
    steps = result.steps if result.best_step is None else result.best_step
    return math.ceil(steps / per_epoch)
