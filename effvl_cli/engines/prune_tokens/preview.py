"""What a search of rankings, and all that follows it, will cost; for `--dry-run`."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from effvl_cli.config.prune_tokens import PruneTokensConfig, RankConfig
from effvl_cli.core import distributed, sweep
from effvl_cli.core.measure import count_parameters
from effvl_cli.core.probe import seconds_for
from effvl_cli.core.run import unopened
from effvl_cli.core.table import Table
from effvl_cli.data import load
from effvl_cli.data.fewshot import few_shot
from effvl_cli.engines.common.cost_table import TRAINING, Part, cost_table
from effvl_cli.engines.prune_tokens.context import Ranking, Searching, build_context
from effvl_cli.techniques.prune_tokens.ranking import alive_until, removal_windows
from effvl_cli.techniques.prune_tokens.tower import num_keep

BATCH = 32  # images that are probed at most
TUNING = 2  # multiply-adds of a forward pass and its gradient to prompts, over those of the forward pass
ARMS = 8  # selectors that the job compares, at most


def search_cost(context: Searching) -> tuple[int, int]:
    """Candidates and multiply-adds of the search on one image; at most, where windows lose patches one by one."""
    config, shape = context.config, context.shape
    windows = removal_windows(context.tower.grid, config.block, config.block_stride)
    alive, side = torch.ones(shape.num_patches, dtype=torch.bool), int(windows[0].sum())
    stop = alive_until(config.rank_until, shape.num_patches)
    passes, macs = 0, shape.dense()
    while alive.any():
        left = int(alive.sum())
        last = not config.group or left <= stop
        take = left if last else min(config.group, left - stop)
        candidates = int((windows & alive).any(1).sum())
        if config.scorer == "taylor" or (config.shortlist and not last):
            macs += shape.taylor(context.layer, 0)
            candidates = 0 if config.scorer == "taylor" else min(candidates, config.shortlist * take)
        passes += candidates
        macs += candidates * shape.candidate(max(0, left - side), context.layer)
        alive[alive.nonzero().flatten()[:take]] = False
    return passes, macs


def preview_search(config: RankConfig) -> list[Table]:
    """Of the rankings alone."""
    context = build_context(config, unopened("prune-tokens rank", config))
    images = _ranked(context) // sweep.parse_shard(config.sample_shard, "--sample-shard")[1]
    return [_table(context, [_search(context, "ranking", images, _speed(context))])]


def preview_job(config: PruneTokensConfig) -> list[Table]:
    """Of the whole job."""
    context = build_context(config, unopened("prune-tokens", config))
    config = context.config
    shape, speed, images = context.shape, _speed(context), _ranked(context)
    pruned = shape.pruned(num_keep(config.keep, shape.num_patches), context.layer)
    test = len(load(config.data, "test", root=config.data_root, seed=0))
    parts = [_search(context, "ranking", images, speed)]
    mixer = TRAINING * config.predictor_epochs * images * shape.mixer(config.predictor_width)
    parts.append(_part("predictor", f"{config.predictor_epochs} epochs of {images:,} images", mixer, speed))
    if config.prompts != "none":
        work = f"{config.tune_epochs} epochs of {images:,} images"
        parts.append(_part("prompts", work, TUNING * config.tune_epochs * images * pruned, speed))
    if config.num_golden:
        parts.append(_search(context, "golden ranking", min(config.num_golden, test), speed))
    macs = test * (shape.dense() + ARMS * pruned)
    parts.append(_part("evaluation", f"the tower and {ARMS} selectors on {test:,} images", macs, speed))
    return [_table(context, parts)]


def _search(context: Searching, name: str, images: int, speed: float) -> Part:
    passes, macs = search_cost(context)
    share = distributed.world().size
    work = f"{images:,} images, {passes:,} candidates each" + (f", over {share} processes" if share > 1 else "")
    return Part(name, work, images * macs, images * macs / speed / share)


def _part(name: str, work: str, macs: float, speed: float) -> Part:
    return Part(name, work, macs, macs / speed)


def _ranked(context: Ranking) -> int:
    """Images that are ranked."""
    config = context.config
    source = load(config.data, "train", root=config.data_root, seed=0)
    return len(source) if config.shots == "all" else len(few_shot(source, config.shots, config.seed))


def _speed(context: Searching) -> float:
    """Multiply-adds a second of the dense tower."""

    def run(pixels: Tensor, count: int) -> Any:
        with torch.inference_mode():
            return context.tower.module(pixels[:count])

    pixels = torch.zeros(BATCH, 3, *context.network.preprocess.size, device=context.run.device)
    seconds = seconds_for(partial(run, pixels), BATCH, context.run.device)
    return BATCH * context.shape.dense() / seconds


def _table(context: Searching, parts: list[Part]) -> Table:
    title = f"{context.network.name} on {context.config.data}, pruned before block {context.layer}"
    memory = 4 * count_parameters(context.network.module)
    notes = (
        "rankings that the cache holds cost nothing",
        "the memory is that of the weights; --candidate-tokens bounds the rest",
    )
    return cost_table(title, parts, context.run.device, memory=memory, notes=notes)
