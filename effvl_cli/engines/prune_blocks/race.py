"""When candidates are dropped before they have seen all images."""

from collections.abc import Callable

import torch
from torch import Tensor

from effvl_cli.core import seeds
from effvl_cli.engines.prune_blocks.context import Scoring
from effvl_cli.techniques.prune_blocks.racing import (
    BOUND_EVERY,
    bound,
    halve,
    halving_rounds,
    stratified_order,
)
from effvl_cli.techniques.prune_blocks.statistics import impacts, rank


class Race:
    """The candidates that are left, and the order of the images; without a race all of them, in the split's order.

    Args:
        here: the options and the scoring images.
        candidates: how many there are.
        picks: how many go in a step.

    Attributes:
        order: (N,) positions of the images in the split.
        active: candidates that are left, ascending.
    """

    def __init__(self, context: Scoring, candidates: int, picks: int) -> None:
        labels, config = context.scoring.labels, context.config
        total = len(labels)
        self.kind, self.metric, self.candidates = config.race, config.metric, candidates
        self.clip = config.loss_clip
        self.picks = picks
        self.active = list(range(candidates))
        self.order = torch.arange(total)
        self._checks: list[int] = []
        if self.kind != "none":
            self.order = stratified_order(labels, seeds.generator(config.seed, "race"))
            every = list(range(BOUND_EVERY, total, BOUND_EVERY))
            self._checks = halving_rounds(total) if self.kind == "halving" else every
        self._passed = 0  # images at the last check

    def resume(self, active: list[int], seen: int) -> None:
        """Take up a race where `seen` images have been scored."""
        self.active, self._passed = active, seen

    def is_due(self, seen: int) -> bool:
        """Whether some check lies between the images of the last one and these many."""
        return any(self._passed < check <= seen for check in self._checks)

    def advance(self, correct: Tensor, loss: Tensor, seen: int) -> None:
        """Drop candidates, if it is time.

        Args:
            correct: (1 + n, N).
            loss: (1 + n, N).
            seen: columns that are filled.
        """
        if self.is_due(seen):
            rows = torch.tensor([0, *(1 + k for k in self.active)])
            drop: Callable[[Tensor, Tensor], list[int]] = self._halve if self.kind == "halving" else self._bound
            self.active = [self.active[k] for k in drop(correct[rows, :seen].bool(), loss[rows, :seen])]
        self._passed = seen

    def _halve(self, correct: Tensor, loss: Tensor) -> list[int]:
        by_accuracy, by_loss = impacts(correct, loss)
        both = (by_accuracy, by_loss) if self.metric == "top1" else (by_loss, by_accuracy)
        nothing = [0] * len(self.active)
        return halve(rank(*both, nothing, nothing), self.picks)

    def _bound(self, correct: Tensor, loss: Tensor) -> list[int]:
        top1 = self.metric == "top1"
        values = ~correct[1:] if top1 else loss[1:].clamp(max=self.clip)
        return bound(
            values,
            span=2.0 if top1 else 2 * self.clip,
            candidates=self.candidates,
            checks=len(self._checks),
            picks=self.picks,
        )
