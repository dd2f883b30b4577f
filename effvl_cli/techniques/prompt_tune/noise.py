"""Models of label noise: from true labels to given ones.

All draws come from a generator that is passed in; drawn with a fresh generator of one seed, the samples flipped at a
low rate are among those flipped at a higher one. Labels are (N,) int64 from 0 to K - 1, on the CPU. Counts are exact:
a share r of a class of n samples is floor(r n + 1/2) of them.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Generator, Tensor

Pick = Literal["random", "hardest"]


class TooFewDonorsError(ValueError):
    """Too few images of other classes are left for one.

    Attributes:
        label: the class.
        needed: images of others that it needs.
        left: those that are left.
    """

    def __init__(self, label: int, needed: int, left: int) -> None:
        super().__init__(f"class {label} needs {needed} images of other classes, and {left} are left")
        self.label, self.needed, self.left = label, needed, left


def share_of(rate: float, count: int) -> int:
    """floor(rate * count + 1/2)."""
    return math.floor(rate * count + 0.5)


def symmetric(labels: Tensor, num_classes: int, rate: float, generator: Generator) -> Tensor:
    """A share of every class gets labels uniform over the other K - 1 classes (Patrini et al., arXiv 1609.03683)."""
    others = _other_class(labels, num_classes, generator)
    return _replaced(labels, others, _of_every_class(labels, num_classes, rate, generator))


def pair(labels: Tensor, num_classes: int, rate: float, generator: Generator) -> Tensor:
    """A share of every class c gets label c + 1 modulo K (Han et al., arXiv 1804.06872, "pair flipping")."""
    return _replaced(labels, (labels + 1) % num_classes, _of_every_class(labels, num_classes, rate, generator))


def confusion(labels: Tensor, logits: Tensor, rate: float, generator: Generator, pick: Pick = "random") -> Tensor:
    """A share of every class gets the most probable wrong class of a classifier, as arXiv 2307.11978 does with CLIP.

    Args:
        labels: (N,).
        logits: (N, K) of the classifier.
        rate: share of each class.
        generator: draws which samples, for `random`.
        pick: any samples of the class, or those whose wrong class is the most probable (ties: the first).
    """
    num_classes = logits.shape[1]
    wrong = logits.scatter(1, labels[:, None], float("-inf")).argmax(1)
    if pick == "random":
        return _replaced(labels, wrong, _of_every_class(labels, num_classes, rate, generator))
    confidence = logits.double().softmax(1).gather(1, wrong[:, None])[:, 0]

    def hardest(rows: Tensor) -> Tensor:
        return rows[confidence[rows].argsort(descending=True, stable=True)]

    return _replaced(labels, wrong, _of_every_class(labels, num_classes, rate, generator, hardest))


def by_matrix(labels: Tensor, matrix: Tensor, generator: Generator) -> Tensor:
    """Samples of class c get label j in the share matrix[c, j]; counts by largest remainder, ties to the lower class.

    Args:
        labels: (N,).
        matrix: (K, K), rows of nonnegative numbers that sum to 1.
        generator: draws which samples.
    """
    given = labels.clone()
    for label, shares in enumerate(matrix.double()):
        rows = _shuffled(_rows_of(labels, label), generator)
        given[rows] = torch.arange(len(shares)).repeat_interleave(allocate(shares, len(rows)))
    return given


def allocate(shares: Tensor, count: int) -> Tensor:
    """Whole numbers (K,) that sum to `count`, nearest to count * shares (K,): largest remainder, ties to the first."""
    exact = shares.double() * count
    whole = (exact + 1e-6).floor()
    missing = count - int(whole.sum())
    largest = (exact - whole).round(decimals=6).argsort(descending=True, stable=True)
    whole[largest[:missing]] += 1
    return whole.long()


def global_symmetric(labels: Tensor, num_classes: int, rate: float, generator: Generator) -> Tensor:
    """floor(rate N) samples of any class get labels uniform over the others (Pan et al., arXiv 2412.01256)."""
    others = _other_class(labels, num_classes, generator)
    return _replaced(labels, others, _of_all(labels, rate, generator))


def global_pair(labels: Tensor, num_classes: int, rate: float, generator: Generator) -> Tensor:
    """floor(rate N) samples of any class c get label c + 1 modulo K (Pan et al., arXiv 2412.01256)."""
    return _replaced(labels, (labels + 1) % num_classes, _of_all(labels, rate, generator))


def pools(labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Positions of the first ceil(n / 2) samples of every class, and of the others, in order.

    The division of arXiv 2307.11978's official code: images that replace others come from the second.
    """
    first = torch.zeros(len(labels), dtype=torch.bool)
    for label in range(num_classes):
        rows = _rows_of(labels, label)
        first[rows[: (len(rows) + 1) // 2]] = True
    return first.nonzero()[:, 0], (~first).nonzero()[:, 0]


def false_positives(
    labels: Tensor, clean: Tensor, donors: Tensor, num_classes: int, rate: float, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Replace a share of every class's images by images of other classes, which keep the label of those they replace.

    As in the official code of arXiv 2307.11978, but no image is used twice.

    Args:
        labels: (M,) true labels of all images.
        clean: positions of the chosen images, those of a class in the order in which they are replaced.
        donors: positions of the images that may replace them.
        num_classes: K.
        rate: share of each class.
        generator: draws the donors.

    Returns:
        Positions (N,) and given labels (N,), class by class.

    Raises:
        TooFewDonorsError: too few of other classes are left for a class.
    """
    used = torch.zeros(len(labels), dtype=torch.bool)
    positions, given = [], []
    for label in range(num_classes):
        own = clean[labels[clean] == label]
        count = share_of(rate, len(own))
        eligible = donors[(labels[donors] != label) & ~used[donors]]
        if len(eligible) < count:
            raise TooFewDonorsError(label, count, len(eligible))
        replacing = _shuffled(eligible, generator)[:count]
        used[replacing] = True
        positions.append(torch.cat([replacing, own[count:]]))
        given.append(torch.full((len(own),), label))
    return torch.cat(positions), torch.cat(given)


def transition_counts(clean: Tensor, given: Tensor, num_classes: int) -> Tensor:
    """(K, K) int64: samples of true class c (row) with given label j (column)."""
    return torch.bincount(clean * num_classes + given, minlength=num_classes**2).reshape(num_classes, num_classes)


def transition_matrix(clean: Tensor, given: Tensor, num_classes: int) -> Tensor:
    """(K, K) float64 shares of given labels among the samples of each true class; a class without any: zeros."""
    counts = transition_counts(clean, given, num_classes).double()
    return counts / counts.sum(1, keepdim=True).clamp_min(1)


def symmetric_transition(num_classes: int, rate: float) -> Tensor:
    """(K, K) float64, (1 - r) I + r / (K - 1) (1 - I): what `symmetric` realises on average."""
    matrix = torch.full((num_classes, num_classes), rate / (num_classes - 1), dtype=torch.float64)
    return matrix.fill_diagonal_(1 - rate)


def pair_transition(num_classes: int, rate: float) -> Tensor:
    """(K, K) float64, (1 - r) I + r times the cyclic shift: what `pair` realises."""
    unit = torch.eye(num_classes, dtype=torch.float64)
    return (1 - rate) * unit + rate * unit.roll(1, dims=1)


def _other_class(labels: Tensor, num_classes: int, generator: Generator) -> Tensor:
    """(N,) labels uniform over the classes other than their own."""
    return (labels + torch.randint(1, num_classes, labels.shape, generator=generator)) % num_classes


def _of_every_class(
    labels: Tensor,
    num_classes: int,
    rate: float,
    generator: Generator,
    order: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Rows of a share of every class: the first in the given order, else drawn."""
    chosen = []
    for label in range(num_classes):
        rows = _rows_of(labels, label)
        ordered = order(rows) if order else _shuffled(rows, generator)
        chosen.append(ordered[: share_of(rate, len(rows))])
    return torch.cat(chosen)


def _of_all(labels: Tensor, rate: float, generator: Generator) -> Tensor:
    count = math.floor(rate * len(labels) + 1e-9)
    return torch.randperm(len(labels), generator=generator)[:count]


def _replaced(labels: Tensor, wrong: Tensor, rows: Tensor) -> Tensor:
    given = labels.clone()
    given[rows] = wrong[rows]
    return given


def _rows_of(labels: Tensor, label: int) -> Tensor:
    return (labels == label).nonzero()[:, 0]


def _shuffled(rows: Tensor, generator: Generator) -> Tensor:
    return rows[torch.randperm(len(rows), generator=generator)]
