"""Which patches stay: the highest scores, or high ones that are not alike, by maximal marginal relevance.

Of the latter: Carbonell and Goldstein, SIGIR 1998; it stands for the determinantal choice of arXiv 2506.10967.
Shapes: B images, N patches, K kept, d numbers that patches are compared by.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


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


def diverse_indices(scores: Tensor, vectors: Tensor, count: int, weight: float) -> Tensor:
    """Patch ids chosen one by one: each has the best of its score less `weight` times its likeness to those before.

    Scores are scaled to mean 0 and variance 1 in each image; likeness is the largest cosine, or 0 if that is negative.
    With a weight of 0 these are the highest scores, see `keep_indices`.

    Args:
        scores: (B, N).
        vectors: (B, N, d).
        count: K.
        weight: not negative.

    Returns:
        (B, K) int64, ascending in each row.
    """
    if weight == 0:
        return keep_indices(scores, count)
    worth = scores.float() - scores.float().mean(1, keepdim=True)
    worth = worth / worth.square().mean(1, keepdim=True).sqrt().clamp(min=torch.finfo(worth.dtype).tiny)
    unit = F.normalize(vectors.float(), dim=-1)
    like = torch.zeros_like(worth)
    rows = torch.arange(scores.shape[0], device=scores.device)
    chosen = []
    for _ in range(count):
        pick = (worth - weight * like).argmax(1)
        chosen.append(pick)
        worth = worth.scatter(1, pick[:, None], -torch.inf)
        like = torch.maximum(like, (unit @ unit[rows, pick][..., None])[..., 0])
    return torch.stack(chosen, 1).sort(dim=1).values
