"""InfoNCE with several positives for each query: q embeddings (B, D), one key of their own, N keys of a queue.

Miech et al., arXiv 1912.06430, eq. 1 (MIL-NCE, the sum inside the logarithm), as in the released code of CoCLR (Han et
al., arXiv 2010.09709) and of CPR (arXiv 2201.07989); UberNCE of CoCLR, eq. 2 (the mean over positives).
"""

import torch
from torch import Tensor


def similarity_logits(queries: Tensor, own: Tensor, bank: Tensor, temperature: float) -> Tensor:
    """(B, 1 + N): each query with its own key (B, D) in column 0, then with the queue (N, D), over the temperature."""
    return torch.cat([(queries * own).sum(1, keepdim=True), queries @ bank.T], dim=1) / temperature


def mil_nce(logits: Tensor, positive: Tensor, weight: Tensor | None = None) -> Tensor:
    """-log of the share of the positives, as a difference of two log-sums, which is finite for logits of any size.

    Args:
        logits: (B, 1 + N); -inf leaves a column out.
        positive: (B, 1 + N) bool, at least one in each row.
        weight: (B, 1 + N) factors of the positives inside their sum, above 0; None: 1.

    Returns:
        (B,) losses.
    """
    kept = logits if weight is None else logits + weight.log()
    return logits.logsumexp(1) - kept.masked_fill(~positive, -torch.inf).logsumexp(1)


def per_positive_nce(logits: Tensor, positive: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean over the positives of -log of the share of each; arguments and result as those of `mil_nce`."""
    share = positive.to(logits.dtype) if weight is None else positive * weight
    losses = (logits.logsumexp(1, keepdim=True) - logits).masked_fill(~positive, 0.0)
    return (losses * share).sum(1) / share.sum(1)


LOSSES = {"milnce": mil_nce, "pernce": per_positive_nce}


def without_own(positive: Tensor) -> Tensor:
    """(B, 1 + N) positives without column 0, where a row has others.

    Dropping the own key most of the time is what made CoCLR's results repeatable (its issue 43).
    """
    kept = positive.clone()
    kept[:, 0] &= ~positive[:, 1:].any(1)
    return kept
