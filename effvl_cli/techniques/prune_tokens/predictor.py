"""Predictors of the golden ranking, and measures of their agreement with it.

Shapes: B images, P prefix tokens, N patches, D width of the tower, w width of the predictor.

Wu et al., arXiv 2409.14607, phase II.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .keeping import keep_indices
from .tower import Context, num_keep

VALIDATION_SHARE = 10  # one ranked image in this many


def pooled_inputs(states: Tensor, width: int) -> Tensor:
    """Average the channels of (B, n, D) states over `width` contiguous bins: (B, n, w) float32, nothing to learn."""
    count, rows, channels = states.shape
    if channels % width == 0:
        return states.float().view(count, rows, width, channels // width).mean(-1)
    return F.adaptive_avg_pool1d(states.float(), width)


class Predictor(nn.Module):
    """A small network that scores the patches of token states. A Selector.

    Args:
        num_prefix: P.

    Attributes:
        kind: its name for `make_predictor`.
        width: w of the mixer; None of others.
    """

    kind: ClassVar[str]
    width: int | None = None

    def __init__(self, num_prefix: int) -> None:
        super().__init__()
        self.num_prefix = num_prefix

    def inputs(self, states: Tensor) -> Tensor:
        """Inputs of `forward`, from token states (B, P+N, D); it has no parameters, so the result can be cached.

        In this class the patches (B, N, D).
        """
        return states[:, self.num_prefix :]

    def score(self, states: Tensor, context: Context) -> Tensor:
        """See `Selector`."""
        found: Tensor = self(self.inputs(states))
        return found

    def macs(self, num_patches: int) -> int:
        """Multiply-adds of an image with N patches."""
        raise NotImplementedError


class MixerPredictor(Predictor):
    """One MLP-Mixer block (Tolstikhin et al., arXiv 2105.01601) over all tokens, then one score per patch.

    It works only for the number of tokens that it was made for.

    Args:
        num_patches: N.
        num_prefix: P.
        width: w; the token MLP has w / 2 hidden units and the channel MLP 4 w.
    """

    kind = "mixer"
    width: int

    def __init__(self, num_patches: int, num_prefix: int, width: int = 64) -> None:
        super().__init__(num_prefix)
        tokens, token_hidden, channel_hidden = num_prefix + num_patches, max(1, width // 2), 4 * width
        self.width = width
        self.token_norm = nn.LayerNorm(width, eps=1e-6)
        self.token_mlp = nn.Sequential(nn.Linear(tokens, token_hidden), nn.GELU(), nn.Linear(token_hidden, tokens))
        self.channel_norm = nn.LayerNorm(width, eps=1e-6)
        self.channel_mlp = nn.Sequential(nn.Linear(width, channel_hidden), nn.GELU(), nn.Linear(channel_hidden, width))
        self.head = nn.Linear(width, 1)

    def inputs(self, states: Tensor) -> Tensor:
        """All tokens (B, P+N, D) with their channels pooled: (B, P+N, w)."""
        return pooled_inputs(states, self.width)

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, P+N, w) to scores (B, N) float32, higher = keep."""
        x = inputs.to(self.head.weight.dtype)
        x = x + self.token_mlp(self.token_norm(x).transpose(1, 2)).transpose(1, 2)
        x = x + self.channel_mlp(self.channel_norm(x))
        found: Tensor = self.head(x[:, self.num_prefix :]).squeeze(-1).float()
        return found

    def macs(self, num_patches: int) -> int:
        """See `Predictor`."""
        tokens, width = self.num_prefix + num_patches, self.width
        return tokens * width * (2 * max(1, width // 2) + 8 * width) + num_patches * width


class MLPPredictor(Predictor):
    """An MLP on each patch and the mean of all; for any number of patches.

    Args:
        dim: D.
        num_prefix: P.
    """

    kind = "mlp"

    def __init__(self, dim: int, num_prefix: int) -> None:
        super().__init__(num_prefix)
        self.dim = dim
        self.inner = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 128), nn.GELU())
        self.outer = nn.Sequential(nn.Linear(128, 64), nn.GELU())
        self.head = nn.Linear(64, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, N, D) to scores (B, N) float32, higher = keep."""
        own, shared = self.inner(inputs.to(self.head.weight.dtype)).chunk(2, dim=-1)
        context = shared.mean(1, keepdim=True).expand_as(own)
        found: Tensor = self.head(self.outer(torch.cat([own, context], -1))).squeeze(-1).float()
        return found

    def macs(self, num_patches: int) -> int:
        """See `Predictor`."""
        return num_patches * (self.dim * 128 + 128 * 64 + 64)


class LinearPredictor(Predictor):
    """One direction in the normalised states of a patch; for any number of patches.

    Args:
        dim: D.
        num_prefix: P.
    """

    kind = "linear"

    def __init__(self, dim: int, num_prefix: int) -> None:
        super().__init__(num_prefix)
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, N, D) to scores (B, N) float32, higher = keep."""
        found: Tensor = self.head(self.norm(inputs.to(self.head.weight.dtype))).squeeze(-1).float()
        return found

    def macs(self, num_patches: int) -> int:
        """See `Predictor`."""
        return num_patches * self.head.in_features


