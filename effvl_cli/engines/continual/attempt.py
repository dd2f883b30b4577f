"""One attempt to learn a task at one width."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from effvl_cli.core.loop import FitResult
from effvl_cli.engines.continual import phase_training, rates
from effvl_cli.engines.continual.context import Context, Job
from effvl_cli.engines.continual.live import Live, open_live
from effvl_cli.engines.continual.phase_training import Course
from effvl_cli.engines.continual.state import State
from effvl_cli.engines.continual.trail import Trail

GROWING = ("cpg", "pae")
"""Methods whose network grows where a goal is missed."""
ALL_PICKED = ("pae", "packnet")  # methods in which a task uses every older weight


@dataclass
class Attempt:
    """The network of a task at one width, on top of the committed ones, which stay as they are.

    Attributes:
        context: run.
        job: the task.
        state: committed tasks.
        width: of the network, as a multiple of the parameters.
        number: of the attempt, from 0.
    """

    context: Context
    job: Job
    state: State
    width: float
    number: int

    @cached_property
    def live(self) -> Live:
        """The network, in which the task has claimed all free weights."""
        return open_live(self.context, self.job, self.state, self.width, self.number)

    @cached_property
    def trail(self) -> Trail:
        """Its phases."""
        return Trail(self.context.phases, lambda: self.live.module, lambda state: self.live.load(state))

    @property
    def prefix(self) -> str:
        """Beginning of the names of its phases."""
        return f"{self.job.prefix}-{self.number}"

    def stream(self, phase: str) -> tuple[str | int, ...]:
        """Names of the random stream of a phase."""
        return (self.job.task.name, phase, self.number)

    def learn(self) -> dict[str, Any]:
        """Train the task's weights, and its scores where it picks: `val`, `train`, `epochs`, `free`."""
        return self.trail.follow(self.learned, self._fit, self._measure)

    @property
    def learned(self) -> str:
        """Name of that phase."""
        return f"{self.prefix}-learn"

    @property
    def picks(self) -> bool:
        """Whether the task chooses among older weights."""
        config = self.job.config
        return self.job.number > 1 and config.method not in ALL_PICKED and config.pick_lr > 0

    def fit(self, course: Course, lr: float | None, pick_lr: float, after_update: phase_training.Hook) -> FitResult:
        """Train the network in place, through a phase."""
        config, live = self.job.config, self.live
        return phase_training.fit(
            config,
            self.context.run,
            self.context.accuracy,
            self.job.data,
            live.module,
            live.optimizers(config, lr, pick_lr if self.picks else 0.0),
            course,
            after_backward=live.after_backward,
            after_update=after_update,
        )

    def accuracies(self) -> dict[str, float]:
        """On the images that decide, and on the training images where these count too."""
        images = {"val": self.job.data.val, "train": self.job.data.train_images}
        if self.job.config.train_acc_gate is None:
            del images["train"]
        return {name: self.context.accuracy.of(self.live.module, split) for name, split in images.items()}

    def passes(self, figures: Mapping[str, float]) -> float:
        """The accuracy that counts: none where the one on the training images is too low."""
        gate = self.job.config.train_acc_gate
        return float(figures["val"]) if gate is None or figures["train"] >= gate else 0.0

    def _fit(self) -> FitResult:
        config = self.job.config
        course = Course(
            self.learned,
            self.stream("learn"),
            self.job.length,
            rates.learning(config),
            rates.picking(config, has_own=self.live.has_own),
            **self.context.plateau(config),
        )
        return self.fit(course, config.lr, config.pick_lr, partial(after_update, self.live))

    def _measure(self, fitted: FitResult) -> dict[str, Any]:
        self.live.check(self.learned)
        train = self.context.accuracy.of(self.live.module, self.job.data.train_images)
        per_epoch = phase_training.steps_per_epoch(self.job.config, self.job.data)
        return {
            **self.accuracies(),
            "train": train,
            "epochs": phase_training.epochs_of(fitted, per_epoch),
            "has_own": self.live.has_own,
        }


def after_update(live: Live, updates: int, optimizers: Any) -> None:
    """Keep at zero what is not the task's own."""
    live.after_update(optimizers)
