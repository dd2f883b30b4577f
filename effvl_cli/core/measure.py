"""Parameters, multiply-adds and latency."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def count_parameters(module: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in module.parameters())


def count_macs(module: nn.Module, *inputs: Tensor) -> int:
    """Multiply-adds of a forward pass: half of torch's FLOP count.

    Fused attention is invisible to the counter, in some versions of torch even that of training: it is computed by
    plain products while counting.
    """
    plain = sdpa_kernel(SDPBackend.MATH)
    with unfused_attention(), plain, torch.enable_grad(), FlopCounterMode(display=False) as counter:
        module(*inputs)
    return counter.get_total_flops() // 2


@contextlib.contextmanager
def unfused_attention() -> Iterator[None]:
    """Run the body without the fused inference path of `nn.MultiheadAttention`."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


@dataclass(frozen=True)
class Latency:
    """Milliseconds of the passes of one arm."""

    samples: tuple[float, ...]

    @property
    def median_ms(self) -> float:
        """Middle pass."""
        return float(np.median(self.samples))

    @property
    def p10_ms(self) -> float:
        """Tenth percentile."""
        return float(np.percentile(self.samples, 10))

    @property
    def p90_ms(self) -> float:
        """Ninetieth percentile."""
        return float(np.percentile(self.samples, 90))


@dataclass(frozen=True)
class Ratio:
    """A ratio of medians with a 95 % bootstrap interval."""

    value: float
    low: float
    high: float


def interleaved_latency(
    arms: dict[str, Callable[[], Any]],
    device: torch.device,
    *,
    seconds: float = 10.0,
    max_passes: int = 50,
    min_passes: int = 5,
    warmup: int = 2,
) -> dict[str, Latency]:
    """Time several functions in turn, A B A B, so that a drift of the machine's speed meets all alike.

    Passes go on until each arm has used `seconds` or made `max_passes`, and at least `min_passes`; the caller sets
    evaluation mode.
    """
    times: dict[str, list[float]] = {name: [] for name in arms}
    with torch.inference_mode():
        for _ in range(warmup):
            for function in arms.values():
                function()
        while not all(_enough(t, seconds, max_passes, min_passes) for t in times.values()):
            for name, function in arms.items():
                times[name].append(_timed(function, device))
    return {name: Latency(tuple(values)) for name, values in times.items()}


def _enough(times: list[float], seconds: float, max_passes: int, min_passes: int) -> bool:
    return len(times) >= min_passes and (len(times) >= max_passes or sum(times) >= 1000 * seconds)


def _timed(function: Callable[[], Any], device: torch.device) -> float:
    _synchronise(device)
    started = time.perf_counter()
    function()
    _synchronise(device)
    return 1000 * (time.perf_counter() - started)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ratio(slow: Latency, fast: Latency, *, draws: int = 2000) -> Ratio:
    """Median of `slow` over median of `fast`; passes made in the same turn are resampled together."""
    pairs = np.array(list(zip(slow.samples, fast.samples, strict=False)))
    picks = np.random.default_rng(0).integers(0, len(pairs), (draws, len(pairs)))
    medians = np.median(pairs[picks], axis=1)
    low, high = np.percentile(medians[:, 0] / medians[:, 1], [2.5, 97.5])
    return Ratio(slow.median_ms / fast.median_ms, float(low), float(high))
