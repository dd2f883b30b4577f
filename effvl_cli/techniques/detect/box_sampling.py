"""Which proposals are positive, negative or neither, and which of them are trained on.

As in Faster R-CNN (Ren et al., arXiv 1506.01497); boxes to ignore and classes that are not annotated are ours.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler
from torchvision.ops import box_iou

NEITHER = -1
_COVERED = 0.5  # share of a proposal inside an ignored box from which it is no negative


class SeededSampler(BalancedPositiveNegativeSampler):  # type: ignore[misc]
    """torchvision's sampler, drawing from a generator for each image where set, else from the device's own stream."""

    generators: Sequence[torch.Generator] | None = None

    def __call__(self, matched_idxs: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Masks (uint8) of the positives and of the negatives that are trained on.

        Args:
            matched_idxs: for each image (P,): -1 neither, 0 negative, 1 and more positive.
        """
        most = int(self.batch_size_per_image * self.positive_fraction)
        found: tuple[list[Tensor], list[Tensor]] = ([], [])
        generators: Sequence[torch.Generator | None] = self.generators or [None] * len(matched_idxs)
        for labels, generator in zip(matched_idxs, generators, strict=True):
            positive, negative = torch.where(labels >= 1)[0], torch.where(labels == 0)[0]
            num_positive = min(positive.numel(), most)
            num_negative = min(negative.numel(), self.batch_size_per_image - num_positive)
            for group, number, masks in zip((positive, negative), (num_positive, num_negative), found, strict=True):
                mask = torch.zeros_like(labels, dtype=torch.uint8)
                mask[group[_order(group, generator)[:number]]] = 1
                masks.append(mask)
        return found


def _order(group: Tensor, generator: torch.Generator | None) -> Tensor:
    device = group.device if generator is None else generator.device
    return torch.randperm(group.numel(), device=device, generator=generator).to(group.device)


@dataclass(frozen=True)
class Truth:
    """The boxes of an image.

    Attributes:
        boxes: (G, 4) to find.
        labels: (G,) int64.
        ignored: (I, 4), of which nothing is learned.
        labelled: (1 + C,) bool, the classes that the image's source has labels of; None: all.
    """

    boxes: Tensor
    labels: Tensor
    ignored: Tensor
    labelled: Tensor | None = None

    @classmethod
    def of(cls, target: Mapping[str, Tensor], dtype: torch.dtype) -> "Truth":
        """From a training target: boxes (N, 4), labels (N,), and perhaps ignore (N,) bool, labelled (1 + C,) bool."""
        boxes, labels = target["boxes"].to(dtype), target["labels"]
        ignore = target.get("ignore")
        if ignore is None:
            return cls(boxes, labels, boxes[:0], target.get("labelled"))
        return cls(boxes[~ignore], labels[~ignore], boxes[ignore], target.get("labelled"))


def spare_ignored(labels: Tensor, boxes: Tensor, ignored: Tensor) -> Tensor:
    """Labels (P,) with negatives that lie in an ignored box set to -1.

    Args:
        labels: of proposals, 0 for a negative.
        boxes: (P, 4) the proposals.
        ignored: (I, 4).
    """
    if not len(ignored):
        return labels
    corners = torch.min(boxes[:, None, 2:], ignored[:, 2:]) - torch.max(boxes[:, None, :2], ignored[:, :2])
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1).clamp(min=torch.finfo(boxes.dtype).tiny)
    covered = corners.clamp(min=0).prod(2).amax(1) / area >= _COVERED
    return labels.masked_fill(covered & (labels == 0), NEITHER)


def assigned(boxes: Tensor, truth: Truth, fg_iou: float, bg_iou: float) -> tuple[Tensor, Tensor, Tensor]:
    """What each proposal is trained as: the class of its best box from an IoU on, background below another.

    Args:
        boxes: (P, 4) proposals.
        truth: of their image.
        fg_iou: least IoU of a positive.
        bg_iou: a negative has less; in between is neither.

    Returns:
        (P,) label (-1: neither), (P, 4) matched box (zeros where there is none), (P,) best IoU.
    """
    if not len(truth.boxes):
        labels = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
        return spare_ignored(labels, boxes, truth.ignored), torch.zeros_like(boxes), boxes.new_zeros(len(boxes))
    quality, place = box_iou(truth.boxes, boxes).max(0)
    labels = truth.labels[place].masked_fill(quality < fg_iou, NEITHER).masked_fill(quality < bg_iou, 0)
    # What matches nothing is encoded against the first box, as in torchvision; its target is not used.
    matched = truth.boxes[place.masked_fill(quality < fg_iou, 0)]
    return spare_ignored(labels, boxes, truth.ignored), matched, quality


def sampled(labels: Sequence[Tensor], sampler: BalancedPositiveNegativeSampler) -> list[Tensor]:
    """Indices of the proposals of each image that are trained on, ascending."""
    positive, negative = sampler(list(labels))
    return [torch.where(a | b)[0] for a, b in zip(positive, negative, strict=True)]
