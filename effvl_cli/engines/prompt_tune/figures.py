"""Figures of a method from its logits."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from effvl_cli.core.metrics import calibration_error, macro_f1, mean_per_class, paired_difference, standard_error, top_k
from effvl_cli.engines.prompt_tune.noisy_shots import NoisyShots

ECE_BINS = 15


def figures(logits: Tensor, labels: Tensor, reference: Tensor) -> dict[str, Any]:
    """Accuracies of (M, K) logits, and the paired difference to zero-shot's (M,) 0/1 on the same images."""
    correct = (logits.argmax(1) == labels).float()
    difference, spread = paired_difference(correct, reference)
    return {
        "n": len(labels),
        "top1": float(correct.mean()),
        "se": standard_error(correct),
        "delta": difference,
        "delta_se": spread,
        "top5": float(top_k(logits, labels, 5).mean()),
        "macro_acc": mean_per_class(correct, labels),
        "macro_f1": macro_f1(logits.argmax(1), labels),
        "ece15": calibration_error(logits.softmax(1), labels, ECE_BINS),
    }


def per_class(logits: Tensor, labels: Tensor, num_classes: int) -> list[float | None]:
    """Accuracy of each class; None where it has no image."""
    correct = (logits.argmax(1) == labels).double()
    counts = labels.bincount(minlength=num_classes)
    sums = correct.new_zeros(num_classes).index_add(0, labels, correct)
    return [float(total / count) if count else None for total, count in zip(sums, counts, strict=True)]


def memorised(logits: Tensor, shots: NoisyShots) -> dict[str, float | None]:
    """Whether training images with wrong labels are predicted as they are labelled or as they are.

    Args:
        logits: (N, K) of the training images.
        shots: their labels.
    """
    predicted, flipped = logits.argmax(1).numpy(), shots.flipped
    if shots.clean is None:
        return {"train_acc_clean": None, "train_acc_given_on_flipped": None, "train_acc_true_on_flipped": None}
    return {
        "train_acc_clean": _share(predicted == shots.clean, ~flipped),
        "train_acc_given_on_flipped": _share(predicted == shots.given, flipped),
        "train_acc_true_on_flipped": _share(predicted == shots.clean, flipped),
    }


def _share(right: Any, among: Any) -> float | None:
    return float(np.mean(right[among])) if among.any() else None


def area_under(rates: Sequence[float], values: Sequence[float]) -> float:
    """Mean accuracy over the range of noise rates: the area under straight lines, divided by its width."""
    x, y = torch.tensor(rates, dtype=torch.float64), torch.tensor(values, dtype=torch.float64)
    return float(torch.trapezoid(y, x) / (x[-1] - x[0]))
