"""Classifiers of image features that read no text, to compare tuned prompts with."""

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

INIT_STD = 0.02
CHUNK = 1024  # images whose affinities are in memory at once


class UnitClassifier(nn.Module):
    """Class features that are trained themselves, in place of a text tower's (arXiv 2307.11978, sec. 4.2).

    Args:
        weight: (K, D) initial values: `random_weight`, or zero-shot class features.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().float().clone())

    def forward(self) -> Tensor:
        """(K, D) class features of unit norm."""
        return F.normalize(self.weight, dim=1)


def random_weight(num_classes: int, width: int, generator: Generator) -> Tensor:
    """(K, D) from N(0, 0.02^2), as CoOp draws its context (Zhou et al., arXiv 2109.01134)."""
    return INIT_STD * torch.randn(num_classes, width, generator=generator)


def tip_adapter(
    features: Tensor, zero_shot: Tensor, keys: Tensor, labels: Tensor, *, alpha: float = 1.0, beta: float = 5.5
) -> Tensor:
    """Zero-shot logits plus votes of stored images: Tip-Adapter without training (Zhang et al., arXiv 2111.03930).

    Its eqs. 3 to 6: z + alpha exp(-beta (1 - f F^T)) L, with the given labels in L, wrong ones too.

    Args:
        features: (M, D), unit norm.
        zero_shot: (M, K) logits z, scale included.
        keys: (N, D) features F of the training images, unit norm.
        labels: (N,) given.
        alpha: weight of the votes.
        beta: how fast a vote falls with the distance.

    Returns:
        (M, K).
    """
    one_hot = F.one_hot(labels, zero_shot.shape[1]).to(features.dtype)
    votes = [torch.exp(-beta * (1 - part @ keys.T)) @ one_hot for part in features.split(CHUNK)]
    return zero_shot + alpha * torch.cat(votes)
