"""Subclasses: each class of the data ("parent") is learned as one class for every condition ("child").

Wu et al., arXiv 1910.06573, give objects by day and by night different labels; how their scores become one again they
do not say. Column 0 is background everywhere. C parents, S conditions (day, night), n children, R rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Merge = Literal["max", "sum", "gated"]
MERGES: tuple[Merge, ...] = ("max", "sum", "gated")
NO_CONDITION = -1


def parents_of(num_classes: int, conditions: int = 2, present: Tensor | None = None) -> list[int]:
    """The parent of each output.

    Args:
        num_classes: C.
        conditions: S; 1 for no subclasses.
        present: (S, C) bool, children that are learned; None: all. A parent without any keeps its first.

    Returns:
        1 + n numbers, e.g. [0, 1, 2, 1, 2] for two classes by day and night.
    """
    return [0, *(label + 1 for _, label in _children(num_classes, conditions, present))]


def conditions_of(num_classes: int, conditions: int = 2, present: Tensor | None = None) -> list[int]:
    """The condition of each output, in the order of `parents_of`: 1 + n numbers.

    Background has none (-1), and so has every output where S = 1.
    """
    found = [condition for condition, _ in _children(num_classes, conditions, present)]
    return [NO_CONDITION, *(found if conditions > 1 else [NO_CONDITION] * len(found))]


def child_labels(
    labels: Tensor, night: int, num_classes: int, present: Tensor | None = None, conditions: int = 2
) -> Tensor:
    """Training labels of the boxes of a frame.

    Args:
        labels: (N,) int64 in 0..C.
        night: the frame's condition, 0 to S - 1: whether it is a frame of the night.
        num_classes: C.
        present: (S, C) bool as for `parents_of`. Where the child is not learned, its parent's first one is the label.
        conditions: S.

    Returns:
        (N,) int64 in 0..n.
    """
    found = _children(num_classes, conditions, present)
    columns = list(range(num_classes + 1))
    for label in range(num_classes):
        own = {condition: k for k, (condition, parent) in enumerate(found, start=1) if parent == label}
        columns[label + 1] = own.get(int(night), next(iter(own.values())))
    return torch.tensor(columns, device=labels.device)[labels]


def _children(num_classes: int, conditions: int, present: Tensor | None) -> list[tuple[int, int]]:
    """Condition and class, both from 0, of the outputs beside background; at least one of every class."""
    kept = [[True] * num_classes] * conditions if present is None else present.bool().tolist()
    alone = [not any(own) for own in zip(*kept, strict=True)]
    return [
        (condition, label)
        for condition in range(conditions)
        for label in range(num_classes)
        if kept[condition][label] or (condition == 0 and alone[label])
    ]


@dataclass(frozen=True)
class Children:
    """The columns of each parent, padded to the largest number of children.

    Attributes:
        columns: (1 + C, S) int64; a parent with fewer children repeats its first.
        real: (1 + C, S) bool, false where one is repeated.
    """

    columns: Tensor
    real: Tensor

    @classmethod
    def of(cls, parents: Sequence[int]) -> "Children":
        """From the parent of each column."""
        lists: list[list[int]] = [[] for _ in range(max(parents) + 1)]
        for column, parent in enumerate(parents):
            lists[parent].append(column)
        widest = max(map(len, lists))
        columns = [found + found[:1] * (widest - len(found)) for found in lists]
        real = [[k < len(found) for k in range(widest)] for found in lists]
        return cls(torch.tensor(columns), torch.tensor(real))

    def to(self, device: torch.device) -> "Children":
        """The same on a device."""
        return Children(self.columns.to(device), self.real.to(device))

    def merged(self, probabilities: Tensor, how: Merge, allowed: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Scores of parents and the column of the best child of each: see `merge`.

        Returns:
            (R, 1 + C) float and (R, 1 + C) int64.
        """
        if self.columns.shape[1] == 1:
            return probabilities[:, self.columns[:, 0]], self.columns[:, 0].expand(len(probabilities), -1)
        own = probabilities[:, self.columns]
        if how == "gated" and allowed is not None:
            own = _gated(own, allowed.expand_as(probabilities)[:, self.columns])
        largest, place = own.max(-1)
        best = self.columns.expand(len(own), -1, -1).gather(-1, place[..., None])[..., 0]
        return ((own * self.real).sum(-1) if how == "sum" else largest), best


def _gated(own: Tensor, allowed: Tensor) -> Tensor:
    """Scores of children with those of another condition out of the way, where one of this condition is left."""
    return own.masked_fill(~allowed & allowed.any(-1, keepdim=True), -1.0)


def merge(probabilities: Tensor, parents: Tensor, how: Merge, columns: Tensor | None = None) -> Tensor:
    """Scores of the data's classes from those of their children.

    `max` keeps the larger one, which with shared boxes is what relabelling children and NMS for each parent gives;
    `sum` is the probability of the parent under the softmax, and better at dusk; `gated` uses the children of the
    frame's condition only. Nothing is normalised again; column 0 stays as it is.

    Args:
        probabilities: (R, 1 + n).
        parents: (1 + n,) int64, each of 0..C at least once.
        how: one of the three.
        columns: (1 + n,) or (R, 1 + n) bool, the columns that `gated` may use; a parent without any uses all of its
            own. None: as `max`.

    Returns:
        (R, 1 + C).
    """
    children = Children.of(parents.tolist()).to(probabilities.device)
    return children.merged(probabilities, how, columns)[0]
