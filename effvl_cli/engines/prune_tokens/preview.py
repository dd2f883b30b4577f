"""Cost of a ranking search and everything after it, for `--dry-run`."""

from collections.abc import Sequence

import torch

from effvl_cli.config.prune_tokens import (
    BenchConfig,
    EvalConfig,
    ExportConfig,
    PredictConfig,
    PruneTokensConfig,
    RankConfig,
    TowerConfig,
    TuneConfig,
    VizConfig,
)
from effvl_cli.core import distributed, sweep
from effvl_cli.core.measure import count_parameters
from effvl_cli.core.run import unopened
from effvl_cli.core.table import Table
from effvl_cli.data import load
from effvl_cli.data.decoded import held_bytes
from effvl_cli.data.fewshot import few_shot
from effvl_cli.engines.common.cost_table import TRAINING, Part, cost_table, part, speed_of, timings, written
from effvl_cli.engines.prune_tokens.context import Context, Searching, Tuning, build_context
from effvl_cli.techniques.prune_tokens.scorer_table import SCORERS
from effvl_cli.techniques.prune_tokens.search_cost import search_cost
from effvl_cli.techniques.prune_tokens.tower import num_keep

BATCH = 32  # largest number of images in a probe
TUNING = 2  # multiply-adds of a forward pass and its gradient to prompts, over those of the forward pass
MAPPED = 512  # test images over which `viz` averages kept patches
ARMS = 8  # largest number of selectors that the job compares


def candidates_of(context: Searching) -> tuple[int, int]:
    """Candidates and multiply-adds of the search on one image, at most."""
    config = context.config
    return search_cost(
        context.shape,
        context.tower.grid,
        context.layer,
        block=config.block,
        block_stride=config.block_stride,
        group=config.group,
        rank_until=config.rank_until,
        shortlist=config.shortlist,
        by_gradients=SCORERS[config.scorer].by_gradients,
    )


def preview_search(config: RankConfig) -> list[Table]:
    """Of the rankings alone."""
    context = build_context(config, unopened("prune-tokens rank", config))
    images = _ranked(context) // sweep.parse_shard(config.sample_shard, "--sample-shard")[1]
    return [_table(context, [_search(context, "ranking", images, _speed(context))], _ranked(context))]


def preview_job(config: PruneTokensConfig) -> list[Table]:
    """Of the whole job."""
    context = build_context(config, unopened("prune-tokens", config))
    speed, images, test = _speed(context), _ranked(context), _tested(context)
    parts = [_search(context, "ranking", images, speed), _predictor(context, images, speed)]
    if config.prompts != "none":
        parts.append(_prompts(context, images, speed))
    if config.num_golden:
        parts.append(_search(context, "golden ranking", min(config.num_golden, test), speed))
    return [_table(context, [*parts, _evaluation(context, (context.config.keep,), ARMS, test, speed)], images, test)]


def preview_predict(config: PredictConfig) -> list[Table]:
    """Of a predictor."""
    context = build_context(config, unopened("prune-tokens predict", config))
    speed, images = _speed(context), _ranked(context)
    parts = [_search(context, "ranking", images, speed), _predictor(context, images, speed)]
    return [_table(context, parts, images)]


def preview_tune(config: TuneConfig) -> list[Table]:
    """Of prompts."""
    context = build_context(config, unopened("prune-tokens tune", config))
    speed, images, test = _speed(context), _ranked(context), _tested(context)
    last = _evaluation(context, (context.config.keep,), 2, test, speed)
    return [_table(context, [_prompts(context, images, speed), last], images, test)]


def preview_eval(config: EvalConfig) -> list[Table]:
    """Of selectors at keep rates."""
    context = build_context(config, unopened("prune-tokens eval", config))
    speed, test = _speed(context), _tested(context)
    parts = []
    if "golden" in config.selector:
        parts.append(_search(context, "golden ranking", min(config.num_golden, test), speed))
    keeps = tuple(dict.fromkeys(context.config.keep))
    return [_table(context, [*parts, _evaluation(context, keeps, len(config.selector), test, speed)], test)]


