"""From results for every image, or from one number for each candidate, to an order of removal.

n candidates, each a unit or a set of units. Direct scores: arXiv 2312.16904; intervals and ties are ours.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from . import statistics
from .choices import Choice
from .outcomes import Outcomes
from .racing import Metric


def measured(
    choices: Sequence[Choice],
    outcomes: Outcomes,
    metric: Metric,
    *,
    by_loss_ties: bool = False,
    savings: Sequence[float] | None = None,
) -> dict[str, Any]:
    """Importance of candidates by direct scoring.

    Args:
        choices: the candidates.
        outcomes: of the network and of each candidate.
        metric: the ranking measure; the other one breaks ties.
        by_loss_ties: whether candidates that top-1 cannot tell from the first are ranked by loss.
        savings: what impacts are divided by; None: nothing.

    Returns:
        `rows`: a mapping for each candidate, as in the report. `order`: indices, least important first; those that a
        race dropped last. `images`: number scored. `images_needed`: number to tell the first two apart.
    """
    by_accuracy, by_loss = _impacts(outcomes)
    finite = [not bool(nan) for nan in outcomes.nan[1:]]
    full = [k for k in range(len(choices)) if outcomes.used[1 + k] == len(outcomes.order)]
    dropped = [k for k in range(len(choices)) if k not in full]
    by_metric = by_accuracy if metric == "top1" else by_loss
    order_full = _rank(choices, outcomes, full, by_accuracy, by_loss, metric, savings, by_loss_ties=by_loss_ties)
    order = [
        *order_full,
        *sorted(dropped, key=lambda k: (-int(outcomes.used[1 + k]), by_metric[k])),
    ]
    tied = statistics.tied_with_best(outcomes.correct[1:].bool(), order[0])
    rows = []
    for k, choice in enumerate(choices):
        used = int(outcomes.used[1 + k])
        own, whole, best = (outcomes.correct[row, :used].bool() for row in (1 + k, 0, 1 + order[0]))
        losses = statistics.loss_interval(outcomes.loss[1 + k, :used], outcomes.loss[0, :used]) if used > 1 else None
        rows.append(
            _row(choice)
            | {
                "importance": _known(by_metric[k]),
                "impact_acc": by_accuracy[k],
                "impact_loss": _known(by_loss[k]),
                "ci95": list(statistics.accuracy_interval(whole, own)),
                "ci95_loss": list(losses) if losses and finite[k] else None,
                "ci95_to_chosen": list(statistics.accuracy_interval(best, own)),
                "tied_with_best": tied[k] and k in full,
                "n_used": used,
                "eliminated_at": None if k in full else used,
                "nan": int(not finite[k]),
            }
        )
    return {
        "rows": rows,
        "order": order,
        "images": int(outcomes.used[0]),
        "images_needed": _images_needed(outcomes.correct[1:].bool(), [k for k in order if k in full]),
    }


def estimated(choices: Sequence[Choice], values: Sequence[float], savings: Sequence[float] | None) -> dict[str, Any]:
    """Importance by a proxy: one number for each candidate, the lowest removed first; the rest as in `measured`."""
    macs, params = [c.macs for c in choices], [c.params for c in choices]
    order = statistics.rank(values, [0.0] * len(values), macs, params, savings)
    unknown = dict.fromkeys(
        (
            *("impact_acc", "impact_loss", "ci95", "ci95_loss", "ci95_to_chosen"),
            *("tied_with_best", "n_used", "eliminated_at", "nan"),
        )
    )
    rows = [_row(c) | {"importance": _known(value)} | unknown for c, value in zip(choices, values, strict=True)]
    return {"rows": rows, "order": order, "images_needed": None, "sharing": None, "reason": ""}


def _row(choice: Choice) -> dict[str, Any]:
    return {"path_original": choice.original, "path": choice.path, "stage": choice.stage}


def _known(value: float) -> float | None:
    """None for NaN and infinities, which JSON does not have."""
    return value if math.isfinite(value) else None


def _images_needed(correct: Tensor, order: Sequence[int]) -> dict[str, int | None] | None:
    """Number of images that would tell the chosen candidate from the next, and that give their gap to half a point."""
    if len(order) < 2:
        return None
    chosen, other = (correct[k] for k in order[:2])
    gap = float(chosen.float().mean() - other.float().mean())
    discordant = float((chosen != other).float().mean())
    return {
        "to_separate": statistics.images_for_power(discordant, gap) if gap else None,
        "to_half_a_point": statistics.images_for_half_width(discordant, 0.005),
    }


def _impacts(outcomes: Outcomes) -> tuple[list[float], list[float]]:
    """Impacts of each candidate, on the images that it was scored on."""
    pairs = []
    for row in range(1, len(outcomes.used)):
        rows, used = torch.tensor([0, row]), int(outcomes.used[row])
        by_accuracy, by_loss = statistics.impacts(outcomes.correct[rows, :used].bool(), outcomes.loss[rows, :used])
        pairs.append((by_accuracy[0], by_loss[0]))
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def _rank(
    choices: Sequence[Choice],
    outcomes: Outcomes,
    chosen: Sequence[int],
    by_accuracy: Sequence[float],
    by_loss: Sequence[float],
    metric: Metric,
    savings: Sequence[float] | None,
    *,
    by_loss_ties: bool,
) -> list[int]:
    """The candidates scored on all images, least important first."""
    accuracy, loss = [by_accuracy[k] for k in chosen], [by_loss[k] for k in chosen]
    impact, other = (accuracy, loss) if metric == "top1" else (loss, accuracy)
    macs, params = [choices[k].macs for k in chosen], [choices[k].params for k in chosen]
    saved = None if savings is None else [savings[k] for k in chosen]
    order = statistics.rank(impact, other, macs, params, saved)
    if by_loss_ties:
        correct = outcomes.correct[torch.tensor([1 + k for k in chosen])].bool()
        order = statistics.break_ties_by_loss(order, statistics.tied_with_best(correct, order[0]), loss)
    return [chosen[k] for k in order]
