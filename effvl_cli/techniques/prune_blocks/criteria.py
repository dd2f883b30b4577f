"""Cheaper criteria than to measure a removal. Each gives one number per unit; the lowest is removed first.

They serve as baselines. B images; a unit's input and output have the same shape, and are flattened to (B, D).
"""

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .containers import evaluating
from .score import Scorer
from .trace import Forward, first_input, patched
from .unit import Unit

Observe = Callable[[int, Tensor, Tensor], None]
_WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)
SMALLEST_CKA_BATCH = 4


def random(count: int, generator: torch.Generator) -> list[float]:
    """Uniform numbers."""
    return torch.rand(count, generator=generator, dtype=torch.float64).tolist()


def l1(network: nn.Module, units: Sequence[Unit]) -> list[float]:
    """Mean absolute weight of a unit's convolutions and linear layers (per filter: Li et al., arXiv 1608.08710).

    Raises:
        ValueError: a unit has no such layer.
    """
    return [
        _mean_absolute(unit, _matrices(network.get_submodule(unit.path)), "convolution or linear") for unit in units
    ]


def bn_scale(network: nn.Module, units: Sequence[Unit]) -> list[float]:
    """Mean absolute scale of a unit's last norm (per channel: Liu et al., arXiv 1708.06519).

    Raises:
        ValueError: a unit has no norm with a scale.
    """
    scores = []
    for unit in units:
        norms = [m.weight for m in network.get_submodule(unit.path).modules() if isinstance(m, _NORMS)]
        scales = [weight for weight in norms if weight is not None]
        scores.append(_mean_absolute(unit, scales[-1:], "scaled norm"))
    return scores


def _matrices(module: nn.Module) -> list[Tensor]:
    """Weights of convolutions (O, I, ...) and linear layers (O, I), attention's included."""
    found = []
    for part in module.modules():
        if isinstance(part, _WEIGHTED):
            found.append(part.weight)
        elif isinstance(part, nn.MultiheadAttention) and part.in_proj_weight is not None:
            found.append(part.in_proj_weight)
    return found


def _mean_absolute(unit: Unit, weights: Sequence[Tensor], what: str) -> float:
    """Mean absolute value over all the numbers in some weights, of any shapes."""
    if not weights:
        raise ValueError(f"unit {unit.path} has no {what} layer to score it by")
    total = math.fsum(float(weight.detach().double().abs().sum()) for weight in weights)
    return total / sum(weight.numel() for weight in weights)


def block_influence(network: nn.Module, units: Sequence[Unit], batches: Iterable[Tensor]) -> list[float]:
    """1 - mean cosine between a unit's input and output (ShortGPT, arXiv 2403.03853).

    The cosine is that of whole images, where the paper's is that of tokens: it suits feature maps of any layout.

    Args:
        network: put into evaluation mode meanwhile.
        units: to score.
        batches: images (B, 3, H, W).
    """
    totals, count = [0.0] * len(units), 0

    def observe(index: int, before: Tensor, after: Tensor) -> None:
        totals[index] += float(F.cosine_similarity(before.flatten(1).double(), after.flatten(1).double()).sum())

    for images in batches:
        count += len(images)
        _watch(network, units, images, observe)
    return [1 - total / count for total in totals]


def cka(network: nn.Module, units: Sequence[Unit], batches: Iterable[Tensor]) -> list[float]:
    """1 - linear CKA of a unit's input and output (Kornblith et al., arXiv 1905.00414).

    HSIC is the unbiased estimate of each batch, averaged over batches (Nguyen et al., arXiv 2010.15327, eqs. 2 and 3):
    memory is that of one batch, and the result hardly depends on its size. Batches of fewer than 4 images are skipped.

    Args:
        network: put into evaluation mode meanwhile.
        units: to score.
        batches: images (B, 3, H, W).

    Raises:
        ValueError: no batch has 4 images.
    """
    totals = torch.zeros(len(units), 3, dtype=torch.float64)  # HSIC of input and output, of the input, of the output

    def observe(index: int, before: Tensor, after: Tensor) -> None:
        first, second = _gram(before), _gram(after)
        terms = [hsic(first, second), hsic(first, first), hsic(second, second)]
        totals[index] += torch.stack(terms).cpu()

    count = 0
    for images in batches:
        if len(images) >= SMALLEST_CKA_BATCH:
            count += 1
            _watch(network, units, images, observe)
    if not count:
        raise ValueError(f"CKA needs a batch of {SMALLEST_CKA_BATCH} images or more")
    joint, own, other = totals.unbind(1)
    return (1 - joint / (own * other).sqrt()).tolist()