def preview_bench(config: BenchConfig) -> list[Table]:
    """Of latencies."""
    context = build_context(config, unopened("prune-tokens bench", config))
    pruned = [_pruned(context, keep) for keep in dict.fromkeys(context.config.keep)]
    macs = [context.shape.dense(), *(pruned * len(config.selector))]
    return [_table(context, [timings(macs, config.batch_size, _speed(context))])]


def preview_export(config: ExportConfig) -> list[Table]:
    """Of files."""
    context = build_context(config, unopened("prune-tokens export", config))
    return [_table(context, [written(config.format, _pruned(context, context.config.keep), _speed(context))])]


def preview_viz(config: VizConfig) -> list[Table]:
    """Of pictures."""
    context = build_context(config, unopened("prune-tokens viz", config))
    speed, images = _speed(context), min(_tested(context), max(MAPPED, config.num_images))
    parts = [_search(context, "golden ranking", config.num_images, speed)] if "golden" in config.selector else []
    macs = images * len(config.selector) * sum(_pruned(context, keep) for keep in dict.fromkeys(context.config.keep))
    work = f"{len(config.selector)} selectors on {images:,} images"
    return [_table(context, [*parts, part("pictures", work, macs, speed)], images)]


def _predictor(context: Context[PruneTokensConfig | PredictConfig], images: int, speed: float) -> Part:
    config = context.config
    seen = images * (2 if config.predictor_flip else 1)
    macs = TRAINING * config.predictor_epochs * seen * context.shape.mixer(config.predictor_width)
    return part("predictor", f"{config.predictor_epochs} epochs of {seen:,} images", macs, speed)


def _prompts(context: Tuning, images: int, speed: float) -> Part:
    config = context.config
    macs = TUNING * config.tune_epochs * images * _pruned(context, config.keep)
    return part("prompts", f"{config.tune_epochs} epochs of {images:,} images", macs, speed)


def _evaluation(context: Context[TowerConfig], keeps: Sequence[float], selectors: int, test: int, speed: float) -> Part:
    pruned = sum(_pruned(context, keep) for keep in keeps)
    rates = f" at {len(keeps)} keep rates" if len(keeps) > 1 else ""
    work = f"the tower and {selectors} selectors{rates} on {test:,} images"
    return part("evaluation", work, test * (context.shape.dense() + selectors * pruned), speed)


def _pruned(context: Context[TowerConfig], keep: float) -> int:
    return context.shape.pruned(num_keep(keep, context.shape.num_patches), context.layer)


def _search(context: Searching, name: str, images: int, speed: float) -> Part:
    passes, macs = candidates_of(context)
    share = distributed.world().size
    work = f"{images:,} images, {passes:,} candidates each" + (f", over {share} processes" if share > 1 else "")
    return Part(name, work, images * macs, images * macs / speed / share)


def _ranked(context: Context[PruneTokensConfig | RankConfig | PredictConfig | TuneConfig]) -> int:
    """Images that are ranked."""
    config = context.config
    source = load(config.data, "train", root=config.data_root, seed=0)
    if config.shots == "all":
        return len(source)
    if source.endless:  # it need not be searched
        return config.shots * len(source.classes)
    return len(few_shot(source, config.shots, config.seed))


def _tested(context: Context[TowerConfig]) -> int:
    config = context.config
    return len(load(config.data, "test", root=config.data_root, seed=0))


def _speed(context: Context[TowerConfig]) -> float:
    """Multiply-adds a second of the dense tower."""
    pixels = torch.zeros(BATCH, 3, *context.network.preprocess.size, device=context.run.device)
    return speed_of(context.tower.module, context.tower.module, pixels, context.shape.dense())


def _table(context: Context[TowerConfig], parts: list[Part], *held: int) -> Table:
    """Of the parts, and of the memory for so many images of each split that is decoded whole."""
    title = f"{context.network.name} on {context.config.data}, pruned before block {context.layer}"
    pixels = sum(held_bytes(count, context.network.preprocess) for count in held)
    memory = 4 * count_parameters(context.network.module) + pixels
    notes = (
        "rankings in the cache cost nothing",
        "the memory is that of the weights and of decoded images; images beyond half of all are read when needed",
        "--candidate-tokens bounds the rest of the memory",
    )
    return cost_table(title, parts, context.run.device, memory=memory, notes=notes)
