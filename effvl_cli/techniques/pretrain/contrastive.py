"""Image-text contrastive loss with several positives. B images, T texts, E embedding width."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .precision import full


def contrastive_loss(images: Tensor, texts: Tensor, scale: Tensor, positives: Tensor) -> Tensor:
    """Symmetric InfoNCE of CLIP (Radford et al., arXiv 2103.00020), for any pattern of positives.

    With one positive per row and column it is CLIP's loss. With several, the target of a row is uniform over its
    positives, as in the supervised contrastive loss (Khosla et al., arXiv 2004.11362). A text without an image
    in the batch has no row of its own but is still a negative for every image.

    Args:
        images: (B, E), unit norm.
        texts: (T, E), unit norm.
        scale: scalar tau that multiplies the cosines.
        positives: (B, T) bool; every image has at least one.

    Returns:
        Scalar, the mean of the two directions.
    """
    logits = scale * images @ texts.T
    present = positives.any(0)
    return (_soft_cross_entropy(logits, positives) + _soft_cross_entropy(logits.T[present], positives.T[present])) / 2


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Normalised temperature-scaled cross entropy of SimCLR (Chen et al., arXiv 2002.05709, eq. 1), both directions.

    Args:
        first: (B, E), one view of each image.
        second: (B, E), the other.
        temperature: T.

    Returns:
        Scalar, the mean over the 2B anchors; each has one positive and 2B - 2 negatives.
    """
    embeddings = F.normalize(full(torch.cat([first, second])), dim=1)
    logits = embeddings @ embeddings.T / temperature
    logits.fill_diagonal_(float("-inf"))
    count = len(first)
    positives = torch.arange(2 * count, device=logits.device).roll(count)
    return F.cross_entropy(logits, positives)


def info_nce(queries: Tensor, keys: Tensor, temperature: float) -> Tensor:
    """InfoNCE (van den Oord et al., arXiv 1807.03748): key i is query i's positive, the others its negatives.

    Args:
        queries: (B, E).
        keys: (B, E).
        temperature: T.
    """
    logits = F.normalize(full(queries), dim=1) @ F.normalize(full(keys), dim=1).T / temperature
    return F.cross_entropy(logits, torch.arange(len(logits), device=logits.device))


def _soft_cross_entropy(logits: Tensor, positives: Tensor) -> Tensor:
    """Logits (N, M) and which of them are right, (N, M) 0/1, to the mean over rows, a scalar."""
    target = positives.to(logits.dtype)
    return F.cross_entropy(logits, target / target.sum(1, keepdim=True))
