"""Selectors without training: by position, by state, by attention, and by golden ranking.

Every selector maps token states (B, P+N, D) at depth p to scores (B, N) float32, higher = keep.

Golden ranking: arXiv 2409.14607, phase I. CLS attention: the score of EViT, arXiv 2202.07800. The others
are controls.
"""

import functools

import torch
from torch import Tensor

from .scorers import FeatureScorer, Scorer
from .taylor import PROBES, taylor_scores
from .tower import Context

_MASK = (1 << 64) - 1


class MissingRankingError(LookupError):
    """A sample without a golden ranking.

    Attributes:
        sample: its id.
    """

    def __init__(self, sample: int) -> None:
        self.sample = sample
        super().__init__(f"no golden ranking of sample {sample}")


class RandomSelector:
    """Uniform scores that depend only on (seed, sample id, patch), not on the batch."""

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


class GridSelector:
    """Patches spread evenly over the image, the same for every image; smaller selections are part of larger ones."""

    def score(self, states: Tensor, context: Context) -> Tensor:
        """See `Selector`."""
        order = torch.tensor(halton_order(*context.tower.grid), device=states.device)
        return (-order.argsort().float()).expand(len(states), -1)


class CenterSelector:
    """Patches nearest the centre of the image, in pixels."""

    def score(self, states: Tensor, context: Context) -> Tensor:
        """See `Selector`."""
        rows, columns = (
            (torch.arange(count, device=states.device) - (count - 1) / 2) * size
            for count, size in zip(context.tower.grid, context.tower.patch_size, strict=True)
        )
        return -(rows[:, None] ** 2 + columns**2).flatten().float().expand(len(states), -1)


class NormSelector:
    """Patches with the largest L2 norm of their states."""

    def score(self, states: Tensor, context: Context) -> Tensor:
        """See `Selector`."""
        found: Tensor = states[:, context.tower.num_prefix :].float().norm(dim=-1)
        return found


class ClsAttentionSelector:
    """Attention of CLS to the patches before anything is dropped: mean over heads.

    Args:
        previous: attention of block p-1, on its input; otherwise that of block p.
    """

    weighs = True

    def __init__(self, *, previous: bool = False) -> None:
        self.previous = previous

    def score(self, states: Tensor, context: Context) -> Tensor:
        """See `Selector`; with `previous` needs `context.previous`.

        Raises:
            ValueError: the tower has no CLS token, or there is no previous block.
        """
        tower, layer = context.tower, context.layer
        if tower.num_prefix == 0:
            raise ValueError("cls-attn needs a CLS token, and this tower has none; use the predictor")
        if self.previous:
            if context.previous is None:
                raise ValueError(f"cls-attn of the previous block needs the states before it, and layer is {layer}")
            states, layer = context.previous, layer - 1
        # Fused attention returns no weights: one query and all keys give the single row of them that is needed.
        (query,) = tower.qkv(layer, states[:, :1], "q")
        (keys,) = tower.qkv(layer, states, "k")
        logits = (query @ keys.transpose(-1, -2)).float() * query.shape[-1] ** -0.5
        found: Tensor = logits.softmax(-1).mean(1)[:, 0, tower.num_prefix :]
        return found


class GoldenSelector:
    """The golden ranking of each sample: an oracle, for images with a search result.

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


class TaylorSelector:
    """Patches whose removal would do most damage, as estimated from gradients; see `taylor_scores`.

    A reference for offline use: its forward and backward passes cost more than the dense tower.

    Args:
        scorer: what is damaged; by default the embedding, which needs no labels.
        probes: see `taylor_scores`.
    """

    def __init__(self, scorer: Scorer | None = None, probes: int = PROBES) -> None:
        self.scorer = scorer or FeatureScorer()
        self.probes = probes

    def score(self, states: Tensor, context: Context) -> Tensor:
        """See `Selector`; one image at a time, so that no batch can change it."""
        tower, layer = context.tower, context.layer
        damages = []
        with torch.inference_mode(False), torch.no_grad():  # tensors of inference mode have no gradients
            for sample, rows in enumerate(states.clone().split(1)):
                last = rows
                for index in range(layer, tower.depth):
                    last = tower.block(index, last)
                reference = tower.pool(last)[0]
                estimate, whole = taylor_scores(tower, rows, layer, self.scorer, reference, sample, probes=self.probes)
                damages.append(whole - estimate)
        return torch.stack(damages).float()


@functools.cache
def halton_order(rows: int, columns: int) -> tuple[int, ...]:
    """Cells of a grid, in raster numbers, in the order in which the Halton sequence first meets them.

    The sequence of bases 2 and 3 (Halton, Numer. Math. 1960) has low discrepancy: its first points, however many, lie
    evenly in the unit square. All numbers are fractions of integers, so no rounding can change the order.
    """
    order: dict[int, None] = {}
    step = 0
    while len(order) < rows * columns:
        step += 1
        (up, height), (across, width) = _radical_inverse(step, 2), _radical_inverse(step, 3)
        order.setdefault(rows * up // height * columns + columns * across // width)
    return tuple(order)


def _radical_inverse(number: int, base: int) -> tuple[int, int]:
    """Numerator and denominator of the number's digits mirrored at the point."""
    numerator, denominator = 0, 1
    while number:
        number, digit = divmod(number, base)
        numerator, denominator = numerator * base + digit, denominator * base
    return numerator, denominator


def _ids(context: Context, name: str) -> Tensor:
    """(B,) numbers of the samples."""
    if context.ids is None:
        raise ValueError(f"selector {name} needs the ids of the samples")
    return context.ids


def _signed(value: int) -> int:
    """A 64-bit pattern as the int64 that torch has."""
    return value - (1 << 64) if value >> 63 else value


def _shift(value: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 of any shape; torch's is arithmetic."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _splitmix64(value: Tensor) -> Tensor:
    """SplitMix64's finaliser (Steele, Lea, Flood, OOPSLA 2014): a bijection that scatters neighbouring integers."""
    value = (value ^ _shift(value, 30)) * _signed(0xBF58476D1CE4E5B9)
    value = (value ^ _shift(value, 27)) * _signed(0x94D049BB133111EB)
    return value ^ _shift(value, 31)
