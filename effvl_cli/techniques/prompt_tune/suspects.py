"""Which labels look wrong, judged by a classifier that did not see them. N images, K classes."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

Predict = Callable[[Tensor], Tensor]
"""Rows (n,) to logits (n, K)."""


@dataclass(frozen=True)
class Suspects:
    """How wrong each label looks.

    Attributes:
        suspicion: (N,) float64, log of (probability of the likeliest other label / of the given one); above 0 the
            classifier would say otherwise.
        order: (N,) rows, the most suspect first.
        suggested: (N,) the likeliest label.
        probability: (N,) float64, of the suggested label.
        given_probability: (N,) float64, of the given label.
    """

    suspicion: Tensor
    order: Tensor
    suggested: Tensor
    probability: Tensor
    given_probability: Tensor


def folds(labels: Tensor, num_folds: int, generator: Generator) -> Tensor:
    """(N,) fold of each image: drawn, with every class spread evenly over the folds."""
    shuffled = torch.randperm(len(labels), generator=generator)
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    found = torch.empty_like(labels)
    found[by_class] = torch.arange(len(labels)) % num_folds
    return found


def out_of_sample(fold: Tensor, fit: Callable[[Tensor, int], Predict]) -> Tensor:
    """Logits (N, K) of each image by a classifier fitted on the other folds (Northcutt et al., arXiv 1911.00068).

    Args:
        fold: (N,) of each image.
        fit: from training rows and the number of the fold that is left out.
    """
    rows, logits = [], []
    for number in fold.unique().tolist():
        held = (fold == number).nonzero()[:, 0]
        rows.append(held)
        logits.append(fit((fold != number).nonzero()[:, 0], number)(held).detach().cpu().double())
    return torch.cat(logits)[torch.cat(rows).argsort()]


def suspects(logits: Tensor, given: Tensor) -> Suspects:
    """Rank labels by the margin of the likeliest other one, ties in order.

    Ours; in probabilities it is the order of cleanlab's `normalized_margin` with a ratio for a difference.

    Args:
        logits: (N, K), scale included, of classifiers that did not see the image.
        given: (N,) labels.
    """
    log_p = logits.double().log_softmax(1)
    own = log_p.gather(1, given[:, None])[:, 0]
    other = log_p.scatter(1, given[:, None], float("-inf")).max(1).values
    suspicion = other - own
    best, suggested = log_p.max(1)
    order = suspicion.argsort(descending=True, stable=True)
    return Suspects(suspicion, order, suggested, best.exp(), own.exp())


def auroc(scores: Tensor, positive: Tensor) -> float | None:
    """Probability that a positive scores above a negative, half for equal scores (Mann and Whitney, 1947).

    Args:
        scores: (N,).
        positive: (N,) bool.

    Returns:
        None where all or none are positive.
    """
    num_positive = int(positive.sum())
    num_pairs = num_positive * (len(positive) - num_positive)
    if not num_pairs:
        return None
    _, place, count = scores.double().unique(return_inverse=True, return_counts=True)
    middle_rank = count.cumsum(0).double() - (count.double() - 1) / 2  # from 1
    total = float(middle_rank[place][positive].sum())
    return (total - num_positive * (num_positive + 1) / 2) / num_pairs


def precision_at(order: Tensor, positive: Tensor, count: int) -> float | None:
    """Share of positives among the first `count` rows of an order (N,); None for none."""
    return float(positive[order[:count]].double().mean()) if count else None
