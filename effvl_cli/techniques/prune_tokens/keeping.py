"""Which patches stay: the highest scores, or those that together stand best for all patches, weighted by the scores.

Of the latter: the greedy choice of facility location (Nemhauser, Wolsey and Fisher, Mathematical Programming 1978),
which suits patches that are merged into the most similar kept one; it stands for the determinantal choice of arXiv
2506.10967. Shapes: B images, N patches, K kept, d numbers that patches are compared by.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

LEAST_DIVERSITY = 0.1  # below it scores / diversity vanish in float32


def keep_indices(scores: Tensor, count: int) -> Tensor:
    """Patch ids of the `count` highest scores; equal scores keep the lowest ids.

    Args:
        scores: (B, N).
        count: K.

    Returns:
        (B, K) int64, ascending in each row, so that the raster order of the patches stays.
    """
    # topk does not define which of several equal scores it takes; a stable sort does.
    return scores.argsort(dim=1, descending=True, stable=True)[:, :count].sort(dim=1).values


def check_diversity(diversity: float) -> None:
    """Raise ValueError if it is neither 0 nor at least `LEAST_DIVERSITY` and finite."""
    if diversity != 0 and not LEAST_DIVERSITY <= diversity < math.inf:
        raise ValueError(f"diversity is {diversity}, and must be 0 or at least {LEAST_DIVERSITY}")


def diverse_indices(scores: Tensor, vectors: Tensor, count: int, diversity: float) -> Tensor:
    """Patch ids chosen one by one, each that by which the kept ones cover all patches best.

    A patch is covered as well as its largest cosine to a kept one says, and counts by softmax(score / diversity) of the
    scores scaled to mean 0 and variance 1 in each image. The smaller the diversity, the more the highest scores alone
    count: 0 is `keep_indices`. The larger, the less the scores matter. Of patches that cover equally well the one with
    the highest score is taken.

    Args:
        scores: (B, N).
        vectors: (B, N, d).
        count: K.
        diversity: 0, or at least `LEAST_DIVERSITY`.

    Returns:
        (B, K) int64, ascending in each row.

    Raises:
        ValueError: the diversity is out of range.
    """
    check_diversity(diversity)
    if diversity == 0:
        return keep_indices(scores, count)
    rows = torch.arange(scores.shape[0], device=scores.device)
    order = scores.argsort(dim=1, descending=True, stable=True)  # argmax takes the first of equals
    worth = scores.float().gather(1, order)
    worth = worth - worth.mean(1, keepdim=True)
    worth = worth / worth.square().mean(1, keepdim=True).sqrt().clamp(min=torch.finfo(worth.dtype).tiny)
    weights = (worth / diversity).softmax(1)[..., None]
    unit = F.normalize(vectors.float()[rows[:, None], order], dim=-1)
    alike = unit @ unit.transpose(1, 2)
    covered = torch.full_like(alike[:, :1], -1.0)
    taken = torch.zeros_like(worth)
    chosen = []
    for _ in range(count):
        gain = ((alike - covered).relu() @ weights)[..., 0]
        pick = (gain + taken).argmax(1)
        chosen.append(pick)
        taken = taken.scatter(1, pick[:, None], -torch.inf)
        covered = torch.maximum(covered, alike[rows, pick][:, None])
    return order.gather(1, torch.stack(chosen, 1)).sort(dim=1).values
