"""One training of an invariance method under a clock."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from effvl_cli.core import distributed
from effvl_cli.core.loop import StepOutput, Task
from effvl_cli.core.run import Run
from effvl_cli.data.loader import Batch
from effvl_cli.engines.pretrain.probes import Probe
from effvl_cli.engines.pretrain.views import ViewMaker
from effvl_cli.techniques.pretrain.method import Method
from effvl_cli.techniques.pretrain.schedule import Clock

COLLAPSED = 0.1  # of the spread of embeddings that fill their sphere
COLLAPSED_FOR = 0.05  # share of the budget


@dataclass
class StageMeter:
    """Seconds, processor seconds and waits of each stage, in the attempt that finished it."""

    seconds: dict[int, float] = field(default_factory=dict)
    waited: dict[int, float] = field(default_factory=dict)
    cpu: dict[int, float] = field(default_factory=dict)
    steps: dict[int, int] = field(default_factory=dict)
    _since: float = 0.0
    _cpu_since: float = 0.0
    _wait: float = 0.0

    def timed(self, stream: Iterator[Batch]) -> Iterator[Batch]:
        """The same stream, with the waits for it counted; steps begin with it."""
        while True:
            self._since, self._cpu_since = time.perf_counter(), time.process_time()
            batch = next(stream)
            self._wait = time.perf_counter() - self._since
            yield batch

    def step_done(self, stage: int) -> None:
        """A step of a stage is over."""
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


class InvarianceTask(Task):
    """Views by the schedule's stage, the method's loss, an eye on collapse."""

    def __init__(self, method: Method, clock: Clock, maker: ViewMaker, run: Run, probe: Probe | None) -> None:
        self.method, self.module = method, method
        self.clock, self.maker, self.run, self.probe = clock, maker, run, probe
        self.meter = StageMeter()
        self.t = 0.0
        self.low_since = -1.0

    def train_step(self, batch: Batch, step: int) -> StepOutput:
        """Loss of the whole batch, from this process's images."""
        t = self.clock.t(step)
        views = self.maker.views(batch.to(self.run.device), self.clock.stage(step).compression, step)
        found = self.method.loss(views, distributed.gather_with_gradient, t)
        return StepOutput(found.loss, {"emb_std": embedding_std(found.embeddings), **found.logs})

    def after_backward(self, step: int) -> None:
        """The method's hook."""
        self.method.after_backward(self.clock.t(step))

    def after_step(self, step: int, *, counted: bool) -> None:
        """The method's hook, and the clock of the stage."""
        self.t = self.clock.t(step + 1)
        if counted:
            self.method.after_step(self.clock.t(step), self.t)
        self.meter.step_done(self.clock.stage(step).index)

    def watch(self, step: int, figures: Mapping[str, float]) -> None:
        """Warn when the embeddings have been nearly equal for a twentieth of the budget."""
        t = self.clock.t(step)
        if figures["emb_std"] >= COLLAPSED:
            self.low_since = -1.0
        elif self.low_since < 0:
            self.low_since = t
        elif t - self.low_since >= COLLAPSED_FOR:
            self.run.warn(
                f"collapse: embeddings nearly equal (spread {figures['emb_std']:.3f} of 1) since t = "
                f"{self.low_since:.2f}; lower --lr, raise --teacher-temperature, or train with larger batches"
            )
            self.low_since = t

    def evaluate(self) -> dict[str, float]:
        """Accuracy of 20 neighbours on validation pictures."""
        if self.probe is None:
            return {}
        return {"knn20_val": self.probe.knn20(self.method.result)}

    def state_dict(self) -> dict[str, Any]:
        """How much of the budget is spent, and since when the embeddings are nearly equal."""
        return {"t": self.t, "low_since": self.low_since}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore it."""
        self.t, self.low_since = state["t"], state["low_since"]


def embedding_std(embeddings: Tensor) -> Tensor:
    """Mean deviation of the dimensions of normalised embeddings (B, E), over 1 / sqrt(E): near 1 unless collapsed."""
    unit = F.normalize(embeddings.float(), dim=1)
    return unit.std(0).mean() * unit.shape[1] ** 0.5 if len(unit) > 1 else torch.ones(())
