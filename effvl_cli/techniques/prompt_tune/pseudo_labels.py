"""Training images chosen by what zero-shot CLIP thinks that they show. M images, K classes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor

Select = Literal["topk", "random", "random-global", "threshold"]


@dataclass(frozen=True)
class PseudoLabels:
    """Chosen images.

    Attributes:
        rows: (N,) int64, sorted.
        labels: (N,) predicted classes.
        confidence: (N,) float64 probability of the predicted class.
    """

    rows: Tensor
    labels: Tensor
    confidence: Tensor

    def per_class(self, num_classes: int) -> Tensor:
        """(K,) how many images each class has."""
        return torch.bincount(self.labels, minlength=num_classes)


def averaged(logits: Sequence[Tensor]) -> Tensor:
    """Mean of the logits (M, K), scale included, of several models, as UPL does (Huang et al., arXiv 2204.03649)."""
    return torch.stack([part.double() for part in logits]).mean(0)


def pseudo_labels(logits: Tensor, select: Select, num_select: int, tau: float, generator: Generator) -> PseudoLabels:
    """Predictions of some images, chosen by their predicted class or their confidence.

    - `topk`: the most confident of each predicted class (UPL, arXiv 2204.03649, sec. 3.2); ties to the first.
    - `random`: of each predicted class, drawn (robust UPL, arXiv 2307.11978, sec. 5).
    - `random-global`: as many in all, drawn from all images.
    - `threshold`: all with a confidence above tau.

    A class predicted for fewer images contributes those.

    Args:
        logits: (M, K), scale included.
        select: which.
        num_select: images for each class.
        tau: of `threshold`.
        generator: draws; on the CPU.
    """
    confidence, labels = logits.double().cpu().softmax(1).max(1)
    if select == "threshold":
        rows = (confidence > tau).nonzero()[:, 0]
    elif select == "random-global":
        rows = torch.randperm(len(labels), generator=generator)[: num_select * logits.shape[1]]
    else:
        order = torch.randperm(len(labels), generator=generator)
        if select == "topk":
            order = confidence.argsort(descending=True, stable=True)
        ordered = labels[order]
        rows = torch.cat([order[ordered == label][:num_select] for label in range(logits.shape[1])])
    rows = rows.sort().values
    return PseudoLabels(rows, labels[rows], confidence[rows])
