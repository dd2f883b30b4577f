"""Networks over whole data sets, split over the processes of the run."""

from collections.abc import Callable

import torch
from torch import Tensor

from effvl_cli.core import distributed
from effvl_cli.core.loop import autocast
from effvl_cli.core.run import Run
from effvl_cli.data.transforms import Preprocess


def over_images(
    function: Callable[[Tensor, range], Tensor],
    images: Tensor,
    preprocess: Preprocess,
    run: Run,
    *,
    batch_size: int,
    precision: str = "fp32",
) -> Tensor:
    """Apply `function` to every image once, each process to its share.

    Args:
        function: (normalised images (b, 3, H, W) on the device, their positions) to rows (b, ...).
        images: (M, 3, H, W) uint8.
        preprocess: normalisation.
        run: device and stop requests.
        batch_size: images at a time on each device.
        precision: autocast type.

    Returns:
        (M, ...) float32 on the CPU, the same on every process.
    """
    mine = distributed.shard(len(images))
    parts = []
    with torch.inference_mode(), autocast(run.device, precision):
        for first in range(mine.start, mine.stop, batch_size):
            rows = range(first, min(first + batch_size, mine.stop))
            batch = preprocess.normalise(images[rows.start : rows.stop].to(run.device, non_blocking=True))
            parts.append(function(batch, rows).float().cpu())
    if not parts:  # more processes than images: one row gives the shape, none is kept
        parts = [function(preprocess.normalise(images[:1].to(run.device)), range(1)).float().cpu()[:0]]
    return distributed.gather_rows(torch.cat(parts).clone(), len(images))
