"""Ways to choose the kept patches without training: random, CLS attention, and the golden ranking itself.

Every selector maps token states (B, P+N, D) at depth p to scores (B, N) float32, higher = keep.
"""

import torch
from torch import Tensor

from .tower import Context

_MASK = (1 << 64) - 1


class MissingRankingError(LookupError):
    """A sample whose golden ranking was never searched.

    Attributes:
        sample: its id.
    """

    def __init__(self, sample: int) -> None:
        self.sample = sample
        super().__init__(f"no golden ranking of sample {sample}")


class RandomSelector:
    """Uniform scores that are a function of (seed, sample id, patch) alone, so that no batch can change them."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def score(self, states: Tensor, context: Context) -> Tensor:
        """See `Selector`; needs `context.ids`."""
        num_patches = states.shape[1] - context.tower.num_prefix
        ids = _ids(context, "random").to(states.device)
        streams = _splitmix64(ids ^ _signed(self.seed * 0x9E3779B97F4A7C15 & _MASK))
        patches = torch.arange(1, num_patches + 1, device=states.device) * _signed(0x9E3779B97F4A7C15)
        bits = _splitmix64(streams[:, None] + patches)
        return _shift(bits, 40).float() / 2**24


class ClsAttentionSelector:
    """Attention that CLS pays to the patches in block p, before anything is dropped: mean over heads."""

    def score(self, states: Tensor, context: Context) -> Tensor:
        """See `Selector`.

        Raises:
            ValueError: the tower has no CLS token.
        """
        tower, layer = context.tower, context.layer
        if tower.num_prefix == 0:
            raise ValueError("cls-attn needs a CLS token, and this tower has none; use the predictor")
        # Fused attention returns no weights: one query and all keys give the single row of them that is needed.
        (query,) = tower.qkv(layer, states[:, :1], "q")
        (keys,) = tower.qkv(layer, states, "k")
        logits = (query @ keys.transpose(-1, -2)).float() * query.shape[-1] ** -0.5
        return logits.softmax(-1).mean(1)[:, 0, tower.num_prefix :]


class GoldenSelector:
    """The searched ranking of each sample: an oracle, for images that were searched.

    Args:
        ids: (M,) int64 numbers of the samples.
        rank: (M, N) importance ranks, 0 = least important.
    """

    def __init__(self, ids: Tensor, rank: Tensor) -> None:
        order = ids.argsort()
        self.ids = ids[order]
        self.rank = rank[order]

    def score(self, states: Tensor, context: Context) -> Tensor:
        """See `Selector`; needs `context.ids`.

        Raises:
            MissingRankingError: a sample was not searched.
        """
        ids = _ids(context, "golden").to(self.ids.device)
        place = torch.searchsorted(self.ids, ids).clamp(max=len(self.ids) - 1)
        missing = self.ids[place] != ids
        if missing.any():
            raise MissingRankingError(int(ids[missing][0]))
        return self.rank[place].to(states.device, torch.float32)


def _ids(context: Context, name: str) -> Tensor:
    if context.ids is None:
        raise ValueError(f"selector {name} needs the ids of the samples")
    return context.ids


def _signed(value: int) -> int:
    """A 64-bit pattern as the int64 that torch has."""
    return value - (1 << 64) if value >> 63 else value


def _shift(value: Tensor, bits: int) -> Tensor:
    """Logical right shift; torch's is arithmetic."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _splitmix64(value: Tensor) -> Tensor:
    """SplitMix64's finaliser (Steele, Lea, Flood, OOPSLA 2014): a bijection that scatters neighbouring integers."""
    value = (value ^ _shift(value, 30)) * _signed(0xBF58476D1CE4E5B9)
    value = (value ^ _shift(value, 27)) * _signed(0x94D049BB133111EB)
    return value ^ _shift(value, 31)
