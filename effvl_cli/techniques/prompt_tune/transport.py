"""Labels that optimal transport agrees with, to be trusted more than the others. N images, K classes."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

ITERATIONS = 100

Loss = Callable[[Tensor, Tensor], Tensor]
"""(logits (N, K), labels (N,)) to (N,)."""


def transport_plan(logits: Tensor, iterations: int = ITERATIONS) -> Tensor:
    """Softmax probabilities brought to the same mass for every image and for every class, by Sinkhorn's iterations.

    That is the plan Q with row sums 1 / N and column sums 1 / K that minimises <-log p, Q> minus its entropy, as in
    NLPrompt (Pan et al., arXiv 2412.01256) with a regularisation of 1; computed in logarithms.

    Args:
        logits: (N, K), scale included.
        iterations: of both marginals.

    Returns:
        (N, K) float64; its columns are exact, its rows up to convergence.
    """
    plan = logits.double().log_softmax(1)
    num_images, num_classes = plan.shape
    for _ in range(iterations):
        plan = plan - plan.logsumexp(1, keepdim=True) - math.log(num_images)
        plan = plan - plan.logsumexp(0, keepdim=True) - math.log(num_classes)
    return plan.exp()


def trusted_labels(logits: Tensor, given: Tensor) -> Tensor:
    """(N,) bool: whether an image's largest entry of the plan is its given label.

    Args:
        logits: (N, K) of class features that have not seen the labels.
        given: (N,).
    """
    return transport_plan(logits).argmax(1) == given


def split_loss(loss: Loss, other: Loss, trusted: Tensor) -> Loss:
    """`loss` of trusted samples (N,), `other` of the rest."""
    return lambda logits, labels: torch.where(trusted, loss(logits, labels), other(logits, labels))
