"""Runs networks over whole data sets, distributed over the processes of the run."""

from collections.abc import Callable

import torch
from torch import Tensor

from effvl_cli.core import distributed
from effvl_cli.core.loop import autocast
from effvl_cli.core.run import Run
from effvl_cli.data.decoded import Decoded


def over_images(
    function: Callable[[Tensor, range], Tensor],
    images: Decoded,
    run: Run,
    *,
    batch_size: int,
    precision: str = "fp32",
) -> Tensor:
    """Apply `function` to every image once, on each process to its share.

    Args:
        function: (normalised images (b, 3, H, W) on the device, their positions) to rows (b, ...).
        images: M of them.
        run: device and stop requests.
        batch_size: images at a time on each device.
        precision: autocast type.

    Returns:
        (M, ...) float32 on the CPU, the same on every process.
    """
    mine, normalise = distributed.shard(len(images)), images.preprocess.normalise
    parts = []
    with torch.inference_mode(), autocast(run.device, precision):
        for rows, pixels in images.batches(batch_size, range(mine.start, mine.stop)):
            parts.append(function(normalise(pixels.to(run.device, non_blocking=True)), rows).float().cpu())
        if not parts:  # more processes than images: one row gives the shape, none is kept
            parts = [function(normalise(images[:1].to(run.device)), range(1)).float().cpu()[:0]]
    return distributed.gather_rows(torch.cat(parts).clone(), len(images))


def over_batches(
    function: Callable[[Tensor, Tensor], Tensor], images: Decoded, device: torch.device, batch_size: int
) -> Tensor:
    """Apply `function` to every image in this process alone, for pictures.

    Args:
        function: (normalised images (b, 3, H, W) on the device, their keys (b,)) to rows (b, ...).
        images: M of them.
        device: where to.
        batch_size: images at a time.

    Returns:
        (M, ...) on the CPU, of the type that `function` gives.
    """
    parts = []
    for rows, pixels in images.batches(batch_size):
        keys, x = images.keys[rows.start : rows.stop], images.preprocess.normalise(pixels.to(device))
        with torch.inference_mode():
            parts.append(function(x, keys.to(device)).cpu())
    return torch.cat(parts)
