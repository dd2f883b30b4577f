"""How the released share rises during a stage, and how the scores' learning rate falls."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Ramp:
    """The cubic schedule of Zhu and Gupta (arXiv 1710.01878, eq. 1).

    Attributes:
        start: released share before the ramp.
        end: released share after it.
        first: first step of the ramp.
        last: step at which `end` is reached.
        every: steps between two updates of the masks.
    """

    start: float
    end: float
    first: int
    last: int
    every: int = 1

    def __call__(self, step: int) -> float:
        """The share at a step."""
        if self.last <= self.first:
            return self.end if step >= self.last else self.start
        done = min(1.0, max(0.0, (step - self.first) / (self.last - self.first)))
        return self.end + (self.start - self.end) * (1 - done) ** 3

    def update_at(self, step: int) -> float | None:
        """The share to prune to at a step, or None where the masks stay.

        The last update is at `last` and uses `end`, whatever `every`.
        """
        if step == self.last:
            return self.end
        if self.first <= step < self.last and (step - self.first) % self.every == 0:
            return self(step)
        return None


@dataclass(frozen=True)
class Milestones:
    """A factor of the learning rate that falls at shares of a phase.

    Attributes:
        at: shares of the phase, rising.
        gamma: factor at each.
        stop_at: share from which the rate is 0.
    """

    at: Sequence[float] = ()
    gamma: float = 0.1
    stop_at: float = math.inf

    def __call__(self, done: float) -> float:
        """The factor when the share `done` of the phase is over."""
        if done >= self.stop_at:
            return 0.0
        return self.gamma ** sum(done >= milestone for milestone in self.at)
