"""Losses that teach a predictor a golden ranking.

Scores are (B, N), higher = keep; ranks are (B, N) importance ranks, 0 = least important. Each loss is a scalar, the
mean over images.

arXiv 2409.14607, phase II, does not name its loss: each function says whose it is.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

PAIRS = 256

LossName = Literal["listwise", "keepset", "pairwise", "mse"]
Loss = Callable[[Tensor, Tensor, int], Tensor]
"""(scores (B, N), ranks (B, N), step) to a scalar."""


def listwise_loss(scores: Tensor, rank: Tensor) -> Tensor:
    """Cross entropy from softmax(4 rank / N) to softmax(scores), both (B, N): top-heavy, the same for every K."""
    target = (4 * rank.float() / rank.shape[1]).softmax(1)
    return F.cross_entropy(scores, target)


def keepset_loss(scores: Tensor, rank: Tensor, budgets: Sequence[int]) -> Tensor:
    """Cross entropy from the uniform distribution on the K kept patches to softmax(scores), both (B, N).

    The loss of the official code of arXiv 2409.14607 up to a constant: its target leaves the last 50 patches 2e-10.

    Args:
        scores: (B, N), see the module.
        rank: (B, N), see the module.
        budgets: each K; the mean over them.
    """
    log_share = scores.log_softmax(1)
    num_patches = rank.shape[1]
    losses = [-(log_share * (rank >= num_patches - kept)).sum(1) / kept for kept in budgets]
    return torch.stack(losses).mean()


def pairwise_loss(scores: Tensor, rank: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """softplus(-(s - t)) over pairs of patches, s the score of the more important one, t that of the other.

    RankNet (Burges et al., ICML 2005).

    Args:
        scores: (B, N), see the module.
        rank: (B, N), see the module.
        first: (pairs,) patch ids.
        second: (pairs,) patch ids of the others.
    """
    order = (rank[:, first] - rank[:, second]).sign()
    return F.softplus((scores[:, second] - scores[:, first]) * order).mean()


def random_pairs(num_patches: int, generator: torch.Generator, count: int = PAIRS) -> tuple[Tensor, Tensor]:
    """(count,) first and second ids of pairs of different patches, drawn with replacement."""
    first, second = torch.triu_indices(num_patches, num_patches, 1)
    drawn = torch.randint(len(first), (count,), generator=generator)
    return first[drawn], second[drawn]


def mse_loss(scores: Tensor, rank: Tensor) -> Tensor:
    """Squared distance of scores (B, N) to rank / (N - 1)."""
    return F.mse_loss(scores, rank.float() / max(1, rank.shape[1] - 1))


def loss_of(
    name: LossName, num_patches: int, budgets: Sequence[int], pairs_at: Callable[[int], torch.Generator]
) -> Loss:
    """A loss by its name, as a function of (scores (B, N), ranks (B, N), step).

    Args:
        name: of the loss.
        num_patches: N.
        budgets: each K of the keep-set loss.
        pairs_at: what draws the pairs of a step; on the CPU.
    """

    def pairwise(scores: Tensor, rank: Tensor, step: int) -> Tensor:
        first, second = random_pairs(num_patches, pairs_at(step))
        return pairwise_loss(scores, rank, first.to(scores.device), second.to(scores.device))

    losses: dict[LossName, Loss] = {
        "listwise": lambda scores, rank, step: listwise_loss(scores, rank),
        "keepset": lambda scores, rank, step: keepset_loss(scores, rank, budgets),
        "pairwise": pairwise,
        "mse": lambda scores, rank, step: mse_loss(scores, rank),
    }
    return losses[name]
