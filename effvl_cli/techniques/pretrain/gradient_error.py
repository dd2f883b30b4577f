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

What a step buys at first order, for the same cost:

    progress = <Eh, Eg> |<Eh, Eg>| / (||Eh||^2 + V(h)) / rel_cost

with <Eh, Eg> = (n(h) + n(g) - bias2) / 2: the loss falls by <Eh, Eg> times the rate, and the rate that a noisy gradient
bears is in proportion to <Eh, Eg> over its mean square. Unlike ca_mse it counts that a cheaper step allows more steps,
and it ignores the scale of h. Over ||Eg||^2 it would be the squared cosine of h and Eg per cost; that norm is common to
all strategies of a stage, so the order is the same, but where noise hides it a quotient by it means nothing.

One training state is a snapshot: at a high learning rate its mean gradient is mostly transient. Averaged over N states
of one training, each with batches of its own, g_b and h_b are means of N gradients, d_b is the bias that stays, and its
noise V(d) / M is N times smaller; a batch of the training still has N times the variance of such a mean.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

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
        progress: decrease of the loss at first order for the cost of an uncompressed step.
        left_out: "ca-mse" and "progress" without each of the batches in turn, for standard errors of differences.
    """

    rel_cost: float
    bias2: float
    var: float
    ca_var: float
    ca_mse: float
    se: float
    bias2_se: float
    cosine: float | None
    progress: float = 0.0
    left_out: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def divided(self, scale: float) -> "Estimate":
        """All squared norms divided by `scale`."""
        names = ("bias2", "var", "ca_var", "ca_mse", "se", "bias2_se", "progress")
        values = {name: getattr(self, name) / scale for name in names}
        rows = {key: [value / scale for value in row] for key, row in self.left_out.items()}
        return Estimate(rel_cost=self.rel_cost, cosine=self.cosine, left_out=rows, **values)


class GradientError:
    """Collects the gradients of a checkpoint, batch by batch.

    Args:
        rel_cost: cost of each strategy, relative to the uncompressed one.
        averaged: how many gradients, of different batches, each of those that are added is the mean of.
    """

    def __init__(self, rel_cost: Mapping[str, float], averaged: int = 1) -> None:
        self.rel_cost, self.averaged = dict(rel_cost), averaged
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
        """Squared norm of the mean uncompressed gradient, unbiased, over the variance of one batch."""
        return self.full.norm2 / self._variance(self.full)

    def _variance(self, of: Moments) -> float:
        """V of the gradient of one batch."""
        return self.averaged * of.variance

    def estimate(self, name: str) -> Estimate:
        """Gradient error of one strategy, divided by V(g)."""
        h, d, cost = self._compressed[name], self._difference[name], self.rel_cost[name]
        bias2, full2, variance = d.norm2, self.full.norm2, self._variance(h)
        rows_h, rows_d = (torch.stack(rows).double() for rows in zip(*self._sketches[name], strict=True))
        biases, left_out = _without_each(rows_h, rows_d, cost, self.averaged)
        found = Estimate(
            rel_cost=cost,
            bias2=bias2,
            var=variance,
            ca_var=cost * variance,
            ca_mse=bias2 + cost * variance,
            se=jackknife_error(left_out["ca-mse"]),
            bias2_se=jackknife_error(biases),
            cosine=_cosine(h.norm2, full2, bias2),
            progress=_progress(h.norm2, full2, bias2, variance) / cost,
            left_out=left_out,
        )
        return found.divided(self._variance(self.full))


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


def _progress(compressed2: float, full2: float, bias2: float, variance: float) -> float:
    """Progress of a step of the same cost, given squared norms of the expected gradients and of their difference."""
    along = (compressed2 + full2 - bias2) / 2
    return along * abs(along) / (compressed2 + variance)


def _without_each(
    compressed: Tensor, difference: Tensor, cost: float, averaged: int
) -> tuple[list[float], dict[str, list[float]]]:
    """bias2, and each criterion by name, without each row (M, .) in turn; nothing where fewer than 3 rows are there."""
    count = len(compressed)
    biases: list[float] = []
    criteria: dict[str, list[float]] = {"ca-mse": [], "progress": []}
    for left_out in range(count) if count >= 3 else ():
        rest = torch.arange(count) != left_out
        h, d = compressed[rest], difference[rest]
        bias2, variance = _norm2(d), averaged * _variance(h)
        biases.append(bias2)
        criteria["ca-mse"].append(bias2 + cost * variance)
        criteria["progress"].append(_progress(_norm2(h), _norm2(h - d), bias2, variance) / cost)
    return biases, criteria


def jackknife_error(values: Sequence[float]) -> float:
    """Standard error from the values without each observation in turn; too large where a squared bias is near 0."""
    found = torch.tensor(values, dtype=torch.float64)
    count = len(values)
    return math.sqrt((count - 1) / count * float((found - found.mean()).square().sum())) if count else math.nan


def _variance(rows: Tensor) -> float:
    """V of the rows (M, P)."""
    return float((rows - rows.mean(0)).square().sum()) / (len(rows) - 1)


def _norm2(rows: Tensor) -> float:
    """Unbiased squared norm of what the rows (M, P) are samples of."""
    return float(rows.mean(0).square().sum()) - _variance(rows) / len(rows)


def flattened(gradients: Sequence[Tensor | None], parameters: Sequence[Tensor]) -> Tensor:
    """(P,) float32 of all gradients one behind the other; zeros for a parameter that has none."""
    flat = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)]
    return torch.cat([part.detach().float().flatten() for part in flat])


def adam_scale(second_moment: Tensor, decay: float, steps: float, epsilon: float = 1e-8) -> Tensor:
    """Factors that turn squared norms of gradients into those of Adam's metric: (sqrt(v) + epsilon)^-1/2.

    Adam (Kingma & Ba, arXiv 1412.6980, algorithm 1) divides a gradient by sqrt(v) + epsilon, so that
    <a, b> = sum a_i b_i / (sqrt(v_i) + epsilon) is the decrease of the loss by a step along b, where a is its gradient.

    Args:
        second_moment: moving average of squared gradients, of any shape.
        decay: beta_2.
        steps: updates so far; 0: ones are returned.
        epsilon: Adam's.
    """
    if not steps:
        return torch.ones_like(second_moment)
    found: Tensor = ((second_moment / (1 - decay**steps)).sqrt() + epsilon).rsqrt()
    return found
