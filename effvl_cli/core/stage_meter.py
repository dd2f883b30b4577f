"""How the time of a training is spent, stage by stage."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")


@dataclass
class StageMeter:
    """Seconds, CPU seconds and waits of each stage, in the attempt that finished it."""

    seconds: dict[int, float] = field(default_factory=dict)
    waited: dict[int, float] = field(default_factory=dict)
    cpu: dict[int, float] = field(default_factory=dict)
    steps: dict[int, int] = field(default_factory=dict)
    _since: float = 0.0
    _cpu_since: float = 0.0
    _wait: float = 0.0

    def timed(self, stream: Iterator[T]) -> Iterator[T]:
        """The same stream, with the waits for it counted; a step begins with its batch."""
        while True:
            self._since, self._cpu_since = time.perf_counter(), time.process_time()
            batch = next(stream)
            self._wait = time.perf_counter() - self._since
            yield batch

    def step_done(self, stage: int) -> None:
        """Count a finished step of a stage."""
        wall, cpu = time.perf_counter() - self._since, time.process_time() - self._cpu_since
        for total, value in ((self.seconds, wall), (self.cpu, cpu), (self.waited, self._wait)):
            total[stage] = total.get(stage, 0.0) + value
        self.steps[stage] = self.steps.get(stage, 0) + 1

    def state_dict(self) -> dict[str, list[list[float]]]:
        """Pairs of stage and value, as JSON can hold them."""
        return {
            name: [[*pair] for pair in getattr(self, name).items()] for name in ("seconds", "waited", "cpu", "steps")
        }

    def load_state_dict(self, state: Mapping[str, list[list[float]]]) -> None:
        """Restore it."""
        for name, pairs in state.items():
            setattr(self, name, {int(stage): value for stage, value in pairs})

    def row(self, stage: int, batch_size: int) -> dict[str, float | None]:
        """Time of a stage, and images per second, for the report; None where another attempt did it."""
        seconds, done = self.seconds.get(stage), self.steps.get(stage, 0)
        return {
            "wall_s": seconds,
            "cpu_s": self.cpu.get(stage),
            "images_per_s": done * batch_size / seconds if seconds else None,
            "data_wait_fraction": self.waited.get(stage, 0.0) / seconds if seconds else None,
        }
