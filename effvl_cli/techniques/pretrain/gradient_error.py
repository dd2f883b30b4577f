"""How far a compressed gradient is from the uncompressed one, at equal cost (arXiv 2410.22364, fig. 4).

For M batches with uncompressed gradients g_b and compressed ones h_b of the same images and views, d_b = h_b - g_b:

    bias2  = ||mean d||^2 - V(d) / M            V(a) = sum_b ||a_b - mean a||^2 / (M - 1)
    ca_var = rel_cost V(h)                      at equal cost a cheaper gradient averages more samples
    ca_mse = bias2 + ca_var

bias2 is unbiased: ||mean d||^2 alone is too large by V(d) / M. The paper names the three quantities; this estimator is
ours. Only running means are kept, so memory is two vectors per strategy; spreads come from sketches of the vectors.

The cosine of the two expected gradients is made of squared norms that are unbiased in the same way: with
n(a) = ||mean a||^2 - V(a) / M it is (n(h) + n(g) - bias2) / (2 sqrt(n(h) n(g))). The cosine of the means is too low,
as each holds its own noise.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SKETCH = 1 << 14


class Moments:
    """Running mean and scatter of vectors (Welford)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros(())
        self.scatter = 0.0

    def add(self, vector: Tensor) -> None:
        """Add a vector (P,)."""
        self.count += 1
        if self.count == 1:
            self.mean = vector.clone()
            return
        delta = vector - self.mean
        self.mean = self.mean + delta / self.count
        self.scatter += float(torch.dot(delta.double(), (vector - self.mean).double()))

    @property
    def variance(self) -> float:
        """V of the vectors so far."""
        return self.scatter / (self.count - 1)

    @property
    def norm2(self) -> float:
        """Squared norm of the expected vector, unbiased."""
        return float(self.mean.double().square().sum()) - self.variance / self.count


@dataclass(frozen=True)
class Estimate:
    """Gradient error of a strategy at one stage of the training; divided by V(g) where `relative` was asked for.

    Attributes:
        rel_cost: cost of a step over that of the uncompressed one.
        bias2: squared bias; the estimate is unbiased, so it may be slightly negative.
        var: variance of the compressed gradient of a batch.
        ca_var: rel_cost * var.
        ca_mse: bias2 + ca_var.
        se: jackknife standard error of ca_mse.
        bias2_se: jackknife standard error of bias2.
        cosine: of the two expected gradients; may slightly exceed 1; None where noise hides one of them.
    """

    rel_cost: float
    bias2: float
    var: float
    ca_var: float
    ca_mse: float
    se: float
    bias2_se: float
    cosine: float | None

    def divided(self, scale: float) -> "Estimate":
        """All squared norms divided by `scale`."""
        values = {name: getattr(self, name) / scale for name in ("bias2", "var", "ca_var", "ca_mse", "se", "bias2_se")}
        return Estimate(rel_cost=self.rel_cost, cosine=self.cosine, **values)


class GradientError:
    """Collects the gradients of a checkpoint, batch by batch.

    Args:
        rel_cost: cost of each strategy, relative to the uncompressed one.
    """

    def __init__(self, rel_cost: Mapping[str, float]) -> None:
        self.rel_cost = dict(rel_cost)
        self.full = Moments()
        self._compressed = {name: Moments() for name in self.rel_cost}
        self._difference = {name: Moments() for name in self.rel_cost}
        self._sketches: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in self.rel_cost}

    def add(self, name: str, gradient: Tensor, full: Tensor) -> None:
        """Add the gradient (P,) of a strategy and the uncompressed one of the same batch."""
        difference = gradient - full
        self._compressed[name].add(gradient)
        self._difference[name].add(difference)
        self._sketches[name].append((sketch(gradient), sketch(difference)))

    def add_full(self, gradient: Tensor) -> None:
        """Add the uncompressed gradient (P,) of a batch."""
        self.full.add(gradient)

    @property
    def snr(self) -> float:
        """Squared norm of the mean uncompressed gradient, unbiased, over its variance."""
        return self.full.norm2 / self.full.variance

    def estimate(self, name: str) -> Estimate:
        """Gradient error of one strategy, divided by V(g)."""
        h, d, cost = self._compressed[name], self._difference[name], self.rel_cost[name]
        bias2 = d.norm2
        cosine = _cosine(h.norm2, self.full.norm2, bias2)
        rows_h, rows_d = (torch.stack(rows).double() for rows in zip(*self._sketches[name], strict=True))
        error, bias_error = _jackknife(rows_h, rows_d, cost)
        found = Estimate(
            cost, bias2, h.variance, cost * h.variance, bias2 + cost * h.variance, error, bias_error, cosine
        )
        return found.divided(self.full.variance)