def make_predictor(kind: str, *, num_patches: int, num_prefix: int, dim: int, width: int | None = None) -> Predictor:
    """An untrained predictor.

    Args:
        kind: mixer, mlp or linear.
        num_patches: N.
        num_prefix: P.
        dim: D.
        width: w of the mixer, 64 unless given.

    Raises:
        ValueError: unknown kind.
    """
    if kind == "mixer":
        return MixerPredictor(num_patches, num_prefix, width or 64)
    if kind == "mlp":
        return MLPPredictor(dim, num_prefix)
    if kind == "linear":
        return LinearPredictor(dim, num_prefix)
    raise ValueError(f"predictor is {kind!r}, and must be mixer, mlp or linear")


def dropped_overlap(scores: Tensor, rank: Tensor, num_keep: int) -> Tensor:
    """Share of the N - K patches dropped by the ranking that the scores drop too.

    Args:
        scores: (B, N), higher = keep.
        rank: (B, N) importance ranks.
        num_keep: K < N.

    Returns:
        (B,) float32 in [0, 1].
    """
    dropped = torch.ones_like(rank, dtype=torch.bool)
    dropped.scatter_(1, keep_indices(scores, num_keep), False)
    golden = rank < rank.shape[1] - num_keep
    return (dropped & golden).sum(1) / (rank.shape[1] - num_keep)


def kendall_tau(scores: Tensor, rank: Tensor) -> Tensor:
    """Rank correlation tau-b of each row (Kendall, Biometrika 1945); 0 where all scores are equal.

    Args:
        scores: (B, N).
        rank: (B, N) without ties.

    Returns:
        (B,) float32 in [-1, 1].
    """
    first, second = torch.triu_indices(rank.shape[1], rank.shape[1], 1, device=rank.device)
    ours = (scores[:, first] - scores[:, second]).sign()
    theirs = (rank[:, first] - rank[:, second]).sign().float()
    pairs = (ours != 0).sum(1) * len(first)
    return (ours * theirs).sum(1) / pairs.clamp(min=1).float().sqrt()


def split(labels: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Positions to train on and to validate on, one in ten, spread over the classes; a single image is both.

    Args:
        labels: (M,) classes of the images.
        generator: orders the images; on the CPU.

    Returns:
        Two tensors of positions, ascending.
    """
    count = len(labels)
    order = torch.randperm(count, generator=generator)
    held_out = max(1, count // VALIDATION_SHARE)
    if count == 1:
        return order, order
    turn = torch.zeros(count, dtype=torch.int64)  # how many of its class precede an image
    for label in labels.unique():
        mine = labels[order] == label
        turn[mine] = torch.arange(int(mine.sum()))
    order = order[turn.argsort(stable=True)]
    return order[held_out:].sort().values, order[:held_out].sort().values


def agreement(scores: Tensor, rank: Tensor, keeps: Sequence[float]) -> dict[str, Any]:
    """How near scores (B, N) come to a ranking (B, N).

    Returns:
        `overlap`: share of the dropped patches that both drop, by each number of kept ones; `tau`: rank correlation.
    """
    num_patches = rank.shape[1]
    kept = sorted({num_keep(keep, num_patches) for keep in keeps} - {num_patches}, reverse=True)
    return {
        "overlap": {str(k): float(dropped_overlap(scores, rank, k).mean()) for k in kept},
        "tau": float(kendall_tau(scores, rank).mean()),
    }
