"""How the released share rises during a stage, and how the scores' learning rate falls."""

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
