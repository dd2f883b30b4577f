"""The compressions that a schedule search compares."""

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
