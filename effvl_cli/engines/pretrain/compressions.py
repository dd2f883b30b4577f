"""The compressions that a schedule search compares."""

import dataclasses
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from effvl_cli.config.pretrain import SearchConfig
from effvl_cli.config.recipe_file import read_yaml
from effvl_cli.core.errors import UsageError
from effvl_cli.engines.pretrain.costs import check_patches
from effvl_cli.engines.pretrain.schedules import key_keep, unsaid_key_keep
from effvl_cli.techniques.pretrain.compression_search import grid, named, patch_sizes
from effvl_cli.techniques.pretrain.schedule import Compression, Schedule, Stage, schedule_from
from effvl_cli.techniques.pretrain.step_cost import Costs

FEWEST_BATCHES, MOST_BATCHES = 4, 32


def candidates_of(config: SearchConfig, costs: Costs) -> dict[str, Compression]:
    """Strategies by name; the uncompressed one is called `FULL`.

    Raises:
        UsageError: a file that cannot be read, or patches that do not fit.
    """
    base, sizes = costs.shape.patch, costs.sizes
    if config.candidates:
        found = _read_candidates(Path(config.candidates), config.method)
    else:
        patches = config.candidate_patches or patch_sizes(base, sizes)
        found = grid(patches, config.candidate_keeps, partial(key_keep, config.method))
    check_patches(sizes, Schedule(tuple(Stage(index + 1.0, c) for index, c in enumerate(found)), "steps"))
    return named(found, base, sizes)


def with_batches(
    config: SearchConfig, costs: Costs, candidates: Mapping[str, Compression], budget: float
) -> SearchConfig:
    """The options with a number of batches for each gradient: as given, or as many as --search-share pays.

    Args:
        config: options.
        costs: of a sample.
        candidates: compressions by name.
        budget: units of the training that the schedule is for.
    """
    if config.num_grad_batches is not None:
        return config
    paid = (config.search_share - config.pilot_share) * budget / gradient_units(config, costs, candidates)
    return dataclasses.replace(config, num_grad_batches=min(MOST_BATCHES, max(FEWEST_BATCHES, int(paid))))


def gradient_units(config: SearchConfig, costs: Costs, candidates: Mapping[str, Compression]) -> float:
    """Cost of one batch for each gradient, at most: --early-stop gives up some."""
    stages = config.loop_shares if config.closed_loop else config.measure_at
    batch = config.grad_batch_size or config.batch_size
    return batch * config.average * len(stages) * sum(map(costs.sample, candidates.values()))


def _read_candidates(path: Path, method: str) -> list[Compression]:
    rows = read_yaml(path)
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        raise UsageError(f"--candidates {path} is not a list", "Write e.g. - {patch: 8, keep_q: 0.5}, one per line")
    numbered = [{**row, "until": index + 1} for index, row in enumerate(rows)]
    try:
        found = schedule_from({"unit": "steps", "stages": numbered}, default_keep_k=unsaid_key_keep(method))
    except ValueError as error:
        raise UsageError(f"--candidates {path}: {str(error).replace('stage', 'row')}") from error
    return [stage.compression for stage in found.stages]
