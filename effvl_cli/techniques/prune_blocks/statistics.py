"""Statistics of removals that were scored on the same images, and the order in which units are removed.

The impact of unit i is how much worse the network is without it, measured on N images: the fall in the share of
correct answers, or the rise in mean cross entropy. Sums of losses are rounded once, so they depend neither on the
order of the images nor on the number of processes.

The impacts are those of arXiv 2312.16904; intervals and ties are ours, each from the source named in its function.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Z95 = 1.959963984540054
Z80 = 0.8416212335729143  # 80 % of a normal distribution lie below
FEWEST_DISCORDANT = 25  # with fewer, the normal approximation of a paired difference is poor


class Interval(NamedTuple):
    """A 95 % confidence interval."""

    low: float
    high: float

    @property
    def holds_zero(self) -> bool:
        """Whether 0 is in it."""
        return self.low <= 0 <= self.high


def mean(values: Tensor) -> float:
    """Mean of (N,) numbers, with a sum in float64 that is rounded once."""
    return math.fsum(values.tolist()) / len(values)


def impacts(correct: Tensor, loss: Tensor) -> tuple[list[float], list[float]]:
    """Impact of each unit on accuracy (a fraction) and on loss; negative = better without it.

    Args:
        correct: (1 + n, N) bool, row 0 the network itself.
        loss: (1 + n, N).
    """
    right = correct.sum(1).tolist()
    means = [mean(row) for row in loss]
    return [(right[0] - k) / correct.shape[1] for k in right[1:]], [value - means[0] for value in means[1:]]


def accuracy_interval(first: Tensor, second: Tensor) -> Interval:
    """Interval of accuracy(first) - accuracy(second), from the same images.

    Only discordant images, on which exactly one is right, matter. With 25 of them or more, the difference is
    taken as normal with variance (d - difference^2) / N, d their share; with fewer, the share of them that `first` has
    right gets the exact binomial interval, given their number.

    Args:
        first: (N,) bool.
        second: (N,) bool, the same images.
    """
    count = len(first)
    wins, losses = int((first & ~second).sum()), int((second & ~first).sum())
    discordant = wins + losses
    if discordant == 0:
        return Interval(0.0, 0.0)
    if discordant < FEWEST_DISCORDANT:
        low, high = clopper_pearson(wins, discordant)
        return Interval((2 * low - 1) * discordant / count, (2 * high - 1) * discordant / count)
    difference = (wins - losses) / count
    half = Z95 * math.sqrt((discordant / count - difference**2) / count)
    return Interval(difference - half, difference + half)


def loss_interval(first: Tensor, second: Tensor) -> Interval:
    """Normal interval of mean(first) - mean(second), from the same images; NaN where a loss is.

    Args:
        first: (N,), N >= 2.
        second: (N,), the same images.
    """
    difference = first.double() - second.double()
    half = Z95 * float(difference.std()) / math.sqrt(len(difference))
    centre = mean(difference)
    return Interval(centre - half, centre + half)


def clopper_pearson(successes: int, trials: int) -> Interval:
    """Exact interval of a probability (Clopper and Pearson, Biometrika 1934); meant for few trials."""

    def at_least(share: float) -> float:
        return _binomial_tail(successes, trials, share) - 0.025

    def more_than(share: float) -> float:
        return _binomial_tail(successes + 1, trials, share) - 0.975

    low = 0.0 if successes == 0 else _root(at_least)
    high = 1.0 if successes == trials else _root(more_than)
    return Interval(low, high)


def _binomial_tail(least: int, trials: int, share: float) -> float:
    """Probability of `least` successes or more."""
    terms = (math.comb(trials, k) * share**k * (1 - share) ** (trials - k) for k in range(least, trials + 1))
    return math.fsum(terms)


def _root(rising: Callable[[float], float]) -> float:
    """Where a rising function on [0, 1] crosses 0, by bisection to the last bit or so."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < 0 else (low, middle)
    return (low + high) / 2


def images_for_half_width(discordant: float, half_width: float) -> int:
    """Number of images for a 95 % interval of that half width around a difference near 0.

    Args:
        discordant: share of images on which exactly one of the two networks is right.
        half_width: as a fraction.
    """
    return math.ceil(Z95**2 * discordant / half_width**2)


def images_for_power(discordant: float, gap: float) -> int:
    """Number of images that tell two networks apart with 80 % probability, at 95 % confidence.

    Args:
        discordant: share of images on which exactly one of them is right.
        gap: between their accuracies, as a fraction.
    """
    return math.ceil((Z95 + Z80) ** 2 * (discordant - gap**2) / gap**2)


def tied_with_best(scores: Tensor, best: int) -> list[bool]:
    """Whether the data cannot distinguish a unit from the chosen one: their paired interval holds 0.

    Args:
        scores: (n, N) of the networks without each unit: bool correctness, or losses.
        best: index of the chosen one.
    """
    interval = accuracy_interval if scores.dtype == torch.bool else loss_interval
    return [interval(row, scores[best]).holds_zero for row in scores]


def rank(
    impact: Sequence[float],
    other: Sequence[float],
    macs_saved: Sequence[int],
    params_saved: Sequence[int],
    savings: Sequence[float] | None = None,
) -> list[int]:
    """Order in which units should be removed.

    The lowest impact goes first; of equals the lowest impact by the other measure, then the larger saving of
    multiply-adds, then of parameters, then the later unit. A unit with a NaN or an infinity goes last.

    Args:
        impact: by the selecting measure.
        other: by the other measure.
        macs_saved: multiply-adds that each removal saves.
        params_saved: parameters that each removal saves.
        savings: divide the impact by these. Where the impact is not positive, a quotient
            would put small savings first: those units go before all others, larger savings first.
    """

    def price(index: int) -> tuple[bool, float]:
        if savings is None:
            return False, impact[index]
        if impact[index] <= 0:
            return False, -savings[index]
        return True, impact[index] / savings[index] if savings[index] else math.inf

    def key(index: int) -> tuple[object, ...]:
        if not (math.isfinite(impact[index]) and math.isfinite(other[index])):
            return (True, -index)
        then = (impact[index], other[index], -macs_saved[index], -params_saved[index], -index)
        return (False, *price(index), *then)

    return sorted(range(len(impact)), key=key)


def break_ties_by_loss(order: Sequence[int], tied: Sequence[bool], loss_impact: Sequence[float]) -> list[int]:
    """Put the units tied with the best first, by lowest loss; the rest stay in order.

    Args:
        order: of `rank`.
        tied: of `tied_with_best`, by unit.
        loss_impact: by unit; NaN counts as infinite.
    """
    places = {index: place for place, index in enumerate(order)}

    def key(index: int) -> tuple[bool, float, int]:
        if not tied[index]:
            return True, 0.0, places[index]
        loss = loss_impact[index]
        return False, math.inf if math.isnan(loss) else loss, places[index]

    return sorted(order, key=key)


def kendall(first: Sequence[float], second: Sequence[float]) -> float:
    """Rank correlation tau-b of two lists of numbers; NaN where all numbers of one are equal."""
    a, b = (torch.as_tensor(values, dtype=torch.float64) for values in (first, second))
    signs = [(v[:, None] - v).sign() for v in (a, b)]
    pairs = math.sqrt(float(signs[0].abs().sum()) * float(signs[1].abs().sum()))
    return float((signs[0] * signs[1]).sum()) / pairs if pairs else math.nan
