"""Compaction: stages that release more and more of a task's weights, and which of them the task keeps."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

from effvl_cli.core.loop import FitResult
from effvl_cli.core.optim import Optimizers
from effvl_cli.engines.continual import phase_training, rates
from effvl_cli.engines.continual.attempt import Attempt
from effvl_cli.engines.continual.goal import Goal
from effvl_cli.engines.continual.phase_training import Course
from effvl_cli.techniques.continual import ratio_choice as selection
from effvl_cli.techniques.continual.sparsity_schedule import Ramp


@dataclass
class Sweep:
    """The stages of one attempt.

    Attributes:
        attempt: whose weights are released.
        goal: accuracy that a stage has to reach.
        missed: whether the network before the sweep misses it, at the largest width.
        remaining: tasks that are to come.
        recorded: accuracy after each ratio, 0 being the network before the sweep.
    """

    attempt: Attempt
    goal: Goal
    missed: bool
    remaining: int
    recorded: dict[float, float] = field(default_factory=dict)

    def run(self, before: float) -> float:
        """Release in stages, each starting where the one before ended.

        Args:
            before: accuracy of the network before the sweep.

        Returns:
            The ratio to keep, whose weights the network then has.
        """
        self.recorded[0.0] = before
        for start, ratio in zip((0.0, *self.ratios), self.ratios, strict=False):
            if not self._goes_on():
                break
            kept = self.chosen()
            figures = self.attempt.trail.follow(
                self.name(ratio),
                partial(self._fit, start, ratio),
                partial(self._measure, ratio),
                prepare=lambda: self.attempt.live.owned.freeze_picks(),
            )
            self.recorded[ratio] = self.attempt.passes(figures)
            self._forget(kept)
        chosen = self.chosen()
        self.attempt.trail.back_to(self.name(chosen))
        return chosen

    @property
    def ratios(self) -> tuple[float, ...]:
        """Of the stages."""
        config = self.attempt.job.config
        return (config.packnet_ratio,) if config.method == "packnet" else config.prune_ratios or ()

    @property
    def mandatory(self) -> float:
        """Share that has to be released whatever the accuracy."""
        config = self.attempt.job.config
        if config.method == "packnet":
            return config.packnet_ratio
        shared = self.missed or self.goal.value is None
        return max(config.min_ratio, selection.mandatory_ratio(self.remaining) if shared else 0.0)

    def name(self, ratio: float) -> str:
        """Name of the phase that ends with a ratio."""
        return f"{self.attempt.prefix}-prune-{ratio:g}" if ratio else self.attempt.learned

    def chosen(self) -> float:
        """The ratio to keep, of the stages so far."""
        recorded, least = self.recorded, self.goal.least
        if least is not None and self.missed:
            return selection.choose_at_limit(recorded, least, mandatory=self.mandatory).ratio
        return selection.choose(recorded, least, min_ratio=min(self.mandatory, max(recorded))).ratio

    def _goes_on(self) -> bool:
        patience = self.attempt.job.config.prune_patience or None
        return selection.sweep_goes_on(self.recorded, self.goal.least, patience=patience, mandatory=self.mandatory)

    def _fit(self, start: float, ratio: float) -> FitResult:
        attempt, config = self.attempt, self.attempt.job.config
        live, per_epoch = attempt.live, phase_training.steps_per_epoch(config, attempt.job.data)
        assert config.prune_epochs and config.prune_ramp_epochs and config.prune_every  # filled in by the options
        best = config.prune_keep == "best"
        course = Course(
            self.name(ratio),
            attempt.stream(f"prune-{ratio:g}"),
            config.prune_epochs,
            rates.pruning(config),
            best_from=config.prune_ramp_epochs if best else None,
        )
        ramp = Ramp(start, ratio, 0, config.prune_ramp_epochs * per_epoch, config.prune_every)
        if config.method == "packnet":
            live.release(ratio)

        def release(updates: int, optimizers: Optimizers) -> None:
            share = ramp.update_at(updates)
            if share is not None:
                live.release(share)
            live.after_update(optimizers)

        return attempt.fit(course, config.prune_lr, 0.0, release)

    def _measure(self, ratio: float, fitted: FitResult) -> Mapping[str, float]:
        self.attempt.live.check(self.name(ratio))
        return self.attempt.accuracies()

    def _forget(self, kept: float) -> None:
        """Weights of stages that are neither the newest nor to be kept."""
        needed = {self.chosen(), max(self.recorded)}
        gone = [ratio for ratio in {kept, *sorted(self.recorded)[-2:]} if ratio not in needed]
        self.attempt.trail.forget(*map(self.name, gone))
