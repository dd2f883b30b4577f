"""Fine-tuning towards the network before the removal: its logits, and its features before the classifier.

B images, C classes, D width.

Hinton et al., arXiv 1503.02531; features: Romero et al., arXiv 1412.6550.
"""

from collections.abc import Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def distillation_loss(student: Tensor, teacher: Tensor, labels: Tensor, alpha: float, temperature: float) -> Tensor:
    """(1 - alpha) CE(labels) + alpha T^2 KL(teacher at T || student at T), mean over images (arXiv 1503.02531).

    Args:
        student: (B, C) logits.
        teacher: (B, C) logits; gets no gradient.
        labels: (B,) int64.
        alpha: weight of the teacher.
        temperature: T; its square keeps the scale of the gradient.

    Returns:
        Scalar.

    Raises:
        ValueError: alpha outside (0, 1], or temperature not above 0.
    """
    if not 0 < alpha <= 1:
        raise ValueError(f"alpha is {alpha}, not in (0, 1]")
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}, not above 0")
    ours = (student / temperature).log_softmax(1)
    theirs = (teacher.detach() / temperature).log_softmax(1)
    divergence = F.kl_div(ours, theirs, reduction="batchmean", log_target=True)
    return (1 - alpha) * F.cross_entropy(student, labels) + alpha * temperature**2 * divergence


def mimic_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error of pooled features (B, D), whose shape a removal keeps; the teacher's get no gradient."""
    return F.mse_loss(student, teacher.detach())


class PooledFeatures:
    """Keeps the input of a network's last linear layer while the context is open.

    Attributes:
        last: (B, D) from the latest forward pass.

    Raises:
        ValueError: a network without linear layers.
    """

    last: Tensor

    def __init__(self, network: nn.Module) -> None:
        layers = [module for module in network.modules() if isinstance(module, nn.Linear)]
        if not layers:
            raise ValueError("the network has no linear layer, so it has no features before its classifier")
        self._layer = layers[-1]

    def __enter__(self) -> Self:
        self._hook = self._layer.register_forward_pre_hook(self._keep)
        return self

    def __exit__(self, *error: object) -> None:
        self._hook.remove()

    def _keep(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        self.last = inputs[0]


def taught_loss(
    teacher: nn.Module,
    images: Tensor,
    logits: Tensor,
    labels: Tensor,
    *,
    features: Sequence[PooledFeatures] = (),
    alpha: float | None,
    temperature: float,
    mimic: float,
) -> Tensor:
    """Scalar loss of fine-tuning towards a network: its answers, its features, or both.

    Args:
        teacher: maps images to logits.
        images: (B, 3, H, W), normalised.
        logits: (B, C) of the network that learns, of these images.
        labels: (B,) int64.
        features: kept of the network that learns and of the teacher, or none.
        alpha: weight of the teacher's answers, see `distillation_loss`; None: of the labels alone.
        temperature: see there.
        mimic: weight of the features' distance.
    """
    with torch.no_grad():
        taught = teacher(images)
    if alpha is not None:
        total = distillation_loss(logits, taught, labels, alpha=alpha, temperature=temperature)
    else:
        total = F.cross_entropy(logits, labels)
    if features:
        ours, theirs = (part.last for part in features)
        total = total + mimic * mimic_loss(ours, theirs)
    return total
