"""The strategy of each stage of a training, from the errors that were measured there.

The lowest cost-adjusted error at each stage is the choice of arXiv 2410.22364; the order over the stages, the other
criterion and the ties are ours. With several stages the choice is a sequence whose cost never falls: the one with the
smallest sum, found by dynamic programming. Taking stage by stage the best that the one before allows would let one
costly early choice raise all later ones.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from .gradient_error import Estimate, jackknife_error

Criterion = Literal["ca-mse", "progress"]
Order = Literal["path", "ratchet", "free"]
Ties = Literal["cheaper", "dearer", "none"]

CLEARLY = 3.0  # paired standard errors

Estimates = Mapping[str, Estimate]


def loss_of(estimate: Estimate, criterion: Criterion) -> float:
    """What is to be small: the cost-adjusted error, or the negative progress per cost."""
    return estimate.ca_mse if criterion == "ca-mse" else -estimate.progress


def paired_error(first: Estimate, second: Estimate, criterion: Criterion) -> float:
    """Jackknife standard error of the difference of two strategies measured on the same batches; else NaN.

    Both see the same pictures, so that their difference varies less than either of them.
    """
    rows = [estimate.left_out.get(criterion, ()) for estimate in (first, second)]
    if not rows[0] or len(rows[0]) != len(rows[1]):
        return math.nan
    return jackknife_error([a - b for a, b in zip(*rows, strict=True)])


def choose(
    stages: Sequence[Estimates],
    *,
    criterion: Criterion = "ca-mse",
    order: Order = "path",
    ties: Ties = "cheaper",
) -> list[str]:
    """The strategy of each stage.

    Args:
        stages: estimates of every strategy, stage by stage; a stage may lack some.
        criterion: what is to be small.
        order: `path`: costs never fall, and the sum of the criterion is smallest; `ratchet`: they never fall, and each
            stage takes the best that the one before allows; `free`: each stage takes the best.
        ties: strategies within one paired standard error of the chosen one count as equally good, and the cheapest or
            the dearest of them is taken, as far as `order` allows.
    """
    makers = {"path": cheapest_path, "ratchet": ratchet, "free": free}
    chosen = makers[order](stages, criterion)
    return chosen if ties == "none" else _settled(chosen, stages, criterion, order, ties)


def free(stages: Sequence[Estimates], criterion: Criterion) -> list[str]:
    """The best at each stage, whatever it costs."""
    return [min(estimates, key=lambda name: loss_of(estimates[name], criterion)) for estimates in stages]


def ratchet(stages: Sequence[Estimates], criterion: Criterion) -> list[str]:
    """At each stage the best of those that cost at least as much as the choice before."""
    result: list[str] = []
    floor = 0.0
    for estimates in stages:
        allowed = [name for name in estimates if estimates[name].rel_cost >= floor]
        result.append(min(allowed, key=lambda name: loss_of(estimates[name], criterion)))
        floor = estimates[result[-1]].rel_cost
    return result


def cheapest_path(stages: Sequence[Estimates], criterion: Criterion) -> list[str]:
    """The sequence of non-decreasing cost with the smallest sum of the criterion; of equal sums the cheaper one."""
    tails: dict[str, tuple[float, float, list[str]]] = {}
    """Best sequence from a stage on, by its first strategy: sum, cost, names."""
    for estimates in reversed(stages):
        found = {}
        for name, estimate in estimates.items():
            rest = [tail for tail in tails.values() if not tail[2] or _cost(stages, tail) >= estimate.rel_cost]
            if tails and not rest:
                continue
            total, cost, names = min(rest, key=lambda tail: tail[:2], default=(0.0, 0.0, []))
            found[name] = (total + loss_of(estimate, criterion), cost + estimate.rel_cost, [name, *names])
        tails = found
    return min(tails.values(), key=lambda tail: tail[:2])[2]


def _cost(stages: Sequence[Estimates], tail: tuple[float, float, list[str]]) -> float:
    """Cost of a step at the first stage of a sequence."""
    names = tail[2]
    return stages[len(stages) - len(names)][names[0]].rel_cost


def hopeless(estimates: Estimates, criterion: Criterion) -> set[str]:
    """Strategies that are worse than the best by more than three paired standard errors."""
    [best] = free([estimates], criterion)
    least = loss_of(estimates[best], criterion)
    return {
        name
        for name, other in estimates.items()
        if loss_of(other, criterion) - least > CLEARLY * paired_error(other, estimates[best], criterion)
    }


def _settled(
    chosen: Sequence[str], stages: Sequence[Estimates], criterion: Criterion, order: Order, ties: Ties
) -> list[str]:
    """The choices, each replaced by the cheapest (or dearest) one that is as good and keeps the order."""
    result = list(chosen)
    cheaper = ties == "cheaper"
    places = range(len(result)) if cheaper else reversed(range(len(result)))
    for place in places:
        estimates = stages[place]
        low, high = _limits(result, stages, place) if order != "free" else (0.0, math.inf)
        here = estimates[result[place]]
        alike = [
            name
            for name, other in estimates.items()
            if low <= other.rel_cost <= high and _as_good(other, here, criterion)
        ]
        pick = min if cheaper else max
        result[place] = pick([result[place], *alike], key=lambda name: estimates[name].rel_cost)
    return result


def _limits(chosen: Sequence[str], stages: Sequence[Estimates], place: int) -> tuple[float, float]:
    """Least and largest cost that the neighbours of a stage allow."""
    before = stages[place - 1][chosen[place - 1]].rel_cost if place else 0.0
    after = stages[place + 1][chosen[place + 1]].rel_cost if place + 1 < len(chosen) else math.inf
    return before, after


def _as_good(other: Estimate, best: Estimate, criterion: Criterion) -> bool:
    """Whether it is at most one paired standard error worse."""
    return loss_of(other, criterion) - loss_of(best, criterion) <= paired_error(other, best, criterion)
