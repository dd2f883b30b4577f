"""Measures what sharing computations between candidates gains, and that it changes nothing, against naive scoring."""

import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from effvl_cli.core.loop import PRECISIONS
from effvl_cli.engines.prune_blocks.context import Scoring
from effvl_cli.techniques.prune_blocks.choices import Candidate
from effvl_cli.techniques.prune_blocks.score import Scorer, side_by_side

ROUNDS = 4  # the first is the warm-up, in which sharing checks itself


def compare(context: Scoring, module: nn.Module, found: Sequence[Candidate]) -> dict[str, Any]:
    """Score the first batch in both ways, in turn.

    Returns:
        `speedup`: naive time over shared time, CPU time on a CPU. `bit_equal`: whether every answer and
        every loss is the same. `images`: in the batch.
    """
    config, split, device = context.config, context.scoring, context.run.device
    units = [candidate.unit for candidate in found]
    cast = PRECISIONS[config.precision]
    scorers = (Scorer(module, units, "off", autocast=cast), Scorer(module, units, config.sharing, autocast=cast))
    images = context.network.preprocess.normalise(split[: config.score_batch_size].to(device))
    labels = split.labels[: len(images)].to(device)
    speedup, equal = side_by_side(scorers, images, labels, rounds=ROUNDS, now=partial(_now, device))
    return {"speedup": speedup, "bit_equal": equal, "images": len(images)}


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        return time.perf_counter()
    return time.process_time()
