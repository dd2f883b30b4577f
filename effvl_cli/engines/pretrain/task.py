"""One training of an invariance method under a clock."""

from collections.abc import Mapping
from typing import Any

from effvl_cli.core import distributed
from effvl_cli.core.loop import StepOutput, Task
from effvl_cli.core.run import Run
from effvl_cli.core.stage_meter import StageMeter
from effvl_cli.data.loader import Batch
from effvl_cli.data.view_maker import ViewMaker
from effvl_cli.engines.pretrain.probes import Probe
from effvl_cli.techniques.pretrain.collapse import CollapseWatch, embedding_std
from effvl_cli.techniques.pretrain.method import Method
from effvl_cli.techniques.pretrain.schedule import Clock


class InvarianceTask(Task):
    """Views of the schedule's stage, the method's loss, and a check for collapse.

    Args:
        method: what is trained.
        clock: stage and t of each step.
        maker: of the views.
        run: for the device and warnings.
        probe: of the validation figures; None: there are none.
        first: views are drawn as those of steps from this one on.
    """

    def __init__(
        self, method: Method, clock: Clock, maker: ViewMaker, run: Run, probe: Probe | None, *, first: int = 0
    ) -> None:
        self.method, self.module = method, method
        self.clock, self.maker, self.run, self.probe, self.first = clock, maker, run, probe, first
        self.meter = StageMeter()
        self.t = 0.0
        self.collapse = CollapseWatch()

    def train_step(self, batch: Batch, step: int) -> StepOutput:
        """Loss of the whole batch, from this process's images."""
        t = self.clock.t(step)
        views = self.maker.views(batch.to(self.run.device), self.clock.stage(step).compression, self.first + step)
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
        """Warn if the embeddings have been nearly equal for a twentieth of the budget."""
        since = self.collapse.since(self.clock.t(step), figures["emb_std"])
        if since is not None:
            self.run.warn(
                f"collapse: embeddings nearly equal (spread {figures['emb_std']:.3f} of 1) since t = "
                f"{since:.2f}; lower --lr, raise --teacher-temperature, or train with larger batches"
            )

    def evaluate(self) -> dict[str, float]:
        """Accuracy of 20 neighbours on validation pictures."""
        if self.probe is None:
            return {}
        return {"knn20_val": self.probe.knn20(self.method.result)}

    def state_dict(self) -> dict[str, Any]:
        """How much of the budget is spent, and since when the embeddings have been nearly equal."""
        return {"t": self.t, "low_since": self.collapse.low_since}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore it."""
        self.t, self.collapse.low_since = state["t"], state["low_since"]
