"""Training of one view's encoder with queues: the task that the loop runs, and what processes exchange for it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from effvl_cli.core import checkpoint, distributed, seeds
from effvl_cli.core.errors import DistributedError, ModelError
from effvl_cli.core.loop import StepOutput, Task
from effvl_cli.core.run import Run
from effvl_cli.core.stage_meter import StageMeter
from effvl_cli.engines.cpr_mine.clip_batches import ClipBatch
from effvl_cli.techniques.cpr_mine.cascade_moco import CascadeMoCo, ClipViews, Entries, Sharing
from effvl_cli.techniques.cpr_mine.stages import Stage

CHECK_EVERY = 1000  # steps between comparisons of the queues of several processes
MINED = ("mined_rows", "mined_precision")
MEANS = ("loss", "own_top1", "positive_top1")
EPOCH, MINING = "epoch", "mining"
LATE = 0.3  # share of the time spent waiting for clips above which the cache of views is recommended


@dataclass(frozen=True)
class Recipe:
    """What a training does besides its objective.

    Attributes:
        stages_at: cascade of a step; empty: no mining.
        self_drop: share of the steps in which the own key is no positive where there are others.
        shuffle: whether several processes exchange the clips of their key encoders.
        seed: of the training.
        phase: its name, unique in the run.
    """

    stages_at: Callable[[int], tuple[Stage, ...]]
    self_drop: float
    shuffle: bool
    seed: int
    phase: str


class Means:
    """Means of the logged figures since the last evaluation, and of what was mined with each k over all steps."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}

    def add(self, figures: Mapping[str, Tensor], k: int) -> None:
        """Count a step; k is 0 where nothing is mined."""
        own = torch.stack([torch.ones((), device=figures["loss"].device), *(figures[name] for name in MEANS)])
        self._add(EPOCH, own)
        if k:
            mined = torch.stack([own[0], *(figures[name] for name in MINED)])
            self._add(MINING, mined)
            self._add(str(k), mined)

    def _add(self, name: str, values: Tensor) -> None:
        before = self.sums.get(name)
        values = values.detach().double()
        self.sums[name] = values if before is None else before.to(values.device) + values

    def take(self) -> dict[str, float]:
        """The means by name, e.g. "loss" or "mined_precision_k5"; all but those of a k begin anew."""
        found: dict[str, float] = {}
        for name, sums in sorted(self.sums.items()):
            count, *values = sums.tolist()
            names = {EPOCH: MEANS, MINING: MINED}.get(name) or [f"{figure}_k{name}" for figure in MINED]
            found |= {figure: value / count for figure, value in zip(names, values, strict=True)}
        for name in (EPOCH, MINING):
            self.sums.pop(name, None)
        return found

    def state_dict(self) -> dict[str, list[float]]:
        """The sums."""
        return {name: sums.tolist() for name, sums in self.sums.items()}

    def load_state_dict(self, state: Mapping[str, list[float]]) -> None:
        """Restore them."""
        self.sums = {name: torch.tensor(values, dtype=torch.float64) for name, values in state.items()}


class CascadeTask(Task):
    """Steps of `CascadeMoCo`; its queues are filled before the first one.

    Args:
        method: networks and queues.
        views_of: augments the clips of a batch and makes their views.
        filling: batches from the start of a stream of their own, to fill the queues with.
        run: device and log.
        recipe: what the steps do.
    """

    def __init__(
        self,
        method: CascadeMoCo,
        views_of: Callable[[ClipBatch], ClipViews],
        filling: Callable[[], Iterator[ClipBatch]],
        run: Run,
        recipe: Recipe,
    ) -> None:
        self.method, self.module, self.views_of, self.filling = method, method, views_of, filling
        self.run, self.recipe = run, recipe
        self.meter, self.means, self.mining_s = StageMeter(), Means(), 0.0
        self.pending: Entries | None = None
        self.filled = False
        self.partners = {name: checkpoint.digest(part.state_dict()) for name, part in method.partners.items()}

    def train_step(self, batch: ClipBatch, step: int) -> StepOutput:
        """Loss of this process's clips against the queues, which are full."""
        if not self.filled:
            self._fill()
        if step % CHECK_EVERY == 0 and distributed.world().size > 1:
            check_queues(self.method)
        views, stages = self.views_of(batch), self.recipe.stages_at(step)
        found = self.method.step(views, stages, drop_own=self._coin(step), sharing=self._sharing(step))
        self.pending = found.entries
        self.mining_s += found.mining_s
        self.means.add({"loss": found.loss, **found.logs}, self._k_of(stages))
        return StepOutput(found.loss, found.logs)

    def after_step(self, step: int, *, counted: bool) -> None:
        """Move the key encoder and write the batch into the queues; a step that does not count leaves both."""
        if counted:
            assert self.pending is not None
            self.method.follow()
            self.method.enqueue(self.pending)
        else:
            self.filled = False  # the loop has put the queues back: at the first step, to empty ones
        self.meter.step_done(0)

    def _fill(self) -> None:
        """Write the queues full, without a step."""
        queues, number = self.method.queues, 0
        if not queues.full:
            self.run.log(f"{self.recipe.phase}: filling the queues with {queues.size} clips")
            for batch in self.filling():
                self.method.fill(self.views_of(batch), self._sharing(number, "fill"))
                number += 1
                if queues.full:
                    break
        self.filled = True

    def _coin(self, step: int) -> bool:
        """The same on all processes."""
        drawn = torch.rand((), generator=seeds.generator(self.recipe.seed, "self-drop", step))
        return bool(drawn < self.recipe.self_drop)

    def _sharing(self, step: int, purpose: str = "shuffle-bn") -> Sharing:
        size = distributed.world().size
        if size == 1:
            return Sharing()

        def gather(rows: torch.Tensor) -> torch.Tensor:
            return distributed.gather_rows(rows, len(rows) * size)

        shuffled = self.recipe.shuffle and has_batch_norm(self.method)
        shuffle = seeds.generator(self.recipe.seed, purpose, step) if shuffled else None
        return Sharing(gather, distributed.own_rows, shuffle)

    def _k_of(self, stages: Sequence[Stage]) -> int:
        listed = self.method.objective.listed
        return stages[-1].n if stages else 0 if listed is None else listed.shape[1]

    def evaluate(self) -> dict[str, float]:
        """Means since the last evaluation; nothing is held out."""
        return self.means.take()

    def state_dict(self) -> dict[str, Any]:
        """Which partners the queues were filled by, and the sums of figures."""
        return {"partners": self.partners, "means": self.means.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore it.

        Raises:
            ModelError: the frozen encoders are others.
        """
        if dict(state["partners"]) != self.partners:
            raise ModelError(
                f"the frozen encoders of {self.recipe.phase} are not those that its queues were filled by",
                "Restore their weights, or give --fresh",
            )
        self.means.load_state_dict(state["means"])


def has_batch_norm(module: nn.Module) -> bool:
    """Whether outputs depend on the other clips of a batch."""
    return any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in module.modules())


def check_queues(method: CascadeMoCo) -> None:
    """Check that all processes hold the same queues.

    Raises:
        DistributedError: they do not.
    """
    own = (
        sum(int(buffer.reshape(-1).view(torch.int32).sum(dtype=torch.int64)) for buffer in method.queues.buffers())
        % 2**62
    )
    highest, lowest = distributed.all_reduce_max(own), -distributed.all_reduce_max(-own)
    if highest != lowest:
        raise DistributedError("the queues of the processes differ", "This is an error of effvl: please report it")
