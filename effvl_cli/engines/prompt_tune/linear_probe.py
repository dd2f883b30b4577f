"""Logistic regression on image features by scikit-learn: fixed penalty, and a search for it on validation images."""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

MAX_ITERATIONS, TOLERANCE = 1000, 1e-4
ABSENT = -1e4  # bias of a class without training images
COARSE = (1e6, 1e4, 1e2, 1.0, 1e-2, 1e-4, 1e-6)
BISECTIONS = 8


@dataclass(frozen=True)
class Probe:
    """A fitted classifier: logits = features @ weight.T + bias.

    Attributes:
        weight: (K, D) float32.
        bias: (K,) float32.
        c: inverse strength of the penalty.
        converged: whether the solver stopped before its last iteration.
    """

    weight: Tensor
    bias: Tensor
    c: float
    converged: bool

    def logits(self, features: Tensor) -> Tensor:
        """(M, K) of features (M, D) as they were fitted, unnormalised."""
        return features.float() @ self.weight.T + self.bias


def linear_probe(features: Tensor, labels: Tensor, num_classes: int, c: float = 1e3) -> Probe:
    """Minimise sum CE + |W|^2 / (2 C) with a free bias, by LBFGS in at most 1,000 iterations.

    The linear probe of arXiv 2307.11978's code. A class without an image is never predicted.

    Args:
        features: (N, D), unnormalised.
        labels: (N,) given.
        num_classes: K.
        c: inverse strength of the penalty.
    """
    from sklearn.linear_model import LogisticRegression

    present = labels.unique()
    weight, bias = torch.zeros(num_classes, features.shape[1]), torch.full((num_classes,), ABSENT)
    if len(present) < 2:
        bias[present] = 0
        return Probe(weight, bias, c, True)
    model = LogisticRegression(C=c, max_iter=MAX_ITERATIONS, tol=TOLERANCE)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of convergence, which `converged` tells, and of few samples
        model.fit(features.double().numpy(), labels.numpy())
    coefficients, intercept = (torch.from_numpy(np.asarray(part)).float() for part in (model.coef_, model.intercept_))
    if len(present) == 2:  # one row for the difference of the two
        coefficients, intercept = (torch.cat([-part / 2, part / 2]) for part in (coefficients, intercept))
    weight[present], bias[present] = coefficients, intercept
    return Probe(weight, bias, c, int(model.n_iter_.max()) < MAX_ITERATIONS)


def linear_probe_sweep(
    features: Tensor, labels: Tensor, num_classes: int, validation: tuple[Tensor, Tensor]
) -> tuple[Probe, list[dict[str, float]]]:
    """The probe whose penalty is best on validation images, as CoOp's (`lpclip`, arXiv 2109.01134).

    Seven penalties first; then, between a tenth of the best C and ten times it, eight bisections in log C that keep the
    better half (ties: the stronger penalty).

    Args:
        features: (N, D), unnormalised.
        labels: (N,) given.
        num_classes: K.
        validation: features (V, D) and labels (V,).

    Returns:
        The probe, and a row for each C that was tried.
    """
    tried: list[dict[str, float]] = []

    @cache
    def fitted(exponent: float) -> tuple[Probe, float]:
        probe = linear_probe(features, labels, num_classes, 10**exponent)
        top1 = float((probe.logits(validation[0]).argmax(1) == validation[1]).double().mean())
        tried.append({"c": probe.c, "top1_val": top1, "converged": float(probe.converged)})
        return probe, top1

    return fitted(_search(lambda exponent: fitted(exponent)[1], [math.log10(c) for c in COARSE]))[0], tried


def _search(top1: Callable[[float], float], coarse: Sequence[float]) -> float:
    """The exponent chosen; of equal coarse ones the first."""
    best = max(coarse, key=top1)
    low, high = best - 1, best + 1
    for _ in range(BISECTIONS):
        chosen = high if top1(low) < top1(high) else low
        middle = (low + high) / 2
        low, high = (middle, high) if chosen == high else (low, middle)
    return chosen
