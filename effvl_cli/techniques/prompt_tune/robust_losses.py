"""Losses of a classifier that differ in how hard they follow a wrong label.

Each takes logits (B, K) and given labels (B,) and returns the loss of every sample, (B,) float32. p is the softmax of
the logits and y the given label. All work on the logarithm of p, so that logits of any size give finite gradients.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

LossName = Literal["ce", "gce", "mae", "sce", "phuber", "ls", "double-softmax"]
Loss = Callable[[Tensor, Tensor], Tensor]
"""(logits (B, K), labels (B,)) to (B,)."""

SMALLEST_LABEL, SMALLEST_PROBABILITY = 1e-4, 1e-7  # of reverse cross entropy


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-log p_y."""
    return -_log_probability(logits, labels)


def generalized_cross_entropy(logits: Tensor, labels: Tensor, q: float) -> Tensor:
    """(1 - p_y^q) / q (Zhang and Sabuncu, arXiv 1805.07836, eq. 6); cross entropy at q = 0, 1 - p_y at q = 1."""
    log_p = _log_probability(logits, labels)
    return -torch.expm1(q * log_p) / q if q else -log_p


def mean_absolute_error(logits: Tensor, labels: Tensor) -> Tensor:
    """sum_c |p_c - [c = y]| = 2 (1 - p_y) (Ghosh et al., arXiv 1712.09482, sec. 3.3)."""
    return -2 * torch.expm1(_log_probability(logits, labels))


def symmetric_cross_entropy(logits: Tensor, labels: Tensor, alpha: float, beta: float) -> Tensor:
    """alpha CE + beta RCE (Wang et al., arXiv 1908.06112, eq. 7), RCE = -sum_c p_c log [c = y].

    The zeros of the one-hot label become 1e-4 and probabilities are at least 1e-7, as in the authors' code.
    """
    p = _wide(logits).softmax(1).clamp_min(SMALLEST_PROBABILITY)
    return alpha * cross_entropy(logits, labels) - beta * math.log(SMALLEST_LABEL) * _of_others(p, labels)


def partially_huberised(logits: Tensor, labels: Tensor, tau: float) -> Tensor:
    """-log p_y, and its tangent -tau p_y + log tau + 1 where p_y <= 1 / tau (Menon et al., ICLR 2020, eq. 8)."""
    log_p = _log_probability(logits, labels)
    return torch.where(log_p > -math.log(tau), -log_p, math.log(tau) + 1 - tau * log_p.exp())


def label_smoothing(logits: Tensor, labels: Tensor, epsilon: float) -> Tensor:
    """Cross entropy to a target with 1 - epsilon on y and the rest evenly on the other K - 1 classes.

    Szegedy et al. (arXiv 1512.00567, sec. 7) spread epsilon over all K.
    """
    log_p = _wide(logits).log_softmax(1)
    return (1 - epsilon) * cross_entropy(logits, labels) - epsilon / (logits.shape[1] - 1) * _of_others(log_p, labels)


def double_softmax(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy of the probabilities taken as logits: between log(1 + (K - 1) / e) and log(e + K - 1).

    As in DSPT, which tunes prompts under label noise with it.
    """
    return cross_entropy(_wide(logits).softmax(1), labels)


def make_loss(
    name: LossName,
    *,
    gce_q: float = 0.7,
    sce_alpha: float = 0.1,
    sce_beta: float = 1.0,
    phuber_tau: float = 10.0,
    ls_eps: float = 0.1,
) -> Loss:
    """A loss by its name.

    Args:
        name: of the loss.
        gce_q: 0 to 1; 0.7 is the value of arXiv 1805.07836.
        sce_alpha: weight of cross entropy; 0.1 as for CIFAR-10 in arXiv 1908.06112.
        sce_beta: weight of reverse cross entropy.
        phuber_tau: above 1; the loss is linear where p_y is below 1 / tau.
        ls_eps: 0 to 1.
    """
    losses: dict[LossName, Loss] = {
        "ce": cross_entropy,
        "gce": lambda logits, labels: generalized_cross_entropy(logits, labels, gce_q),
        "mae": mean_absolute_error,
        "sce": lambda logits, labels: symmetric_cross_entropy(logits, labels, sce_alpha, sce_beta),
        "phuber": lambda logits, labels: partially_huberised(logits, labels, phuber_tau),
        "ls": lambda logits, labels: label_smoothing(logits, labels, ls_eps),
        "double-softmax": double_softmax,
    }
    return losses[name]


def _log_probability(logits: Tensor, labels: Tensor) -> Tensor:
    """(B,) log p_y."""
    return -F.cross_entropy(_wide(logits), labels, reduction="none")


def _of_others(values: Tensor, labels: Tensor) -> Tensor:
    """Sum over the classes other than y of (B, K), (B,)."""
    return values.scatter(1, labels[:, None], 0.0).sum(1)


def _wide(logits: Tensor) -> Tensor:
    """In float32, or float64 as they are."""
    return logits if logits.dtype == torch.float64 else logits.float()
