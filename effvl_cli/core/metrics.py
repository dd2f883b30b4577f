"""Accuracy figures and their spread."""

import math

from torch import Tensor

Z95 = 1.959963984540054


def standard_error(values: Tensor) -> float:
    """Standard error of the mean: sample standard deviation (n-1) / sqrt(n); 0 for a single value.

    Args:
        values: (n,) numbers, 0/1 for an accuracy.
    """
    if len(values) < 2:
        return 0.0
    return float(values.double().std(correction=1)) / math.sqrt(len(values))


def binomial_error(share: float | None, n: int | None) -> float | None:
    """`standard_error` of an accuracy over n samples, where only the accuracy is known; None without it."""
    if share is None or not n:
        return None
    return math.sqrt(share * (1 - share) / (n - 1)) if n > 1 else 0.0


def paired_difference(a: Tensor, b: Tensor) -> tuple[float, float]:
    """Mean of a - b over the same samples, and its standard error.

    Args:
        a: (n,) 0/1.
        b: (n,) 0/1, the same samples.
    """
    difference = a.double() - b.double()
    return float(difference.mean()), standard_error(difference)


def mcnemar(a: Tensor, b: Tensor) -> tuple[int, int]:
    """How often only `a` is right, and how often only `b` is."""
    a, b = a.bool(), b.bool()
    return int((a & ~b).sum()), int((b & ~a).sum())


def wilson(correct: int, n: int) -> tuple[float, float]:
    """95 % Wilson score interval of a proportion; (0, 1) without samples."""
    if n == 0:
        return 0.0, 1.0
    share, z2 = correct / n, Z95**2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def top_k(logits: Tensor, labels: Tensor, k: int) -> Tensor:
    """(n,) 0/1: whether the label is among the k largest logits (n, C)."""
    k = min(k, logits.shape[1])
    return (logits.topk(k, dim=1).indices == labels[:, None]).any(1).float()


def mean_per_class(correct: Tensor, labels: Tensor) -> float:
    """Mean over the classes that occur of the mean of their samples.

    Args:
        correct: (n,) 0/1.
        labels: (n,) int64.
    """
    _, inverse, counts = labels.unique(return_inverse=True, return_counts=True)
    sums = counts.new_zeros(len(counts)).double().index_add(0, inverse, correct.double())
    return float((sums / counts).mean())


def macro_f1(predicted: Tensor, labels: Tensor) -> float:
    """Mean over the classes that occur in the labels of the harmonic mean of precision and recall.

    Args:
        predicted: (n,) int64.
        labels: (n,) int64.
    """
    num_classes = int(max(predicted.max(), labels.max())) + 1
    right = labels[predicted == labels].bincount(minlength=num_classes).double()
    called, there = (values.bincount(minlength=num_classes).double() for values in (predicted, labels))
    return float((2 * right / (called + there).clamp_min(1))[there > 0].mean())


def calibration_error(probabilities: Tensor, labels: Tensor, bins: int) -> float:
    """Expected calibration error with bins of equal width (Guo et al., arXiv 1706.04599, eq. 5).

    Args:
        probabilities: (n, C).
        labels: (n,) int64.
        bins: of the largest probability, each without its lower and with its upper end.
    """
    confidence, predicted = probabilities.double().max(1)
    place = ((confidence * bins).ceil().long() - 1).clamp(0, bins - 1)
    gap = (predicted == labels).double() - confidence
    return float(gap.new_zeros(bins).index_add(0, place, gap).abs().sum() / len(labels))
