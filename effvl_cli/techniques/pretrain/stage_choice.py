"""The strategy of each stage of a training, from the errors that were measured there.

The lowest cost-adjusted error at each stage is the choice of arXiv 2410.22364; the order over the stages, the other
criterion and the ties are ours. With several stages the choice is a sequence whose cost never falls: the one with the
smallest sum, found by dynamic programming. Taking stage by stage the best that the one before allows would let one
costly early choice raise all later ones.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal

from .gradient_error import Estimate, jackknife_error

Criterion = Literal["ca-mse", "progress"]
Order = Literal["path", "ratchet", "free"]
Ties = Literal["cheaper", "dearer", "none"]

NEARLY, CLEARLY = 2.0, 3.0  # paired standard errors

Estimates = Mapping[str, Estimate]
Look = Callable[[int, Sequence[str]], str]


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
    look: Look | None = None,
    spans: Sequence[float] | None = None,
) -> list[str]:
    """The strategy of each stage.

    Args:
        stages: estimates of every strategy, stage by stage; a stage may lack some.
        criterion: what is to be small.
        order: `path`: costs never fall, and the sum of the criterion is smallest; `ratchet`: they never fall, and each
            stage takes the best that the one before allows; `free`: each stage takes the best.
        ties: strategies within one paired standard error of the chosen one count as equally good, and the cheapest or
            the dearest of them is taken, as far as `order` allows.
        look: takes one of the strategies that are nearly as good instead, given the place of the stage and their names,
            the best by the criterion first; asked only where there are several.
        spans: length of each stage as a share of the training, for the sum of `path`; None: all alike.
    """
    makers: Mapping[Order, Callable[[Sequence[Estimates], Criterion], list[str]]] = {
        "path": partial(cheapest_path, spans=spans),
        "ratchet": ratchet,
        "free": free,
    }
    chosen = makers[order](stages, criterion)
    if look is not None:
        return _looked(chosen, stages, criterion, order, look)
    return chosen if ties == "none" else _settled(chosen, stages, criterion, order, ties)


def next_stage(
    stages: Sequence[Estimates],
    taken: Sequence[str],
    *,
    criterion: Criterion,
    order: Order,
    ties: Ties,
    look: Look | None = None,
    spans: Sequence[float] | None = None,
) -> str:
    """The strategy of the stage that follows, in a training that is measured as it goes.

    Args:
        stages: estimates, stage by stage, up to now.
        taken: the strategies of the stages before the last one of `stages`.
        criterion: what is to be small.
        order: `path`: the last of the best sequence over all that is measured; `ratchet`: the best of those that cost
            at least as much as the one taken before; `free`: the best.
        ties: as in `choose`.
        look: as in `choose`, for the last stage.
        spans: as in `choose`.
    """
    last, rows = stages[-1], list(stages)
    if order == "ratchet" and taken:
        floor = last[taken[-1]].rel_cost
        last = {name: estimate for name, estimate in last.items() if estimate.rel_cost >= floor}
    if order != "path":
        rows, order = [last], "free"
    if look is None:
        return choose(rows, criterion=criterion, order=order, ties=ties, spans=spans)[-1]
    chosen = choose(rows, criterion=criterion, order=order, ties="none", spans=spans)
    names = near(chosen, rows, len(rows) - 1, criterion, order, NEARLY)
    return look(len(stages) - 1, names) if len(names) > 1 else names[0]


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


def cheapest_path(stages: Sequence[Estimates], criterion: Criterion, spans: Sequence[float] | None = None) -> list[str]:
    """The sequence of non-decreasing cost with the smallest sum of the criterion; of equal sums the cheaper one.

    With spans the sum is the integral over the training: a stage counts as long as it lasts.
    """
    weights = spans or [1.0] * len(stages)
    tails: dict[str, tuple[float, float, list[str]]] = {}
    """Best sequence from a stage on, by its first strategy: sum, cost, names."""
    for estimates, weight in zip(reversed(stages), reversed(weights), strict=True):
        found = {}
        for name, estimate in estimates.items():
            rest = [tail for tail in tails.values() if not tail[2] or _cost(stages, tail) >= estimate.rel_cost]
            if tails and not rest:
                continue
            total, cost, names = min(rest, key=lambda tail: tail[:2], default=(0.0, 0.0, []))
            own = weight * loss_of(estimate, criterion)
            found[name] = (total + own, cost + weight * estimate.rel_cost, [name, *names])
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
    pick = min if cheaper else max
    for place in places:
        alike = near(result, stages, place, criterion, order, 1.0)
        result[place] = pick(alike, key=lambda name: stages[place][name].rel_cost)
    return result


def _looked(
    chosen: Sequence[str], stages: Sequence[Estimates], criterion: Criterion, order: Order, look: Look
) -> list[str]:
    """The choices, each replaced by what `look` takes of those that are nearly as good and keep the order."""
    result = list(chosen)
    for place in range(len(result)):
        names = near(result, stages, place, criterion, order, NEARLY)
        if len(names) > 1:
            result[place] = look(place, names)
    return result


def near(
    chosen: Sequence[str],
    stages: Sequence[Estimates],
    place: int,
    criterion: Criterion,
    order: Order,
    errors: float,
) -> list[str]:
    """The choice of a stage, then those at most so many paired standard errors worse whose cost keeps the order.

    They are sorted by the criterion, the best first, behind the choice itself.
    """
    estimates, best = stages[place], chosen[place]
    low, high = _limits(chosen, stages, place) if order != "free" else (0.0, math.inf)
    least = loss_of(estimates[best], criterion)
    alike = [
        name
        for name, other in estimates.items()
        if name != best
        and low <= other.rel_cost <= high
        and loss_of(other, criterion) - least <= errors * paired_error(other, estimates[best], criterion)
    ]
    return [best, *sorted(alike, key=lambda name: loss_of(estimates[name], criterion))]


def _limits(chosen: Sequence[str], stages: Sequence[Estimates], place: int) -> tuple[float, float]:
    """Least and largest cost that the neighbours of a stage allow."""
    before = stages[place - 1][chosen[place - 1]].rel_cost if place else 0.0
    after = stages[place + 1][chosen[place + 1]].rel_cost if place + 1 < len(chosen) else math.inf
    return before, after