def sketch(vector: Tensor) -> Tensor:
    """Random projection (P,) to (SKETCH,) that keeps inner products on average; a short vector is returned unchanged.

    Signs are random and fixed; entries that are SKETCH apart are added up (Charikar et al., "Finding frequent items in
    data streams", 2002, with buckets by position).
    """
    if len(vector) <= SKETCH:
        return vector.clone()
    rows = -(-len(vector) // SKETCH)
    padded = torch.zeros(rows * SKETCH, dtype=vector.dtype, device=vector.device)
    padded[: len(vector)] = vector
    noise = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (rows, SKETCH), generator=noise, dtype=torch.int8).to(vector.device)
    return (padded.reshape(rows, SKETCH) * (2 * signs - 1)).sum(0)


def _cosine(first: float, second: float, distance: float) -> float | None:
    """Cosine of two vectors, given their squared norms and that of their difference."""
    if first <= 0 or second <= 0:
        return None
    return (first + second - distance) / (2 * math.sqrt(first * second))


def _jackknife(compressed: Tensor, difference: Tensor, cost: float) -> tuple[float, float]:
    """Standard errors of ca_mse and bias2, leaving out one row (M, .) at a time; too large where bias is near 0."""
    count = len(compressed)
    if count < 3:
        return math.nan, math.nan
    totals, biases = [], []
    for left_out in range(count):
        rest = torch.arange(count) != left_out
        biases.append(_bias2(difference[rest]))
        totals.append(biases[-1] + cost * _variance(compressed[rest]))
    return _spread(totals), _spread(biases)


def _spread(values: list[float]) -> float:
    found = torch.tensor(values, dtype=torch.float64)
    count = len(values)
    return math.sqrt((count - 1) / count * float((found - found.mean()).square().sum()))


def _variance(rows: Tensor) -> float:
    """V of the rows (M, P)."""
    return float((rows - rows.mean(0)).square().sum()) / (len(rows) - 1)


def _bias2(rows: Tensor) -> float:
    """Unbiased squared norm of what the rows (M, P) are samples of."""
    return float(rows.mean(0).square().sum()) - _variance(rows) / len(rows)


def best(estimates: Mapping[str, Estimate]) -> str:
    """The least compressed strategy among those within one standard error of the lowest CA-MSE."""
    least = min(estimates, key=lambda name: estimates[name].ca_mse)
    limit = estimates[least].ca_mse + estimates[least].se
    near = [name for name in estimates if estimates[name].ca_mse <= limit]
    return max(near, key=lambda name: estimates[name].rel_cost)


def monotone(chosen: Sequence[str], stages: Sequence[Mapping[str, Estimate]]) -> list[str]:
    """Make the cost never fall: a choice that would is replaced by the lowest CA-MSE among those that cost enough."""
    result: list[str] = []
    floor = 0.0
    for name, estimates in zip(chosen, stages, strict=True):
        if estimates[name].rel_cost < floor:
            allowed = [other for other in estimates if estimates[other].rel_cost >= floor]
            name = min(allowed, key=lambda other: estimates[other].ca_mse)
        result.append(name)
        floor = estimates[name].rel_cost
    return result


def flattened(gradients: Sequence[Tensor | None], parameters: Sequence[Tensor]) -> Tensor:
    """(P,) float32 of all gradients one behind the other; zeros for a parameter that has none."""
    flat = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)]
    return torch.cat([part.detach().float().flatten() for part in flat])
