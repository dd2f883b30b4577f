"""Estimates the time of some work from a short probe of it."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

SECONDS = 0.5  # approximate duration of a probe
SHORTEST = 0.1  # seconds of a call that is worth measuring
GROWTH = 4


def seconds_for(function: Callable[[int], Any], count: int, device: torch.device) -> float:
    """Seconds for `count` samples at once, from a call with that many, or with fewer where that would take long.

    Args:
        function: does the work for a number of samples.
        count: samples of a whole call.
        device: where the work is done.

    Raises:
        torch.OutOfMemoryError: not even the smallest call fits.
    """
    size, best = min(2, count), 0.0
    function(size)  # warms up
    while True:
        try:
            elapsed = _timed(function, size, device)
        except torch.OutOfMemoryError:
            if not best:
                raise
            return best
        best = elapsed * count / size
        if size == count or elapsed >= SHORTEST:
            return best
        size = min(count, GROWTH * size)


def _timed(function: Callable[[int], Any], size: int, device: torch.device) -> float:
    """Shortest of some calls: the machine may be doing other things."""
    times: list[float] = []
    while sum(times) < SECONDS and len(times) < 3:
        _synchronise(device)
        began = time.perf_counter()
        function(size)
        _synchronise(device)
        times.append(time.perf_counter() - began)
    return min(times)


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def saved_bytes(function: Callable[[], Any]) -> int:
    """Bytes that autograd keeps for the backward pass of what `function` computes; parameters not among them."""
    seen: dict[int, int] = {}
    kept: list[Tensor] = []  # keeps storages alive: the address of a freed one could be used again

    def pack(tensor: Tensor) -> Tensor:
        if not tensor.is_leaf or not tensor.requires_grad:
            storage = tensor.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
            kept.append(tensor)
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = function()
    del result
    return sum(seen.values())


def training_bytes(loss: Callable[[int], Any], count: int, smallest: int = 2) -> float:
    """Bytes that the backward pass of a loss of `count` samples needs, from those of two small numbers of samples."""
    few, many = (saved_bytes(partial(loss, samples)) for samples in (smallest, 2 * smallest))
    return few + (many - few) / smallest * max(0, count - smallest)