def _gram(values: Tensor) -> Tensor:
    """(B, ...) to (B, B) float64."""
    rows = values.flatten(1).double()
    return rows @ rows.T


def hsic(first: Tensor, second: Tensor) -> Tensor:
    """Unbiased Hilbert-Schmidt independence criterion (Song et al., JMLR 2012, eq. 5).

    Args:
        first: (n, n) kernel matrix, n >= 4.
        second: (n, n), of the same samples.
    """
    n = len(first)
    a, b = (matrix - matrix.diag().diag() for matrix in (first, second))
    products = (a * b).sum() + a.sum() * b.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (a.sum(0) * b.sum(0)).sum()
    return products / (n * (n - 3))


def _watch(network: nn.Module, units: Sequence[Unit], images: Tensor, observe: Observe) -> None:
    """Run (B, 3, H, W) once and call `observe` with each unit's input, copied before the call, and output, (B, ...)."""

    def run(index: int, forward: Forward, *args: Any, **kwargs: Any) -> Tensor:
        before = first_input(args, kwargs).clone()
        after = forward(*args, **kwargs)
        observe(index, before, after)
        found: Tensor = after
        return found

    modules = [network.get_submodule(unit.path) for unit in units]
    forwards = {module: partial(run, index, module.forward) for index, module in enumerate(modules)}
    with evaluating(network), patched(forwards):
        network(images)


def sr_init(
    network: nn.Module,
    units: Sequence[Unit],
    batches: Callable[[], Iterable[tuple[Tensor, Tensor]]],
    generator: torch.Generator,
    draws: int = 5,
    autocast: torch.dtype | None = None,
) -> Tensor:
    """How many images are answered correctly when a unit's parameters are drawn anew (SR-init, arXiv 2303.07677).

    The importance of unit k is the fall in accuracy, (row 0 - row 1 + k) / (draws * images). The statistics of its
    norms are kept, and so are parameters of modules that cannot initialise them.

    Args:
        network: put into evaluation mode meanwhile.
        units: to score.
        batches: images (B, 3, H, W) and labels (B,); iterated once for each draw.
        generator: on the CPU.
        draws: per unit, at least 1.
        autocast: type that the passes are cast to; None: no autocast.

    Returns:
        (1 + n,) int64 sums over all draws; row 0 is the unchanged network.
    """
    numbers = torch.randint(2**62, (len(units), draws), generator=generator).T.tolist()
    modules = [network.get_submodule(unit.path) for unit in units]
    counts = torch.zeros(1 + len(units), dtype=torch.int64)
    for row in numbers:
        fresh = [_fresh(module, seed).forward for module, seed in zip(modules, row, strict=True)]
        scorer = Scorer(network, units, stand_ins=fresh, autocast=autocast)
        for images, labels in batches():
            counts += scorer.batch(images, labels).correct.sum(1).cpu()
    return counts


def _fresh(module: nn.Module, seed: int) -> nn.Module:
    """A copy in evaluation mode with newly initialised parameters and unchanged buffers; drawn on the CPU so
    that a seed means the same everywhere."""
    fresh = copy.deepcopy(module).cpu().eval()
    buffers = {name: buffer.clone() for name, buffer in fresh.named_buffers()}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for part in fresh.modules():
            # That of nn.MultiheadAttention has an underscore.
            reset = getattr(part, "reset_parameters", None) or getattr(part, "_reset_parameters", None)
            if reset is not None:
                reset()
    for name, buffer in fresh.named_buffers():
        buffer.copy_(buffers[name])
    return fresh.requires_grad_(False).to(next(module.parameters()).device)
