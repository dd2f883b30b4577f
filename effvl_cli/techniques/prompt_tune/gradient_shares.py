"""How much of a training step comes from right and from wrong labels, and which way it points.

Ours, for the claim of arXiv 2307.11978, sec. 4.1, whose own measure is not published. With N samples, gradients g_i of
their losses and G = (1/N) sum g_i, a group contributes G_group = (1/N) sum over its n samples. Its alignment is the
mean of <g_i, G> / |G|^2 over it: 1 for a sample as good as the average, below 0 for one that is pulled against.
Logits are s <f_i, t_c> of unit image features f (N, D) and class features t (K, D).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

Loss = Callable[[Tensor, Tensor], Tensor]
"""(logits (N, K), labels (N,)) to (N,)."""


@dataclass(frozen=True)
class GroupShare:
    """One group's part.

    Attributes:
        n: its samples.
        norm: |G_group|.
        sample_norm: mean |g_i|; of those that were measured.
        alignment: mean of <g_i, G> / |G|^2; weighted by n / N, those of all groups sum to 1.
    """

    n: int
    norm: float
    sample_norm: float
    alignment: float


@dataclass(frozen=True)
class GradientShares:
    """Both groups.

    Attributes:
        clean: samples with right labels.
        noisy: samples with wrong ones.
        ratio: |G_noisy| / |G_clean|; None where there are no gradients of right ones.
        cosine: between the two; None where one has none.
    """

    clean: GroupShare
    noisy: GroupShare
    ratio: float | None
    cosine: float | None


def logit_gradients(logits: Tensor, labels: Tensor, loss: Loss) -> Tensor:
    """(N, K) gradient of each sample's loss with respect to its logits (N, K)."""
    with torch.enable_grad():
        leaf = logits.detach().requires_grad_()
        (found,) = torch.autograd.grad(loss(leaf, labels).sum(), leaf)
    return found


def in_class_features(by_logits: Tensor, features: Tensor, scale: float, flipped: Tensor) -> GradientShares:
    """Shares of the gradient with respect to t, the space that all methods have in common; no text tower is run.

    Args:
        by_logits: (N, K), see `logit_gradients`.
        features: (N, D) f.
        scale: s.
        flipped: (N,) bool, wrong labels.
    """
    norms = scale * by_logits.norm(dim=1) * features.norm(dim=1)
    parts = _class_gradients(by_logits, features, scale, flipped)
    return _shares([part.flatten() for part in parts], flipped, norms, torch.ones_like(flipped))


def in_unit_weights(
    by_logits: Tensor, features: Tensor, scale: float, flipped: Tensor, weight: Tensor
) -> GradientShares:
    """Shares of the gradient with respect to W (K, D), where t is W with rows of unit norm; in closed form.

    Args:
        by_logits: (N, K), see `logit_gradients`.
        features: (N, D) f.
        scale: s.
        flipped: (N,) bool, wrong labels.
        weight: (K, D) W.
    """
    length = weight.norm(dim=1, keepdim=True)
    unit = weight / length
    # The gradient of t = W / |W| takes out what lies along t: for class c and sample i, f_i - <f_i, t_c> t_c.
    across = (features.square().sum(1, keepdim=True) - (features @ unit.T).square()).clamp_min(0)
    norms = scale * (by_logits.square() * across / length.T.square()).sum(1).sqrt()
    parts = _class_gradients(by_logits, features, scale, flipped)
    own = [(part - (part * unit).sum(1, keepdim=True) * unit) / length for part in parts]
    return _shares([part.flatten() for part in own], flipped, norms, torch.ones_like(flipped))


def in_parameters(
    by_logits: Tensor,
    features: Tensor,
    scale: float,
    flipped: Tensor,
    class_features: Tensor,
    parameters: Sequence[Tensor],
    *,
    num_samples: int,
    generator: Generator,
) -> GradientShares:
    """Shares of the gradient with respect to parameters from which t is computed, by backward passes through that.

    Args:
        by_logits: (N, K), see `logit_gradients`.
        features: (N, D) f.
        scale: s.
        flipped: (N,) bool, wrong labels.
        class_features: (K, D) t, with its graph, which is kept.
        parameters: all that are trained.
        num_samples: at most so many of each group have their own norm measured.
        generator: draws them; on the CPU.
    """

    def backward(by_class: Tensor) -> Tensor:
        found = torch.autograd.grad(
            class_features, parameters, by_class, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return torch.cat([part.flatten() for part in found])

    parts = [backward(part) for part in _class_gradients(by_logits, features, scale, flipped)]
    norms, measured = torch.zeros(len(flipped), dtype=features.dtype), torch.zeros(len(flipped), dtype=torch.bool)
    order = torch.randperm(len(flipped), generator=generator)
    of_group = flipped.cpu()[order]
    for row in torch.cat([order[of_group == group][:num_samples] for group in (False, True)]).tolist():
        norms[row] = backward(scale * by_logits[row, :, None] * features[row]).norm()
        measured[row] = True
    return _shares(parts, flipped.cpu(), norms, measured)


def _class_gradients(by_logits: Tensor, features: Tensor, scale: float, flipped: Tensor) -> list[Tensor]:
    """(K, D) of the right labels and of the wrong ones, over N."""
    return [scale * by_logits[group].T @ features[group] / len(flipped) for group in (~flipped, flipped)]


def _shares(parts: list[Tensor], flipped: Tensor, norms: Tensor, measured: Tensor) -> GradientShares:
    """From both groups' gradients (P,), and norms (N,) of the samples that are measured (N,)."""
    total = parts[0] + parts[1]
    square = float(total.square().sum())

    def group(part: Tensor, members: Tensor) -> GroupShare:
        n = int(members.sum())
        known = norms[members & measured]
        alignment = len(flipped) * float(part @ total) / (n * square) if n and square else 0.0
        return GroupShare(n, float(part.norm()), float(known.mean()) if len(known) else 0.0, alignment)

    clean, noisy = group(parts[0], ~flipped), group(parts[1], flipped)
    both = clean.norm * noisy.norm
    cosine = float(parts[0] @ parts[1]) / both if both else None
    return GradientShares(clean, noisy, noisy.norm / clean.norm if clean.norm else None, cosine)
