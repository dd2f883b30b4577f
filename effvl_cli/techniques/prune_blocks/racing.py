"""Dropping candidates before they have seen all images.

Images come in an order whose every prefix is a sample of the whole, and candidates keep their scores: nothing is
computed twice. A race is not exact: the scores of a dropped candidate are from fewer images.

Successive halving (Jamieson and Talwalkar, arXiv 1502.07943) keeps the better half after each round; the bound drops
those that are worse with confidence.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from .statistics import impacts, rank

Kind = Literal["none", "halving", "bound"]
Metric = Literal["top1", "loss"]

FIRST_ROUND = 512  # images before the first halving
BOUND_EVERY = 256  # images between two checks of the bounds
DELTA = 0.05


def stratified_order(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Permutation (N,) of the images; every prefix holds each class in about its share.

    Args:
        labels: (N,) int64.
        generator: shuffles the images, and so the classes of equal share; on the CPU.
    """
    shuffled = torch.randperm(len(labels), generator=generator)
    classes = labels.cpu()[shuffled]
    place = torch.empty(len(labels), dtype=torch.float64)
    for label in classes.unique():
        own = (classes == label).nonzero().squeeze(1)
        place[own] = (torch.arange(len(own), dtype=torch.float64) + 0.5) / len(own)
    return shuffled[place.argsort(stable=True)]


def halving_rounds(total: int, first: int = FIRST_ROUND) -> list[int]:
    """Image counts after which candidates are dropped: `first`, twice that, and so on, below `total`."""
    counts = []
    while first < total:
        counts.append(first)
        first *= 2
    return counts


def halve(order: Sequence[int], picks: int = 1) -> list[int]:
    """Candidates that a round of successive halving keeps: the better half, and at least one more than are needed.

    Args:
        order: candidates, best first.
        picks: how many will be chosen.

    Returns:
        In ascending order.
    """
    return sorted(order[: max(math.ceil(len(order) / 2), picks + 1)])


def bernstein_radius(variance: Tensor, count: int, span: float, delta: float) -> Tensor:
    """Radius that a sample mean exceeds its expectation by with probability at most delta.

    Empirical Bernstein bound (Maurer and Pontil, arXiv 0907.3740).

    Args:
        variance: sample variance of the values.
        count: t >= 2, the number of values.
        span: width of the interval that they lie in.
        delta: in (0, 1).
    """
    log = math.log(2 / delta)
    return (2 * variance * log / count).sqrt() + 7 * span * log / (3 * (count - 1))


def bound(
    values: Tensor, *, span: float, candidates: int, checks: int, picks: int = 1, delta: float = DELTA
) -> list[int]:
    """Candidates that may still be among the best: fewer than `picks` others are better with confidence.

    All pairs of candidates and all checks share delta, so the truly best candidate is dropped with probability delta
    at most.

    Args:
        values: (m, t) for the m remaining candidates and t images, lower is better: wrong or not, or losses clipped to
            [0, span / 2]; NaN counts as the worst value.
        span: width of the range of differences of two values; 2 for wrong or not.
        candidates: number of candidates at the start.
        checks: number of checks in the race.
        picks: how many will be chosen.
        delta: in (0, 1).

    Returns:
        Rows of `values` that stay, ascending.
    """
    rows, count = values.shape
    if rows < 2 or count < 2:
        return list(range(rows))
    share = delta / (candidates * (candidates - 1) * checks)
    values = values.double().nan_to_num(nan=span / 2)
    means, covariance = values.mean(1), values.cov()
    own = covariance.diagonal()
    variance = (own[:, None] + own - 2 * covariance).clamp(min=0)  # of the difference of each pair
    gap = means[:, None] - means
    better = (gap > bernstein_radius(variance, count, span, share)).sum(1)
    return (better < picks).nonzero().squeeze(1).tolist()


class Race:
    """The remaining candidates, and the order of the images; without a race all of them, in the split's order.

    N images, n candidates.

    Args:
        kind: how candidates are dropped.
        metric: what decides.
        labels: (N,) of the images.
        candidates: n.
        picks: how many are removed in a step.
        clip: losses above this count as this, for the bound.
        generator: orders the images; used only in a race.

    Attributes:
        order: (N,) positions of the images in the split.
        active: remaining candidates, ascending.
    """

    def __init__(
        self,
        kind: Kind,
        metric: Metric,
        labels: Tensor,
        *,
        candidates: int,
        picks: int,
        clip: float,
        generator: Callable[[], torch.Generator],
    ) -> None:
        total = len(labels)
        self.kind, self.metric, self.candidates = kind, metric, candidates
        self.clip, self.picks = clip, picks
        self.active = list(range(candidates))
        self.order = torch.arange(total)
        self._checks: list[int] = []
        if self.kind != "none":
            self.order = stratified_order(labels, generator())
            every = list(range(BOUND_EVERY, total, BOUND_EVERY))
            self._checks = halving_rounds(total) if self.kind == "halving" else every
        self._passed = 0  # images at the last check

    def resume(self, active: list[int], seen: int) -> None:
        """Resume a race after `seen` scored images."""
        self.active, self._passed = active, seen

    def is_due(self, seen: int) -> bool:
        """Whether a check is due between the last one and `seen` images."""
        return any(self._passed < check <= seen for check in self._checks)

    def advance(self, correct: Tensor, loss: Tensor, seen: int) -> None:
        """Drop candidates, if a check is due.

        Args:
            correct: (1 + n, N).
            loss: (1 + n, N).
            seen: number of filled columns.
        """
        if self.is_due(seen):
            rows = torch.tensor([0, *(1 + k for k in self.active)])
            drop: Callable[[Tensor, Tensor], list[int]] = self._halve if self.kind == "halving" else self._bound
            self.active = [self.active[k] for k in drop(correct[rows, :seen].bool(), loss[rows, :seen])]
        self._passed = seen

    def _halve(self, correct: Tensor, loss: Tensor) -> list[int]:
        """Remaining candidates after a halving, from `correct` and `loss` (1 + n, N)."""
        by_accuracy, by_loss = impacts(correct, loss)
        both = (by_accuracy, by_loss) if self.metric == "top1" else (by_loss, by_accuracy)
        nothing = [0] * len(self.active)
        return halve(rank(*both, nothing, nothing), self.picks)

    def _bound(self, correct: Tensor, loss: Tensor) -> list[int]:
        """Remaining candidates after a check of the bounds, from `correct` and `loss` (1 + n, N)."""
        top1 = self.metric == "top1"
        values = ~correct[1:] if top1 else loss[1:].clamp(max=self.clip)
        return bound(
            values,
            span=2.0 if top1 else 2 * self.clip,
            candidates=self.candidates,
            checks=len(self._checks),
            picks=self.picks,
        )
