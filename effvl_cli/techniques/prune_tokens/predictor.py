"""The predictor of the golden ranking, its loss, and how well it agrees with what it should predict.

Shapes: B images, P prefix tokens, N patches, D width of the tower, w width of the predictor.
"""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .tower import Context, keep_indices


def pooled_inputs(states: Tensor, width: int) -> Tensor:
    """Average the channels of (B, n, D) states over `width` contiguous bins: (B, n, w) float32, nothing to learn."""
    count, rows, channels = states.shape
    if channels % width == 0:
        return states.float().view(count, rows, width, channels // width).mean(-1)
    return F.adaptive_avg_pool1d(states.float(), width)


class MixerPredictor(nn.Module):
    """One MLP-Mixer block (Tolstikhin et al., arXiv 2105.01601) over all tokens, then one score a patch. A Selector.

    Bound to the number of tokens that it was made for.

    Args:
        num_patches: N.
        num_prefix: P.
        width: w; the token MLP has w / 2 hidden units and the channel MLP 4 w.
    """

    def __init__(self, num_patches: int, num_prefix: int, width: int = 64) -> None:
        super().__init__()
        tokens, token_hidden, channel_hidden = num_prefix + num_patches, max(1, width // 2), 4 * width
        self.num_prefix = num_prefix
        self.width = width
        self.token_norm = nn.LayerNorm(width, eps=1e-6)
        self.token_mlp = nn.Sequential(nn.Linear(tokens, token_hidden), nn.GELU(), nn.Linear(token_hidden, tokens))
        self.channel_norm = nn.LayerNorm(width, eps=1e-6)
        self.channel_mlp = nn.Sequential(nn.Linear(width, channel_hidden), nn.GELU(), nn.Linear(channel_hidden, width))
        self.head = nn.Linear(width, 1)

    def inputs(self, states: Tensor) -> Tensor:
        """What `forward` takes, from token states (B, P+N, D): (B, P+N, w). Without parameters, so it can be cached."""
        return pooled_inputs(states, self.width)

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, P+N, w) to scores (B, N) float32, higher = keep."""
        x = inputs.to(self.head.weight.dtype)
        x = x + self.token_mlp(self.token_norm(x).transpose(1, 2)).transpose(1, 2)
        x = x + self.channel_mlp(self.channel_norm(x))
        return self.head(x[:, self.num_prefix :]).squeeze(-1).float()

    def score(self, states: Tensor, context: Context) -> Tensor:
        """See `Selector`."""
        return self(self.inputs(states))


def listwise_loss(scores: Tensor, rank: Tensor) -> Tensor:
    """Cross entropy from softmax(4 rank / N) to softmax(scores): top-heavy, and the same for every keep rate.

    Args:
        scores: (B, N).
        rank: (B, N) importance ranks, 0 = least important.

    Returns:
        Scalar, mean over images.
    """
    target = (4 * rank.float() / rank.shape[1]).softmax(1)
    return F.cross_entropy(scores, target)


PREDICTORS: Mapping[str, Callable[..., nn.Module]] = {"mixer": MixerPredictor}
LOSSES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {"listwise": listwise_loss}


def dropped_overlap(scores: Tensor, rank: Tensor, num_keep: int) -> Tensor:
    """Share of the N - K patches that the ranking drops which the scores drop too.

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
