"""How one task is learned: attempts at growing widths, compaction, retraining."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from effvl_cli.core.errors import CheckError
from effvl_cli.engines.continual import retrain
from effvl_cli.engines.continual.attempt import GROWING, Attempt
from effvl_cli.engines.continual.context import Context, Job
from effvl_cli.engines.continual.goal import Goal
from effvl_cli.engines.continual.live import Live
from effvl_cli.engines.continual.state import State
from effvl_cli.engines.continual.sweep import Sweep
from effvl_cli.techniques.continual.ratio_choice import next_move

NO_RELEASE, UNREACHABLE, EXHAUSTED = "W-NO-RELEASE", "W-UNREACHABLE", "W-EXHAUSTED"


@dataclass
class Learned:
    """A task that is ready to be committed.

    Attributes:
        attempt: whose network has the weights to keep.
        goal: accuracy that it had to reach.
        figures: JSON values: attempts, sweep, ratio_chosen, val, retrain, epochs_used, flags.
    """

    attempt: Attempt
    goal: Goal
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def live(self) -> Live:
        """The network with these weights."""
        self.attempt.trail.hold(self.attempt.trail.last)
        return self.attempt.live


class Learner:
    """Learns one task on top of committed ones.

    Args:
        context: run.
        job: the task.
        state: committed tasks.
        goal: accuracy to reach.
        remaining: tasks that are to come, expected ones included.
    """

    def __init__(self, context: Context, job: Job, state: State, goal: Goal, remaining: int) -> None:
        self.context, self.job, self.state = context, job, state
        self.goal, self.remaining = goal, remaining
        self.attempts: list[dict[str, float]] = []
        self.flags: list[str] = []
        self.warnings: list[str] = []

    def learn(self) -> Learned:
        """All phases of the task up to its commit.

        Raises:
            CheckError: the goal is missed, or no weights are free, and the policy is to fail.
        """
        attempt, figures, missed = self._attempt()
        if missed:
            self._unreachable(attempt, figures)
        before = attempt.passes(figures)
        found: dict[str, Any] = {"attempts": self.attempts, "sweep": [], "ratio_chosen": 0.0, "retrain": None}
        epochs, val = int(figures["epochs"]), float(figures["val"])
        if figures["has_own"]:
            sweep = Sweep(attempt, self.goal, missed and self.job.config.on_unreachable == "share", self.remaining)
            ratio = sweep.run(before)
            recorded = {key: value for key, value in sweep.recorded.items() if key}
            found |= {"ratio_chosen": ratio, "sweep": [{"ratio": k, "val": v} for k, v in recorded.items()]}
            epochs += self._stages(ratio, sweep) * (self.job.config.prune_epochs or 0)
            val = sweep.recorded[ratio] if ratio else val
            self._note_release(ratio)
        if retrain.wanted(attempt, has_own=bool(figures["has_own"])):
            again = retrain.retrain(attempt, val)
            found["retrain"] = {"adopted": again["adopted"], "val": again["val"]}
            if again["adopted"]:
                epochs, val = epochs + int(again["epochs"]), float(again["val"])
        found |= {"val": val, "epochs_used": epochs, "flags": self.flags, "warnings": self.warnings}
        return Learned(attempt, self.goal, found)

    def _attempt(self) -> tuple[Attempt, Mapping[str, Any], bool]:
        """Attempts at growing widths, until one reaches the goal or none is left; whether the last one misses it."""
        config, width = self.job.config, self.state.tasks[-1].width if self.state.tasks else 1.0
        while True:
            attempt = Attempt(self.context, self.job, self.state, width, len(self.attempts))
            figures = attempt.learn()
            self.attempts.append({"width": width, "val": figures["val"], "train": figures["train"]})
            most = max(width, config.grow_max if config.method in GROWING else 1.0)
            move = next_move(attempt.passes(figures), self.goal.least, width, most)
            if move != "grow":
                if not figures["has_own"]:
                    self._exhausted(width)
                return attempt, figures, move == "limit"
            self.context.run.log(
                f"{self.job.task.name}: {figures['val']:.4f} at width {width:g} is below the goal "
                f"{self.goal.least:.4f}; the network grows"
            )
            attempt.trail.forget(attempt.learned)
            width = min(width + config.grow_step, most)

    def _unreachable(self, attempt: Attempt, figures: Mapping[str, Any]) -> None:
        """Apply the policy for a goal that is missed at the largest width."""
        policy, name = self.job.config.on_unreachable, self.job.task.name
        best = max(row["val"] for row in self.attempts)
        said = f"task {name!r} reaches {best:.4f} at width {attempt.width:g}, and its goal is {self.goal.least:.4f}"
        if policy == "fail":
            raise CheckError(said, "Give a larger --grow-max, a --goal-slack, or --on-unreachable share")
        if policy == "accept":
            self.goal = replace(self.goal, value=float(figures["val"]), slack=0.0)
        self._flag(UNREACHABLE, said)

    def _exhausted(self, width: float) -> None:
        """Apply the policy for a network without free weights."""
        said = f"task {self.job.task.name!r} found 0 % of the weights free at width {width:g}"
        if self.job.config.on_exhausted == "fail":
            raise CheckError(said, "Give a larger --grow-max, or --on-exhausted pick-only")
        self._flag(EXHAUSTED, f"{said}: it learns by picking, norms, biases and its head alone")

    def _note_release(self, ratio: float) -> None:
        if not ratio and self.goal.value is not None:
            name = self.job.task.name
            self._flag(NO_RELEASE, f"task {name!r} releases 0 % of its weights: no stage reaches its goal")

    def _flag(self, name: str, text: str) -> None:
        self.flags.append(name)
        self.warnings.append(f"{name}: {text}")
        self.context.run.warn(self.warnings[-1])

    def _stages(self, ratio: float, sweep: Sweep) -> int:
        return sum(0 < stage <= ratio for stage in sweep.recorded)
